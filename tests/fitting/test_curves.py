"""Families of surfaces: slopes, shape, the greatest likelihood, and the choice among them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from ppdmodel import fit
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.curve_fit import curve_values
from ppdmodel.fitting.curves import FAMILIES, CurveFamily, family_of
from ppdmodel.fitting.likelihood import Cells, maximize
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement

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


@EACH
def test_scoring_finds_the_greatest_likelihood(family: CurveFamily) -> None:
    """A quasi-Newton search from many places finds nothing better."""
    cells = Cells.of(family, 12, np.arange(1, 12), np.arange(1, 7))
    rng = np.random.default_rng(3)
    tokens = 3000.0
    hits = rng.binomial(int(tokens), cells.rates(some_parameters(family, 9))).astype(float)
    theta, converged = maximize(cells, hits, tokens)
    assert converged
    best = cells.log_likelihood(theta, hits, tokens)

    def loss(t: Any) -> float:
        return -cells.log_likelihood(t, hits, tokens) / tokens

    for seed in range(6):
        found = minimize(
            loss,
            some_parameters(family, seed),
            method="L-BFGS-B",
            bounds=family.bounds,
        )
        assert best >= -found.fun * tokens - 1e-3


def drawn_from(family: CurveFamily, prompts: int = 30, tokens: int = 200) -> Measurement:
    """Ranks of which a surface of the family is the truth, to k = 8."""
    layers, k_max = 12, 8
    x, k = np.meshgrid(np.arange(1, layers + 1) / layers, np.arange(1.0, k_max + 1), indexing="ij")
    with np.errstate(divide="ignore"):
        rates = -np.expm1(family.log_miss(TRUTH[family.name], x, k))
    draws = np.random.default_rng(1).random((prompts * tokens, layers, 1))
    base = make_measurement(prompts=prompts, tokens=tokens, layers=layers)
    return replace(base, rank=1 + (draws >= rates[None]).sum(axis=2))


#: as unlike each other as the families allow
TRUTH = {
    "floored Kumaraswamy": np.array([1.6, -1.2, 0.5, -2.5, 1.0, 0.4]),
    "floored power": np.array([1.4, 0.6, -2.5, 0.8, 0.5]),
    "rank tail": np.array([1.0, -0.3, -4.0, 0.02, 1.2]),
}


@EACH
def test_held_out_likelihood_finds_the_family_or_one_that_predicts_as_well(
    family: CurveFamily,
) -> None:
    curve = fit(drawn_from(family), k_max=8, resamples=40).curve
    assert len(curve.candidates) == len(FAMILIES)
    true = next(c for c in curve.candidates if c.family == family.name)
    assert true.behind <= 2 * true.behind_se + 1e-12
    assert curve.candidates[0].family == curve.family
    assert curve.candidates[0].behind == 0
    behind = [c.behind for c in curve.candidates]
    assert behind == sorted(behind)
    x, k = np.arange(1, 13)[:, None] / 12, np.arange(1.0, 9)
    with np.errstate(divide="ignore"):
        truth = -np.expm1(family.log_miss(TRUTH[family.name], x + 0 * k, k + 0.0 * x))
    assert np.abs(curve_values(curve, x, k) - truth).max() < 0.02


def test_a_given_family_is_taken() -> None:
    curve = fit(make_measurement(), family="rank tail", k_max=4, resamples=40).curve
    assert curve.family == "rank tail"
    assert [c.family for c in curve.candidates] == ["rank tail"]
    assert list(curve.standard_errors) == list(family_of("rank tail").parameters)
    for name, error in curve.standard_errors.items():
        value = curve.parameters[name]
        if error is None:  # held at its bound
            assert np.isnan([value.ci_low, value.ci_high]).all()
            continue
        assert error > 0
        assert value.ci_low < value.ci_high
    covariance = np.array(curve.covariance)
    assert covariance == pytest.approx(covariance.T, nan_ok=True)
    with pytest.raises(InvalidInputError, match="the family must be one of floored Kumaraswamy"):
        fit(make_measurement(), family="spline")
