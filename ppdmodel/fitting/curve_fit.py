"""Maximum-likelihood fit of a match-rate curve, and the choice of its family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InvalidInputError
from ..progress import OnProgress, no_report
from ..results.calibration import FamilyScore, MatchCurve
from ..results.intervals import interval_of
from .cross_validation import folds
from .curves import CurveFamily, family_of
from .likelihood import Cells, maximize, maximize_each

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.calibration import Calibration
    from ..results.hit_counts import HitCounts

#: a parameter whose estimates spread by less than this over all resamples lies at a bound
MIN_SPREAD = 1e-9
#: eigenvalue of the scaled information matrix below which a direction is not identified
MIN_EIGENVALUE = 1e-10


def fit_curve(
    counts: HitCounts,
    families: Sequence[CurveFamily],
    weights: Ints,
    on_progress: OnProgress = no_report,
) -> MatchCurve:
    """Fit the family that predicts held-out prompts best.

    Args:
        counts: hits and tokens by prompt.
        families: to choose among.
        weights: how often each prompt is drawn in each resample, [resamples, prompts].
        on_progress: called with the progress of the resamples.
    """
    d, k_max = counts.layers, counts.hits.shape[2]
    exits = np.array([e for e in counts.exit_layers or range(1, d) if e < d])
    ks = np.array(counts.ks or range(1, k_max + 1))
    inner = counts.hits[:, exits - 1][:, :, ks - 1].astype(float)
    grids = {family.name: Cells.of(family, d, exits, ks) for family in families}
    scores = _scores(grids, inner, counts.tokens, counts.seed)
    return _fitted(grids[scores[0].family], inner, counts.tokens, weights, scores, on_progress)


def curve_values(curve: MatchCurve, relative_depth: Floats | float, k: Floats | int) -> Floats:
    """The fitted match rate at relative depths x = e/d and k, broadcast.

    Raises:
        InvalidInputError: there is no such family, or a parameter is missing or beyond its bounds.
    """
    family = family_of(curve.family)
    for name, (low, high) in zip(family.parameters, family.bounds, strict=True):
        found = curve.parameters.get(name)
        if found is None or not low <= found.value <= high:
            raise InvalidInputError(
                f"{name} of the curve {family.name!r} must be from {low:g} to {high:g}; got "
                f"{'none' if found is None else found.value}; fit again"
            )
    theta = np.array([curve.parameters[name].value for name in family.parameters])
    x, k_ = np.broadcast_arrays(np.asarray(relative_depth, float), np.asarray(k, float))
    value: Floats = -np.expm1(family.log_miss(theta, x, k_))
    return value


def residuals(calibration: Calibration) -> Floats:
    """Measured less fitted match rates, [layers, k_max]; NaN where nothing was counted."""
    e, k = np.arange(1, calibration.layers + 1)[:, None], np.arange(1.0, calibration.k_max + 1)
    found = calibration.p_correct - curve_values(calibration.curve, e / calibration.layers, k)
    left: Floats = np.where(calibration.has(e, k), found, np.nan)
    return left


def _scores(
    grids: Mapping[str, Cells], inner: Floats, tokens: Ints, seed: int
) -> tuple[FamilyScore, ...]:
    """Held-out log-likelihood of each family by K-fold cross-validation, the greatest first."""
    prompts = len(tokens)
    fold = folds(prompts, seed)
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
    found = [
        FamilyScore(
            family=name,
            held_out=float(score.sum()) / total,
            behind=float((best - score).sum()) / total,
            behind_se=float((best - score).std(ddof=1) * np.sqrt(prompts)) / total,
        )
        for name, score in scores.items()
    ]
    return tuple(sorted(found, key=lambda candidate: candidate.behind))


def _fitted(
    cells: Cells,
    inner: Floats,
    tokens: Ints,
    weights: Ints,
    scores: tuple[FamilyScore, ...],
    on_progress: OnProgress,
) -> MatchCurve:
    prompts, family = len(tokens), cells.family
    hits, total = inner.sum(axis=0), tokens.sum()
    theta, converged = maximize(cells, hits, float(total))
    resampled = (weights @ inner.reshape(prompts, -1)).reshape(-1, *cells.x.shape)
    sizes = (weights @ tokens).astype(float)
    draws, _ = maximize_each(cells, resampled, sizes, theta, on_progress)
    covariance = np.cov(draws.T)
    unknown = _undetermined(cells, theta, draws, hits, float(total))
    covariance[unknown] = covariance[:, unknown] = np.nan
    residual = hits / total - cells.rates(theta)
    worst = np.unravel_index(np.argmax(np.abs(residual)), residual.shape)
    return MatchCurve(
        family=family.name,
        parameters={
            name: interval_of(theta[i], None if unknown[i] else draws[:, i], tokens)
            for i, name in enumerate(family.parameters)
        },
        converged=converged,
        rms_residual=float(np.sqrt(np.mean(residual**2))),
        largest_residual=float(residual[worst]),
        largest_residual_layer=round(float(cells.x[worst]) * cells.layers),
        largest_residual_k=int(cells.k[worst]),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        candidates=scores,
    )


def _undetermined(
    cells: Cells, theta: Floats, draws: Floats, hits: Floats, tokens: float
) -> np.ndarray:
    """Parameters that are not identified: at a bound in every resample, or in a null direction."""
    unknown: np.ndarray = np.ptp(draws, axis=0) < MIN_SPREAD
    whole = cells.gradient_and_information(theta, hits, tokens)[2]
    unknown |= np.diag(whole) == 0
    free = np.flatnonzero(~unknown)
    information = whole[np.ix_(free, free)]
    scale = np.sqrt(np.diag(information))
    values, vectors = np.linalg.eigh(information / np.outer(scale, scale))
    null = np.abs(vectors[:, values < MIN_EIGENVALUE])
    unknown[free] = (null > 1e-3).any(axis=1)
    return unknown
