"""From a measurement to a calibration: match rates with intervals, and a fitted surface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .checks import positive_integer
from .errors import InvalidInputError
from .files import provenance
from .likelihood import Cells, maximize
from .resample import METHOD, percentiles, prompt_weights, resampled_rates
from .results import Calibration, Candidate, Interval, MatchCurve, Measurement, Timing
from .surfaces import FAMILIES, Family, family_of

if TYPE_CHECKING:
    from .results import Floats, Ints

FOLDS = 5


def fit(
    measurement: Measurement,
    *,
    timing: Timing | None = None,
    family: str | None = None,
    k_max: int = 32,
    resamples: int = 1000,
    seed: int = 0,
) -> Calibration:
    r"""Match rates of every exit layer and k with intervals, and a surface through them.

    The rates are plain counts, and decisions rest on them; the surface carries them over to other
    depths. With $\kappa = (1 - k^{-h}) / h$ the families over relative depth x = e/d and k are

    - floored Kumaraswamy: $1 - p = (1 - f_k)\,(1 - x^a)^{b_k}$, $\log b_k = b + c\,\kappa$;
    - floored power: $1 - p = (1 - f_k)\,(1 - x^{a_k})$, $\log a_k = a - c\,\kappa$;
    - rank tail: $1 - p = (1 - f)\,(1 - x^a)^b\,k^{-(s + t x)}$,

    with $\operatorname{logit} f_k = f + g\,\kappa$; all rise with x and k and reach 1 at the last
    layer. Each is fitted by binomial likelihood over the layers below the last and all k, and the
    one that gives prompts that it was not fitted to the greatest likelihood is kept. Hits at
    several k and layers come from the same tokens, so that likelihood gives no valid standard
    errors: intervals and covariance come from refitting to resampled prompts.

    Args:
        measurement: complete or not; at least 2 prompts and 2 layers.
        timing: what the same model with the same kind of exits costs on one machine; the
            calibration then has seconds.
        family: a family's name, or None to choose among them.
        k_max: largest k to count hits for; a positive integer.
        resamples: bootstrap resamples of the prompts; a positive integer.
        seed: of the bootstrap and of the folds.

    Raises:
        InvalidInputError: a number is no positive integer, there are too few prompts or layers, no
            such family, or the timing is of another model or kind of exit.
    """
    positive_integer("k_max", k_max)
    positive_integer("resamples", resamples)
    families = list(FAMILIES.values()) if family is None else [family_of(family)]
    if timing is not None:
        check_same_model(measurement, timing)
    if measurement.layers < 2:
        raise InvalidInputError(
            f"a fit needs at least 2 layers; got {measurement.layers}; there is no exit before the "
            "last layer"
        )
    hits, tokens = measurement.hits_by_prompt(k_max), measurement.tokens_by_prompt()
    weights = prompt_weights(len(tokens), resamples, seed)
    low, high = percentiles(resampled_rates(hits, tokens, weights))
    candidates = _compared(families, hits, tokens, seed)
    chosen = family_of(candidates[0].family)
    return Calibration(
        model=str(measurement.provenance["model"]),
        layers=measurement.layers,
        prompt_ids=measurement.prompt_ids,
        tokens=tokens,
        hits=hits,
        p_correct=hits.sum(axis=0) / tokens.sum(),
        ci_low=low,
        ci_high=high,
        curve=_curve(chosen, hits, tokens, weights, candidates),
        resamples=resamples,
        seed=seed,
        provenance={
            "measurement": dict(measurement.provenance),
            "fit": provenance(("numpy", "scipy")),
        },
        timing=timing,
    )


def check_same_model(measurement: Measurement, timing: Timing) -> None:
    """Refuse a timing of another model, type or kind of exit.

    Raises:
        InvalidInputError: they differ.
    """
    if timing.layers != measurement.layers:
        raise InvalidInputError(
            f"the timing must be of the measured model; got one of {timing.layers} layers, not "
            f"{measurement.layers}; time this model"
        )
    mine, its = measurement.provenance, timing.provenance
    names = ["weights_sha256", "dtype", "exit_kind"]
    if mine.get("exit_kind") == "trained":
        names.append("exits_sha256")
    for name in names:
        if mine.get(name) != its.get(name):
            raise InvalidInputError(
                f"the timing must have the measurement's {name}; got {its.get(name)}, not "
                f"{mine.get(name)}; time the model that was measured"
            )


def curve_values(curve: MatchCurve, relative_depth: Floats | float, k: Floats | int) -> Floats:
    """The fitted match rate at relative depths x = e/d and k, broadcast."""
    family = family_of(curve.family)
    theta = np.array([curve.parameters[name].value for name in family.parameters])
    x, k_ = np.broadcast_arrays(np.asarray(relative_depth, float), np.asarray(k, float))
    value: Floats = -np.expm1(family.log_miss(theta, x, k_))
    return value


def _compared(families: list[Family], hits: Ints, tokens: Ints, seed: int) -> tuple[Candidate, ...]:
    """The families, the one that predicts prompts it was not fitted to best first."""
    prompts, layers, k_max = hits.shape
    inner = hits[:, :-1].astype(float)
    fold = np.random.default_rng(seed).permutation(prompts) % min(FOLDS, prompts)
    scores = []
    for family in families:
        cells, score = Cells.of(family, layers, k_max), np.zeros(prompts)
        start = None
        for number in range(fold.max() + 1):
            inside = fold != number
            start, _ = maximize(cells, inner[inside].sum(0), float(tokens[inside].sum()), start)
            for prompt in np.flatnonzero(~inside):
                score[prompt] = cells.log_likelihood(start, inner[prompt], float(tokens[prompt]))
        scores.append(score / (layers - 1) / k_max)
    totals = [score.sum() for score in scores]
    best = int(np.argmax(totals))
    found = []
    for place in np.argsort(totals)[::-1]:
        behind = scores[best] - scores[place]
        error = float(behind.std(ddof=1) * np.sqrt(prompts)) if prompts > 1 else 0.0
        found.append(
            Candidate(
                family=families[place].name,
                held_out=float(totals[place] / tokens.sum()),
                behind=float(behind.sum() / tokens.sum()),
                behind_se=error / float(tokens.sum()),
            )
        )
    return tuple(found)


def _curve(
    family: Family, hits: Ints, tokens: Ints, weights: Ints, candidates: tuple[Candidate, ...]
) -> MatchCurve:
    prompts, layers, k_max = hits.shape
    cells = Cells.of(family, layers, k_max)
    inner = hits[:, :-1].astype(float)
    theta, converged = maximize(cells, inner.sum(axis=0), float(tokens.sum()))
    resampled = (weights @ inner.reshape(prompts, -1)).reshape(-1, layers - 1, k_max)
    totals = weights @ tokens
    draws = np.array(
        [maximize(cells, h, float(n), theta)[0] for h, n in zip(resampled, totals, strict=True)]
    )
    low, high = percentiles(draws)
    covariance = np.cov(draws.T) if len(draws) > 1 else np.zeros((len(theta), len(theta)))
    residual = inner.sum(axis=0) / tokens.sum() - cells.rates(theta)
    worst = np.unravel_index(np.argmax(np.abs(residual)), residual.shape)
    counts = (int(tokens.sum()), prompts, METHOD)
    return MatchCurve(
        family=family.name,
        parameters={
            name: Interval(float(theta[i]), float(low[i]), float(high[i]), *counts)
            for i, name in enumerate(family.parameters)
        },
        converged=converged,
        rms_residual=float(np.sqrt(np.mean(residual**2))),
        largest_residual=float(residual[worst]),
        largest_residual_layer=int(worst[0]) + 1,
        largest_residual_k=int(worst[1]) + 1,
        covariance=tuple(tuple(row) for row in np.atleast_2d(covariance).tolist()),
        candidates=candidates,
    )
