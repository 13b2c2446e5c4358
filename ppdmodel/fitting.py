"""From a measurement to a calibration: match rates with intervals, and a fitted surface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from .checks import positive_integer
from .errors import InvalidInputError
from .files import provenance
from .resample import METHOD, percentiles, prompt_weights, resampled_rates
from .results import Calibration, Interval, MatchCurve, Measurement

if TYPE_CHECKING:
    from .results import Floats, Ints

FAMILY = "floored Kumaraswamy"
#: parameter -> (start, lower bound, upper bound) on the scale that is fitted
PARAMETERS = {
    "log_steepness": (1.0, -3.0, 5.0),
    "log_weight": (-0.5, -8.0, 5.0),
    "weight_gain": (0.2, 0.0, 3.0),
    "floor_logit": (-3.0, -15.0, 5.0),
    "floor_gain": (1.0, 0.0, 6.0),
    "k_curvature": (0.3, 0.01, 3.0),
}


def fit(
    measurement: Measurement,
    *,
    k_max: int = 32,
    resamples: int = 1000,
    seed: int = 0,
) -> Calibration:
    r"""Match rates of every exit layer and k with intervals, and a surface through them.

    The surface, over relative depth x = e/d and k, is

    $1 - p(x, k) = (1 - f_k)\,(1 - x^a)^{b_k}$ with $\log b_k = b + c\,\kappa$,
    $\operatorname{logit} f_k = f + g\,\kappa$ and $\kappa = (1 - k^{-h}) / h$,

    a Kumaraswamy distribution function on a floor $f_k$: it rises with x, rises with k for
    $c, g \ge 0$, and is 1 at the last layer. It is fitted by binomial likelihood over the layers
    below the last and all k. Hits at several k and layers come from the same tokens, so that
    likelihood gives no valid standard errors: every interval comes from refitting to resampled
    prompts.

    Args:
        measurement: complete or not; at least 2 prompts and 2 layers.
        k_max: largest k to count hits for; a positive integer.
        resamples: bootstrap resamples of the prompts; a positive integer.
        seed: of the bootstrap.

    Raises:
        InvalidInputError: a number is no positive integer, or there are too few prompts or layers.
    """
    positive_integer("k_max", k_max)
    positive_integer("resamples", resamples)
    if measurement.layers < 2:
        raise InvalidInputError(
            f"a fit needs at least 2 layers; got {measurement.layers}; there is no exit before the "
            "last layer"
        )
    hits, tokens = measurement.hits_by_prompt(k_max), measurement.tokens_by_prompt()
    weights = prompt_weights(len(tokens), resamples, seed)
    low, high = percentiles(resampled_rates(hits, tokens, weights))
    return Calibration(
        model=str(measurement.provenance["model"]),
        layers=measurement.layers,
        prompt_ids=measurement.prompt_ids,
        tokens=tokens,
        hits=hits,
        p_correct=hits.sum(axis=0) / tokens.sum(),
        ci_low=low,
        ci_high=high,
        curve=_fit_curve(hits, tokens, weights),
        resamples=resamples,
        seed=seed,
        provenance={
            "measurement": dict(measurement.provenance),
            "fit": provenance(("numpy", "scipy")),
        },
    )


def curve_values(curve: MatchCurve, relative_depth: Floats | float, k: Floats | int) -> Floats:
    """The fitted match rate at relative depths x = e/d and k, broadcast."""
    theta = np.array([curve.parameters[name].value for name in PARAMETERS])
    x, k_ = np.broadcast_arrays(np.asarray(relative_depth, float), np.asarray(k, float))
    return 1 - np.exp(_Cells(x, k_).log_miss(theta))


@dataclass(frozen=True)
class _Cells:
    """The surface at fixed points: log(1 - p) and its derivatives by the parameters."""

    x: Floats
    k: Floats

    def log_miss(self, theta: Floats) -> Floats:
        """log(1 - p); -inf at the last layer."""
        log_a, log_b, c, f, g, h = theta
        with np.errstate(divide="ignore"):
            log_rest = np.log1p(-(self.x ** np.exp(log_a)))
        kappa = -np.expm1(-h * np.log(self.k)) / h
        value: Floats = np.exp(log_b + c * kappa) * log_rest - np.logaddexp(0, f + g * kappa)
        return value

    def slopes(self, theta: Floats) -> Floats:
        """Derivatives of log(1 - p) by the parameters, [parameters, ...]; for x below 1."""
        log_a, log_b, c, f, g, h = theta
        log_k = np.log(self.k)
        decay = np.exp(-h * log_k)
        kappa = (1 - decay) / h
        kappa_by_h = (log_k * decay - kappa) / h
        u = self.x ** np.exp(log_a)
        power = np.exp(log_b + c * kappa)
        by_a = -power * u * np.log(self.x) * np.exp(log_a) / (1 - u)
        by_b = power * np.log1p(-u)
        by_f = -np.exp(-np.logaddexp(0, -(f + g * kappa)))
        by_h = (by_b * c + by_f * g) * kappa_by_h
        return np.stack([by_a, by_b, by_b * kappa, by_f, by_f * kappa, by_h])


def _fit_curve(hits: Ints, tokens: Ints, weights: Ints) -> MatchCurve:
    prompts, layers, k_max = hits.shape
    x, k = np.meshgrid(np.arange(1, layers) / layers, np.arange(1.0, k_max + 1), indexing="ij")
    cells = _Cells(x, k)
    inner = hits[:, :-1].astype(float)
    start = np.array([values[0] for values in PARAMETERS.values()])
    theta, converged = _maximize(cells, inner.sum(axis=0), float(tokens.sum()), start)
    flat = inner.reshape(prompts, -1)
    draws = np.empty((len(weights), len(theta)))
    for row, weight in enumerate(weights):
        resampled = (weight @ flat).reshape(x.shape)
        draws[row] = _maximize(cells, resampled, float(weight @ tokens), theta)[0]
    low, high = percentiles(draws)
    residual = inner.sum(axis=0) / tokens.sum() - (1 - np.exp(cells.log_miss(theta)))
    worst = np.unravel_index(np.argmax(np.abs(residual)), residual.shape)
    counts = (int(tokens.sum()), prompts, METHOD)
    parameters: Mapping[str, Interval] = {
        name: Interval(float(theta[i]), float(low[i]), float(high[i]), *counts)
        for i, name in enumerate(PARAMETERS)
    }
    return MatchCurve(
        family=FAMILY,
        parameters=parameters,
        converged=converged,
        rms_residual=float(np.sqrt(np.mean(residual**2))),
        largest_residual=float(residual[worst]),
        largest_residual_layer=int(worst[0]) + 1,
        largest_residual_k=int(worst[1]) + 1,
    )


def _maximize(cells: _Cells, hits: Floats, tokens: float, start: Floats) -> tuple[Floats, bool]:
    """Parameters of the greatest binomial likelihood, and whether the search converged."""

    def loss(theta: Floats) -> tuple[float, Floats]:
        log_miss = cells.log_miss(theta)
        p = np.maximum(-np.expm1(log_miss), np.finfo(float).tiny)
        value = -(hits * np.log(p) + (tokens - hits) * log_miss).sum()
        by_log_miss = hits * np.exp(log_miss) / p - (tokens - hits)
        return value / tokens, (cells.slopes(theta) * by_log_miss).sum(axis=(1, 2)) / tokens

    bounds = [values[1:] for values in PARAMETERS.values()]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x, bool(found.success)
