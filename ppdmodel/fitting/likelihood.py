"""Maximum-likelihood fit of a match-rate curve: Fisher scoring with box constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from .curves import CurveFamily

STEPS, HALVINGS, TOLERANCE = 40, 12, 1e-10


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
        self, theta: Floats, hits: Floats, tokens: float
    ) -> tuple[float, Floats, Floats]:
        """Log-likelihood, its gradient, and the expected information matrix, per token."""
        log_miss, slopes = self.family.evaluate(theta, self.x, self.k)
        miss = np.exp(log_miss)
        p = np.maximum(-np.expm1(log_miss), np.finfo(float).tiny)
        value = float((hits * np.log(p) + (tokens - hits) * log_miss).sum()) / tokens
        rate = hits / tokens
        gradient = (slopes * ((1 - rate) - rate * miss / p)).sum(axis=(1, 2))
        flat = slopes.reshape(len(slopes), -1)
        information = (flat * (miss / p).ravel()) @ flat.T
        return value, gradient, information


def maximize(
    cells: Cells, hits: Floats, tokens: float, start: Floats | None = None
) -> tuple[Floats, bool]:
    """Maximum-likelihood parameters within their bounds, and whether the search converged.

    Projected Fisher scoring with step halving from a start; without a start, or where scoring does
    not converge from it, L-BFGS-B provides one.
    """
    if start is not None:
        theta, converged = _score(cells, hits, tokens, start)
        if converged:
            return theta, True
    begin = cells.family.start if start is None else start
    return _score(cells, hits, tokens, _search(cells, hits, tokens, begin))


def _search(cells: Cells, hits: Floats, tokens: float, start: Floats) -> Floats:
    def loss(theta: Floats) -> tuple[float, Floats]:
        value, gradient, _ = cells.gradient_and_information(theta, hits, tokens)
        return -value, -gradient

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=cells.family.bounds)
    theta: Floats = found.x
    return theta


def _score(cells: Cells, hits: Floats, tokens: float, start: Floats) -> tuple[Floats, bool]:
    low, high = np.array(cells.family.bounds).T
    theta = np.clip(start, low, high)
    value, gradient, information = cells.gradient_and_information(theta, hits, tokens)
    for _ in range(STEPS):
        held = ((theta <= low) & (gradient < 0)) | ((theta >= high) & (gradient > 0))
        free = ~held
        if not free.any():
            return theta, True
        part = information[np.ix_(free, free)]
        ridge = 1e-9 * np.trace(part) / len(part) + np.finfo(float).eps
        step = np.zeros_like(theta)
        step[free] = np.linalg.solve(part + ridge * np.eye(len(part)), gradient[free])
        gain = float(gradient @ step)
        if gain < TOLERANCE:
            return theta, True
        for _ in range(HALVINGS):
            tried = np.clip(theta + step, low, high)
            found = cells.gradient_and_information(tried, hits, tokens)  # mostly the next step's
            if found[0] > value:
                break
            step /= 2
        else:
            return theta, gain < 1e3 * TOLERANCE
        theta, (value, gradient, information) = tried, found
    return theta, False
