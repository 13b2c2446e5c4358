"""Families of curves: their formulas, slopes and shape."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.curves import FAMILIES, CurveFamily, family_of
from ppdmodel.fitting.likelihood import Cells

EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


def some_parameters(family: CurveFamily, seed: int) -> np.ndarray:
    """A little beside the start, within the bounds."""
    low, high = np.array(family.bounds).T
    drawn = family.start + np.random.default_rng(seed).normal(0, 0.15, len(low))
    return np.clip(drawn, low + 1e-3, high - 1e-3)


@EACH
def test_slopes_are_the_derivatives(family: CurveFamily) -> None:
    cells = Cells.of(family, 8, np.arange(1, 8), np.arange(1, 5))
    mix = np.random.default_rng(0).normal(size=cells.x.shape)
    for seed in range(5):
        theta = some_parameters(family, seed)

        def value(t: np.ndarray) -> float:
            return float((mix * family.evaluate(t, cells.x, cells.k)[0]).sum())

        def slope(t: np.ndarray) -> np.ndarray:
            found: np.ndarray = (mix * family.evaluate(t, cells.x, cells.k)[1]).sum(axis=(1, 2))
            return found

        assert check_grad(value, slope, theta) < 1e-4


@EACH
def test_a_surface_rises_with_depth_and_k_and_ends_at_one(family: CurveFamily) -> None:
    x, k = np.arange(1, 31)[:, None] / 30, np.arange(1.0, 101)
    for seed in range(5):
        with np.errstate(divide="ignore"):
            p = -np.expm1(family.log_miss(some_parameters(family, seed), x, k + 0 * x))
        assert (np.diff(p, axis=0) >= -1e-12).all()
        assert (np.diff(p, axis=1) >= -1e-12).all()
        assert p[-1] == pytest.approx(1)


def written_out(name: str, theta: np.ndarray, x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Match rates as the documentation of `fit` writes them."""

    def logistic(z: np.ndarray) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(-z)))

    if name == "rank tail":
        log_a, log_b, f, s, t = theta
        rest = (1 - x ** np.exp(log_a)) ** np.exp(log_b)
        return np.asarray(1 - (1 - logistic(f)) * rest * k ** -(s + t * x))
    *own, f, g, h = theta
    kappa = (1 - k**-h) / h
    if name == "floored power":
        a, c = own
        rest = 1 - x ** np.exp(a - c * kappa)
    else:
        a, b, c = own
        rest = (1 - x ** np.exp(a)) ** np.exp(b + c * kappa)
    return np.asarray(1 - (1 - logistic(f + g * kappa)) * rest)


@EACH
def test_values_are_those_of_the_documented_formulas(family: CurveFamily) -> None:
    x, k = np.meshgrid(np.linspace(0.1, 0.95, 9), np.arange(1.0, 9), indexing="ij")
    for seed in range(5):
        theta = some_parameters(family, seed)
        expected = written_out(family.name, theta, x, k)
        assert -np.expm1(family.log_miss(theta, x, k)) == pytest.approx(expected, rel=1e-9)


@EACH
def test_starts_lie_within_the_bounds(family: CurveFamily) -> None:
    for start, (low, high) in zip(family.start, family.bounds, strict=True):
        assert low < start < high
    assert len(family.start) == len(family.parameters)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    assert family_of("rank tail") is FAMILIES["rank tail"]
    with pytest.raises(InvalidInputError, match=f"one of {', '.join(FAMILIES)}; got 'spline'"):
        family_of("spline")
