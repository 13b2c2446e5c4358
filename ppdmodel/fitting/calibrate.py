"""From a measurement to a calibration: match rates with intervals, and a fitted surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import positive_integer
from ..errors import InvalidInputError
from ..results.calibration import Calibration, Candidate, MatchCurve
from ..results.files import provenance
from ..results.intervals import (
    LEAST_RESAMPLES,
    METHOD,
    Interval,
    percentiles,
    prompt_weights,
    resampled_rates,
)
from ..results.measurement import Guesses, Measurement
from ..results.timing import Timing
from ..results.token_counts import TokenCounts
from .cross_validation import FOLDS
from .curves import FAMILIES, family_of
from .likelihood import Cells, maximize

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.calibration import Reliability

#: guesses for which hits are counted, at most
MOST_K = 1000
#: a parameter that varies by less over all resamples does not vary
STILL = 1e-9
#: and along a direction of less information than this the likelihood is level
FLAT = 1e-10


def fit(
    measurement: Measurement | Sequence[Measurement],
    *,
    guesses: Guesses | Sequence[Guesses | None] | None = None,
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
        measurement: complete or not; at least 2 prompts and 2 layers. Several of one model are
            taken together, if no prompt is in two.
        guesses: those of the measurement, or of each: then a guess that both of two exits make
            counts once in what the calibration holds for `compare` and `optimize`.
        timing: what the same model with the same kind of exits costs on one machine; the
            calibration then has seconds.
        family: a family's name, or None to choose among them.
        k_max: largest k to count hits for; a positive integer.
        resamples: bootstrap resamples of the prompts; at least 40.
        seed: of the bootstrap and of the folds.

    Raises:
        InvalidInputError: a number is no positive integer, there are too few prompts or layers, no
            such family, or the measurements, guesses or timing are of another model, text or exit.
    """
    positive_integer("k_max", k_max)
    if k_max > MOST_K:
        raise InvalidInputError(f"k_max must be at most {MOST_K}; got {k_max}; give fewer guesses")
    several = [measurement] if isinstance(measurement, Measurement) else list(measurement)
    first = _checked_together(several)
    check_layers(first.layers)
    for one in several:
        check_recorded_k(one, k_max)
    if timing is not None:
        check_same_model(first, timing)
    parts = _with_guesses(several, guesses)
    found = calibrated(
        Counts(
            model=str(first.provenance["model"]),
            layers=first.layers,
            prompt_ids=tuple(name for one in several for name in one.prompt_ids),
            tokens=np.concatenate([one.tokens_by_prompt() for one in several]),
            hits=np.concatenate([one.hits_by_prompt(k_max) for one in several]),
            exit_layers=None,
            ks=None,
            about=dict(first.provenance),
            recorded=TokenCounts.joined([TokenCounts.of(one, its) for one, its in parts]),
        ),
        timing=timing,
        family=family,
        resamples=resamples,
        seed=seed,
    )
    return replace(found, reliability=_reliability(parts, seed))


def _with_guesses(
    measurements: Sequence[Measurement], guesses: Guesses | Sequence[Guesses | None] | None
) -> list[tuple[Measurement, Guesses | None]]:
    """Each measurement beside its guesses, if it has any."""
    given = [guesses] if guesses is None or isinstance(guesses, Guesses) else list(guesses)
    if guesses is None:
        given *= len(measurements)
    if len(given) != len(measurements):
        raise InvalidInputError(
            f"guesses must be given for each measurement; got {len(given)} for "
            f"{len(measurements)}; give None for one without"
        )
    return list(zip(measurements, given, strict=True))


def _reliability(
    parts: Sequence[tuple[Measurement, Guesses | None]], seed: int
) -> tuple[Reliability, ...]:
    """How far the guesses' probabilities hold; nothing where some measurement has none."""
    from .guess_reliability import reliability_of

    known = [(one, its) for one, its in parts if its is not None]
    return reliability_of(known, seed) if len(known) == len(parts) else ()


#: what must be the same for measurements that are fitted together
TOGETHER = ("weights_sha256", "dtype", "exit_kind", "exits_sha256", "decoding", "temperature",
            "top_p", "ranks")  # fmt: skip


def _checked_together(measurements: Sequence[Measurement]) -> Measurement:
    if not measurements:
        raise InvalidInputError("a fit needs a measurement; got none; measure one")
    first = measurements[0]
    for other in measurements[1:]:
        for name in TOGETHER:
            mine, its = first.provenance.get(name), other.provenance.get(name)
            if mine != its:
                raise InvalidInputError(
                    f"measurements that are fitted together must have one {name}; got {mine} and "
                    f"{its}; fit them apart"
                )
    names = [name for one in measurements for name in one.prompt_ids]
    twice = {name for name in names if names.count(name) > 1} if len(measurements) > 1 else set()
    if twice:
        raise InvalidInputError(
            f"a prompt must be in one measurement only; got {min(twice)!r} twice; merge shards "
            "with: ppdmodel merge"
        )
    return first


@dataclass(frozen=True)
class Counts:
    """Hits out of tokens, by prompt, of exit layers 1...layers and k = 1...; see `Calibration`."""

    model: str
    layers: int
    prompt_ids: tuple[str, ...]
    tokens: Ints
    hits: Ints
    exit_layers: tuple[int, ...] | None
    ks: tuple[int, ...] | None
    about: Mapping[str, Any]
    recorded: TokenCounts | None = None


def calibrated(
    counts: Counts,
    *,
    timing: Timing | None,
    family: str | None,
    resamples: int,
    seed: int,
) -> Calibration:
    """Rates with intervals and the surface, from counts by prompt; see `fit`."""
    if positive_integer("resamples", resamples) < LEAST_RESAMPLES:
        raise InvalidInputError(
            f"resamples must be at least {LEAST_RESAMPLES}, of which one lies beyond each end of a "
            f"95% interval; got {resamples}; 1000 are usual"
        )
    if seed < 0:
        raise InvalidInputError(f"seed must be 0 or more; got {seed}; give another")
    families = list(FAMILIES.values()) if family is None else [family_of(family)]
    check_layers(counts.layers)
    hits, tokens = counts.hits, counts.tokens
    weights = prompt_weights(len(tokens), resamples, seed)
    low, high = percentiles(resampled_rates(hits, tokens, weights))
    d, k_max = counts.layers, hits.shape[2]
    exits = np.array([e for e in counts.exit_layers or range(1, d) if e < d])
    ks = np.array(counts.ks or range(1, k_max + 1))
    inner = hits[:, exits - 1][:, :, ks - 1].astype(float)
    grids = {f.name: Cells.of(f, d, exits, ks) for f in families}
    candidates = _compared(grids, inner, tokens, seed)
    return Calibration(
        model=counts.model,
        layers=d,
        prompt_ids=counts.prompt_ids,
        tokens=tokens,
        hits=hits,
        p_correct=hits.sum(axis=0) / tokens.sum(),
        ci_low=low,
        ci_high=high,
        curve=_curve(grids[candidates[0].family], inner, tokens, weights, candidates),
        resamples=resamples,
        seed=seed,
        provenance={"measurement": counts.about, "fit": provenance(("numpy", "scipy"))},
        timing=timing,
        exit_layers=counts.exit_layers,
        ks=counts.ks,
        recorded=counts.recorded,
    )


def check_layers(layers: int) -> None:
    """Refuse a model without a layer before the last.

    Raises:
        InvalidInputError: it has fewer than two layers.
    """
    if layers < 2:
        raise InvalidInputError(
            f"a fit needs at least 2 layers; got {layers}; there is no exit before the last layer"
        )


def check_recorded_k(measurement: Measurement, k: int) -> None:
    """Refuse more guesses than were recorded.

    Raises:
        InvalidInputError: k is beyond the vocabulary, or the ranks that the measurement holds.
    """
    most = measurement.provenance.get("k_max")
    if isinstance(most, int) and k > most:
        raise InvalidInputError(
            f"k must be at most {most}, as far as ranks were recorded; got {k}; give less"
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


def residuals(calibration: Calibration) -> Floats:
    """Measured match rates less those of the fitted curve, [layers, k_max]; NaN: not counted."""
    e, k = np.arange(1, calibration.layers + 1)[:, None], np.arange(1.0, calibration.k_max + 1)
    found = calibration.p_correct - curve_values(calibration.curve, e / calibration.layers, k)
    left: Floats = np.where(calibration.has(e, k), found, np.nan)
    return left


def _compared(
    grids: Mapping[str, Cells], inner: Floats, tokens: Ints, seed: int
) -> tuple[Candidate, ...]:
    """The families, the one that predicts prompts it was not fitted to best first."""
    prompts = len(tokens)
    fold = np.random.default_rng(seed).permutation(prompts) % min(FOLDS, prompts)
    scores = {}
    for name, cells in grids.items():
        score, start = np.zeros(prompts), None
        for number in range(fold.max() + 1):
            inside = fold != number
            start, _ = maximize(cells, inner[inside].sum(0), float(tokens[inside].sum()), start)
            for prompt in np.flatnonzero(~inside):
                score[prompt] = cells.log_likelihood(start, inner[prompt], float(tokens[prompt]))
        scores[name] = score / cells.x.size
    best = max(scores.values(), key=lambda score: float(score.sum()))
    total = float(tokens.sum())
    found = []
    for name, score in scores.items():
        behind = best - score
        found.append(
            Candidate(
                family=name,
                held_out=float(score.sum()) / total,
                behind=float(behind.sum()) / total,
                behind_se=float(behind.std(ddof=1) * np.sqrt(prompts)) / total,
            )
        )
    return tuple(sorted(found, key=lambda candidate: candidate.behind))


def _curve(
    cells: Cells, inner: Floats, tokens: Ints, weights: Ints, candidates: tuple[Candidate, ...]
) -> MatchCurve:
    prompts, family = len(tokens), cells.family
    theta, converged = maximize(cells, inner.sum(axis=0), float(tokens.sum()))
    resampled = (weights @ inner.reshape(prompts, -1)).reshape(-1, *cells.x.shape)
    totals = weights @ tokens
    draws = np.array(
        [maximize(cells, h, float(n), theta)[0] for h, n in zip(resampled, totals, strict=True)]
    )
    low, high = percentiles(draws)
    covariance = np.atleast_2d(np.cov(draws.T))
    unknown = _undetermined(cells, theta, draws, inner.sum(axis=0), float(tokens.sum()))
    low, high = (np.where(unknown, np.nan, end) for end in (low, high))
    covariance[unknown] = covariance[:, unknown] = np.nan
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
        largest_residual_layer=round(float(cells.x[worst]) * cells.layers),
        largest_residual_k=int(cells.k[worst]),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        candidates=candidates,
    )


def _undetermined(
    cells: Cells, theta: Floats, draws: Floats, hits: Floats, tokens: float
) -> np.ndarray:
    """Parameters that are at a bound in every resample, or trade off against others exactly."""
    unknown: np.ndarray = np.ptp(draws, axis=0) <= STILL * (1 + np.abs(theta))
    whole = cells.gradient_and_information(theta, hits, tokens)[2]
    unknown |= np.diag(whole) == 0
    free = np.flatnonzero(~unknown)
    information = whole[np.ix_(free, free)]
    scale = np.sqrt(np.diag(information))
    values, vectors = np.linalg.eigh(information / np.outer(scale, scale))
    flat = np.abs(vectors[:, values < FLAT]).max(axis=1, initial=0.0)
    unknown[free] = flat > 1e-3
    return unknown
