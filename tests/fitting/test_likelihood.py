"""The binomial likelihood of a curve, its derivatives, and its maximum within bounds."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.stats import binom

from ppdmodel.fitting.curves import FAMILIES, CurveFamily, family_of
from ppdmodel.fitting.likelihood import STEPS, Cells, _score, _search, maximize, maximize_each
from tests.fitting.test_curves import EACH, some_parameters

TOKENS = 3000.0


def grid(family: CurveFamily) -> Cells:
    return Cells.of(family, 12, np.arange(1, 12), np.arange(1, 7))


def drawn(cells: Cells, theta: np.ndarray, seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.binomial(int(TOKENS), cells.rates(theta)).astype(float)


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


def test_a_grid_is_of_relative_depths_and_ks() -> None:
    cells = Cells.of(family_of("rank tail"), 8, np.array([2, 4]), np.array([1, 3, 5]))
    assert cells.x.tolist() == [[0.25] * 3, [0.5] * 3]
    assert cells.k.tolist() == [[1, 3, 5]] * 2


@EACH
def test_the_likelihood_is_the_binomial_one(family: CurveFamily) -> None:
    """Up to the coefficients, which do not depend on the parameters."""
    cells = grid(family)
    hits = drawn(cells, some_parameters(family, 1))
    thetas = [some_parameters(family, seed) for seed in (2, 3)]
    mine = [cells.log_likelihood(theta, hits, TOKENS) for theta in thetas]
    its = [np.sum(binom.logpmf(hits, TOKENS, cells.rates(theta))) for theta in thetas]
    assert mine[0] - mine[1] == pytest.approx(its[0] - its[1], rel=1e-6)
    value, _, _ = cells.gradient_and_information(thetas[0], hits, TOKENS)
    assert value == pytest.approx(mine[0] / TOKENS)


@EACH
def test_the_gradient_and_the_information_are_the_derivatives(family: CurveFamily) -> None:
    """The information is the expected Hessian: where counts are what the curve expects."""
    cells = grid(family)
    truth, other = some_parameters(family, 1), some_parameters(family, 4)
    hits = TOKENS * cells.rates(truth)

    def gradient(theta: np.ndarray) -> np.ndarray:
        found: np.ndarray = cells.gradient_and_information(theta, hits, TOKENS)[1]
        return found

    def value(theta: np.ndarray) -> float:
        return cells.log_likelihood(theta, hits, TOKENS) / TOKENS

    numeric = approx_fprime(other, value, 1e-7)
    assert gradient(other) == pytest.approx(numeric, rel=1e-3, abs=1e-4)
    assert gradient(truth) == pytest.approx(np.zeros(len(truth)), abs=1e-9)
    hessian = -approx_fprime(truth, gradient, 1e-6)
    information = cells.gradient_and_information(truth, hits, TOKENS)[2]
    assert information == pytest.approx(hessian, rel=1e-2, abs=1e-3)


def test_rates_of_nought_and_one_have_a_likelihood() -> None:
    cells = Cells.of(family_of("rank tail"), 4, np.array([1, 3]), np.array([1]))
    low, _ = np.array(cells.family.bounds).T
    assert np.isfinite(cells.log_likelihood(low, np.zeros((2, 1)), 9.0))


@EACH
def test_a_start_at_the_maximum_stays_there(family: CurveFamily) -> None:
    cells = grid(family)
    hits = drawn(cells, some_parameters(family, 9))
    best, _ = maximize(cells, hits, TOKENS)
    again, converged = maximize(cells, hits, TOKENS, best)
    assert converged
    assert again == pytest.approx(best, abs=1e-3)
    near, converged = maximize(cells, hits, TOKENS, some_parameters(family, 2))
    assert converged
    assert cells.log_likelihood(near, hits, TOKENS) == pytest.approx(
        cells.log_likelihood(best, hits, TOKENS), abs=1e-3
    )


@EACH
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_maximum_at_the_bounds_is_found(family: CurveFamily, share: float) -> None:
    """All misses or all hits: the curve goes as far as its bounds let it, and no further."""
    cells = grid(family)
    hits = np.full(cells.x.shape, share * 50)
    low, high = np.array(family.bounds).T
    theta, converged = maximize(cells, hits, 50.0)
    assert converged
    assert ((low <= theta) & (theta <= high)).all()
    assert ((theta == low) | (theta == high)).any()
    p = cells.rates(theta)
    assert p.max() < 0.35 if share == 0 else p.min() > 0.9
    for seed in range(4):
        rng = np.random.default_rng(seed)
        other = np.clip(rng.uniform(low, high), low, high)
        assert cells.log_likelihood(theta, hits, 50.0) >= cells.log_likelihood(other, hits, 50.0)


def test_the_value_does_not_depend_on_the_number_of_tokens() -> None:
    """Ten times the counts are the same rates: the same curve."""
    cells = grid(FAMILIES["floored power"])
    hits = drawn(cells, some_parameters(cells.family, 9))
    few, _ = maximize(cells, hits, TOKENS)
    many, _ = maximize(cells, 10 * hits, 10 * TOKENS)
    assert many == pytest.approx(few, abs=1e-6)


def scored(cells: Any, hits: np.ndarray, tokens: float, start: np.ndarray) -> tuple[Any, bool]:
    """Scoring of one sample."""
    (theta,), (converged,) = _score(cells, hits[None], np.array([tokens]), start[None])
    return theta, bool(converged)


@EACH
def test_samples_fitted_at_once_are_those_fitted_one_by_one(family: CurveFamily) -> None:
    """Among them samples without hits or misses, whose parameters go to their bounds."""
    cells = grid(family)
    hits = np.stack([drawn(cells, some_parameters(family, seed), seed) for seed in range(4)])
    hits = np.concatenate([hits, np.zeros_like(hits[:1]), np.full_like(hits[:1], TOKENS)])
    tokens = np.full(len(hits), TOKENS)
    for start in (None, some_parameters(family, 2)):
        theta, converged = maximize_each(cells, hits, tokens, start)
        for n, mine in enumerate(hits):
            alone, its = maximize(cells, mine, TOKENS, start)
            assert theta[n] == pytest.approx(alone, abs=1e-6)
            assert converged[n] == its


@EACH
def test_scoring_alone_reaches_the_maximum_from_a_start(family: CurveFamily) -> None:
    """Without the quasi-Newton search: near starts, and others whose full step overshoots."""
    cells = grid(family)
    hits = drawn(cells, some_parameters(family, 9))
    best, _ = maximize(cells, hits, TOKENS)
    greatest = cells.log_likelihood(best, hits, TOKENS)
    low, high = np.array(family.bounds).T
    overshot = 0
    for seed in range(12):
        wide = np.random.default_rng(seed).normal(0, 0.7, len(low))
        start = np.clip(family.start + wide, low + 1e-3, high - 1e-3)
        value, gradient, information = cells.gradient_and_information(start, hits, TOKENS)
        ridge = 1e-9 * np.trace(information) * np.eye(len(start))
        full = np.clip(start + np.linalg.solve(information + ridge, gradient), low, high)
        overshot += cells.log_likelihood(full, hits, TOKENS) / TOKENS < value
        theta, converged = scored(cells, hits, TOKENS, start)
        assert cells.log_likelihood(theta, hits, TOKENS) >= value * TOKENS
        if converged:
            assert cells.log_likelihood(theta, hits, TOKENS) == pytest.approx(greatest, abs=0.5)
        if seed < 4:
            near, converged = scored(cells, hits, TOKENS, some_parameters(family, seed))
            assert converged
            assert cells.log_likelihood(near, hits, TOKENS) == pytest.approx(greatest, abs=1e-3)
    assert overshot


@EACH
def test_the_quasi_newton_search_alone_comes_near_the_maximum(family: CurveFamily) -> None:
    cells = grid(family)
    hits = drawn(cells, some_parameters(family, 9))
    best, _ = maximize(cells, hits, TOKENS)
    found = _search(cells, hits, TOKENS, family.start)
    assert cells.log_likelihood(found, hits, TOKENS) == pytest.approx(
        cells.log_likelihood(best, hits, TOKENS), abs=1
    )


@dataclass
class Straight:
    """A likelihood of one parameter with this slope, where its gradient is said to be 1."""

    slope: float
    information: float
    family = SimpleNamespace(bounds=[(-9.0, 9.0)])

    def gradient_and_information(
        self, theta: np.ndarray, hits: object, tokens: object
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        information = np.full((*theta.shape, 1), float(self.information))
        return self.slope * theta[..., 0], np.ones_like(theta), information


@pytest.mark.parametrize(
    ("slope", "information", "end", "reached"),
    [
        (-1, 1, 0.5, False),  # nothing better is found, far from a maximum
        (0, 1, 0.5, False),  # nor what is as good
        (1, 10, 0.5 + STEPS / 10, False),  # too far away for the steps that it may make
        (1, 1, 9, True),
        (1, 0, 9, True),  # nothing says how far to go
    ],
)
def test_a_search_that_ends_before_the_maximum_has_not_converged(
    slope: float, information: float, end: float, reached: bool
) -> None:
    cells: Any = Straight(slope, information)
    theta, converged = scored(cells, np.zeros(1), 1.0, np.array([0.5]))
    assert theta == pytest.approx([end])
    assert converged == reached


def test_where_scoring_does_not_converge_the_search_finds_another_start() -> None:
    cells: Any = Straight(slope=1, information=10)
    theta, converged = maximize(cells, np.zeros(1), 1.0, np.array([0.5]))
    assert theta.tolist() == [9]
    assert converged
