"""The greatest binomial likelihood of a surface, by Fisher scoring within bounds."""

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
    """Where a surface is compared with counts: relative depths below 1, and k's; [layers, k]."""

    family: CurveFamily
    layers: int
    x: Floats
    k: Floats

    @classmethod
    def of(cls, family: CurveFamily, layers: int, exit_layers: Ints, ks: Ints) -> Cells:
        """Some exit layers below the last, and some k's."""
        x, k = np.meshgrid(exit_layers / layers, ks.astype(float), indexing="ij")
        return cls(family, layers, x, k)

    def rates(self, theta: Floats) -> Floats:
        """Match rates at every cell."""
        value: Floats = -np.expm1(self.family.log_miss(theta, self.x, self.k))
        return value

    def log_likelihood(self, theta: Floats, hits: Floats, tokens: float) -> float:
        """Of counts [layers, k] out of so many tokens, without the binomial coefficients."""
        log_miss = self.family.log_miss(theta, self.x, self.k)
        p = np.maximum(-np.expm1(log_miss), np.finfo(float).tiny)
        return float((hits * np.log(p) + (tokens - hits) * log_miss).sum())

    def gradient_and_information(
        self, theta: Floats, hits: Floats, tokens: float
    ) -> tuple[float, Floats, Floats]:
        """Log-likelihood, its gradient, and the expected information matrix, per token."""
        log_miss, slopes = self.family.surface(theta, self.x, self.k)
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
    """Parameters of the greatest likelihood, and whether the search converged.

    Fisher scoring from a start, its steps cut at the bounds and halved until they gain; without a
    start, or where scoring gets stuck, a quasi-Newton search goes first.
    """
    if start is not None:
        theta, converged = _score(cells, hits, tokens, start)
        if converged:
            return theta, True
    begin = cells.family.start if start is None else start
    theta, converged = _score(cells, hits, tokens, _search(cells, hits, tokens, begin))
    return theta, converged


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
