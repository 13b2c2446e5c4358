"""Maximum-likelihood fit of a match-rate curve: Fisher scoring with box constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize

from ..progress import OnProgress, Progress, no_report

if TYPE_CHECKING:
    from .._types import Bools, Floats, Ints
    from .curves import CurveFamily

STEPS, HALVINGS, TOLERANCE = 40, 12, 1e-10
#: most numbers of a table of slopes: so many resamples are fitted at once
BLOCK = 2**19


@dataclass(frozen=True)
class Cells:
    """The grid of relative depths below 1 and k at which a curve is fitted; both [layers, k]."""

    family: CurveFamily
    layers: int
    x: Floats
    k: Floats

    @classmethod
    def of(cls, family: CurveFamily, layers: int, exit_layers: Ints, ks: Ints) -> Cells:
        """The grid of some exit layers below the last and some k."""
        x, k = np.meshgrid(exit_layers / layers, ks.astype(float), indexing="ij")
        return cls(family, layers, x, k)

    def rates(self, theta: Floats) -> Floats:
        """Match rates p(x, k) on the grid."""
        value: Floats = -np.expm1(self.family.log_miss(theta, self.x, self.k))
        return value

    def log_likelihood(self, theta: Floats, hits: Floats, tokens: float) -> float:
        """Binomial log-likelihood of hits [layers, k], without the binomial coefficients."""
        log_miss = self.family.log_miss(theta, self.x, self.k)
        p = np.maximum(-np.expm1(log_miss), np.finfo(float).tiny)
        return float((hits * np.log(p) + (tokens - hits) * log_miss).sum())

    def gradient_and_information(
        self, theta: Floats, hits: Floats, tokens: Any
    ) -> tuple[Any, Floats, Floats]:
        """Log-likelihood, its gradient, and the expected information matrix, per token.

        For parameters [..., parameters], hits [..., layers, k] and tokens [...].
        """
        log_miss, slopes = self.family.evaluate(theta.T[..., None, None], self.x, self.k)
        miss, n = np.exp(log_miss), np.asarray(tokens)[..., None, None]
        p = np.maximum(-np.expm1(log_miss), np.finfo(float).tiny)
        value = (hits * np.log(p) + (n - hits) * log_miss).sum(axis=(-2, -1)) / tokens
        rate = hits / n
        slopes = np.moveaxis(slopes, 0, -3)
        gradient = (slopes * ((1 - rate) - rate * miss / p)[..., None, :, :]).sum(axis=(-2, -1))
        flat = slopes.reshape(*slopes.shape[:-2], -1)
        odds = (miss / p).reshape(*miss.shape[:-2], 1, -1)
        information = (flat * odds) @ np.swapaxes(flat, -1, -2)
        return value, gradient, information


def maximize(
    cells: Cells, hits: Floats, tokens: float, start: Floats | None = None
) -> tuple[Floats, bool]:
    """Maximum-likelihood parameters within their bounds, and whether the search converged.

    Projected Fisher scoring with step halving from a start; without a start, or where scoring does
    not converge from it, L-BFGS-B provides one.
    """
    (theta,), (converged,) = maximize_each(cells, hits[None], np.array([tokens]), start)
    return theta, bool(converged)


def maximize_each(
    cells: Cells,
    hits: Floats,
    tokens: Floats,
    start: Floats | None,
    on_progress: OnProgress = no_report,
) -> tuple[Floats, Bools]:
    """`maximize` for several samples, hits [samples, layers, k] and tokens [samples], at once."""
    begin = cells.family.start if start is None else start
    theta = np.tile(begin, (len(hits), 1))
    converged: Bools = np.zeros(len(hits), dtype=bool)
    size = max(BLOCK // (hits[0].size * len(begin)), 1)
    for first in range(0, len(hits), size) if start is not None else ():
        some = slice(first, first + size)
        theta[some], converged[some] = _score(cells, hits[some], tokens[some], theta[some])
        on_progress(Progress("fitting resamples", 0, converged[: first + size].sum() / len(hits)))
    left = np.flatnonzero(~converged)
    for done, n in enumerate(left, start=1):
        found = _search(cells, hits[n], float(tokens[n]), begin)
        (theta[n],), (converged[n],) = _score(
            cells, hits[n : n + 1], tokens[n : n + 1], found[None]
        )
        share = 1 - (len(left) - done) / len(hits)
        on_progress(Progress("fitting resamples", 0, share))
    return theta, converged


def _search(cells: Cells, hits: Floats, tokens: float, start: Floats) -> Floats:
    def loss(theta: Floats) -> tuple[float, Floats]:
        value, gradient, _ = cells.gradient_and_information(theta, hits, tokens)
        return -value, -gradient

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=cells.family.bounds)
    theta: Floats = found.x
    return theta


def _score(cells: Cells, hits: Floats, tokens: Floats, start: Floats) -> tuple[Floats, Bools]:
    """Projected Fisher scoring of several samples, from starts [samples, parameters]."""
    low, high = np.array(cells.family.bounds).T
    theta = np.clip(start, low, high)
    value, gradient, information = cells.gradient_and_information(theta, hits, tokens)
    gain, converged = np.zeros(len(theta)), np.zeros(len(theta), dtype=bool)
    rows = np.arange(len(theta))
    for _ in range(STEPS):
        step = _steps(theta[rows], gradient[rows], information[rows], (low, high))
        gain[rows] = (gradient[rows] * step).sum(axis=1)
        far = gain[rows] >= TOLERANCE
        converged[rows[~far]] = True
        rows, step = rows[far], step[far]
        waiting = rows
        for _ in range(HALVINGS if len(rows) else 0):
            tried = np.clip(theta[waiting] + step, low, high)
            found = cells.gradient_and_information(tried, hits[waiting], tokens[waiting])
            better = found[0] > value[waiting]
            kept = (theta, value, gradient, information)
            for old, new in zip(kept, (tried, *found), strict=True):
                old[waiting[better]] = new[better]
            waiting, step = waiting[~better], step[~better] / 2
            if not len(waiting):
                break
        converged[waiting] = gain[waiting] < 1e3 * TOLERANCE
        rows = np.setdiff1d(rows, waiting)
        if not len(rows):
            break
    return theta, converged


def _steps(
    theta: Floats, gradient: Floats, information: Floats, bounds: tuple[Floats, Floats]
) -> Floats:
    """Scoring steps [samples, parameters]; a parameter that is pushed against a bound is held."""
    low, high = bounds
    free = ~(((theta <= low) & (gradient < 0)) | ((theta >= high) & (gradient > 0)))
    part = information * (free[:, :, None] & free[:, None, :])
    ridge = 1e-9 * np.trace(part, axis1=1, axis2=2) / np.maximum(free.sum(1), 1)
    diagonal = np.where(free, ridge[:, None] + np.finfo(float).eps, 1.0)
    ridged = part + diagonal[:, :, None] * np.eye(theta.shape[1])
    step: Floats = np.linalg.solve(ridged, (gradient * free)[:, :, None])[:, :, 0]
    return step
