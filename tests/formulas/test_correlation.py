"""Matches that form a Markov chain: values by hand, limits, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from ppdmodel import formulas
from tests.support.backends import (
    BACKENDS,
    check_all_have_values,
    check_golden,
    check_refused,
)

schedules = st.tuples(
    st.floats(0, 1), st.integers(1, 60), st.floats(0.01, 1), st.integers(1, 4), st.integers(1, 6)
)


@given(schedules, st.floats(-0.9, 0.9))
def test_correlation_slows_where_depth_limits_and_nowhere_else(
    schedule: tuple[float, int, float, int, int], rho: float
) -> None:
    p, d, share, k, depth = schedule
    e = max(1, round(share * d))
    if not 0 < p < 1 or rho < max(-p / (1 - p), -(1 - p) / p):
        return
    plain = formulas.latency_per_token(p, d, e, depth)
    correlated = formulas.correlated_latency(p, d, e, depth, rho)
    if (depth + 1) * e >= d:
        assert correlated == pytest.approx(plain)
        compute = formulas.compute_per_token(p, d, e, k, depth)
        assert formulas.correlated_compute(p, d, e, k, depth, rho) == pytest.approx(compute)
    else:
        assert (correlated - plain) * rho >= -1e-9 * d
    assert e - 1e-9 * d <= correlated <= d * (1 + 1e-9)


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: formulas.correlated_latency(0.5, 8, 1, 1, 1.0),
        "autocorrelation must lie in [-1, 1); got 1.0; 0 means independent matches",
    ),
    (
        lambda: formulas.correlated_latency(np.array([0.5, 0.1]), 8, 1, 1, -0.5),
        "autocorrelation must be at least -p/(1-p) and -(1-p)/p; got -0.5 at index 1; "
        "no sequence of matches at this match rate alternates that much",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    # b = 0.8, a wait of 6
    ("correlated_latency", (0.5, 8, 1, 1, 0.6), 4.5 + 6 * 0.4 / 1.8),
    ("correlated_latency", (0.5, 8, 1, 2, 0.6), 4.5 + 5 * 0.32 / 2.44),
    ("correlated_latency", (0.5, 8, 1, 1, -0.6), 4.5 + 6 * 0.1 / 1.2),
    ("correlated_latency", (0.5, 8, 1), 5.5),
    ("correlated_latency", (0.5, 12, 4, 2, 0.3), 8.0),
    # Pi_1 = 1/2 + 0.4/1.8, M_1 = 0.5/1.8, a_1 = 7, b_1 = 1
    ("correlated_compute", (0.5, 8, 1, 1, 1, 0.6), 8.5 + 6 * (0.5 - 0.1 / 1.8)),
    ("correlated_compute", (0.5, 8, 1, 3, 1, 0.6), 10.5 + 6 * (1.5 + 0.7 / 1.8)),
    (
        "correlated_compute",
        (0.5, 10, 2, 2, 2, 0.6),
        10 + 6 + 4 * (1 + 0.74 / 2.44) + 2 * (3 + 4 * (1 + 0.14 / 2.44)),
    ),
    ("correlated_compute", (0.5, 8, 1), 8.5 + 6 * (1 / 3)),
    ("correlated_total_latency", (0.5, 8, 1, 3, 1, 0.6), 24 - 7 + 6 * 0.4),
    ("correlated_total_latency", (0.5, 8, 1, 3), 24 - 7 + 6 * 0.25),
    ("correlated_total_latency", (0.5, 8, 1, 5, 1, 0.6), 26 + 6 * 0.5 * (0.8 * 1.4 + 0.512)),
    ("correlated_total_latency", (0.5, 9, 2, 6, 2, 0.6), 36.5 + 3 * 0.5 * 0.64 * 1.4),
    ("correlated_total_latency", (0.5, 8, 5, 4), 32 - 4.5),
    ("total_latency_variance", (0.7, 40, 20, 101), 8400.0),
    ("total_latency_variance", (0.5, 8, 4, 4, 0.5), 22.0),
    ("total_latency_variance", (0.5, 8, 5, 2, 0.3), 2.25),
    ("total_latency_variance", (0.5, 8, 5, 1, 0.3), 0.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


def test_a_depth_that_is_never_reached_changes_nothing() -> None:
    """Numbers are cut first; a symbol is not, and generations beyond the last layer run none."""
    depth = sympy.Symbol("D", integer=True, positive=True)
    for d, e in ((8, 3), (7, 5)):
        exact = (sympy.Rational(1, 2), sympy.Integer(d), e, 3, depth, sympy.Rational(1, 5))
        found = formulas.correlated_compute(*exact).subs(depth, 4).doit()
        assert float(found) == pytest.approx(formulas.correlated_compute(0.5, d, e, 3, 4, 0.2))


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("correlation", GOLDEN)


def test_where_sub_processes_never_wait_runs_of_matches_do_not_matter() -> None:
    for rho in (0, 0.3, 0.8):
        found = formulas.correlated_total_latency(0.25, 8, 4, 12, depth=1, autocorrelation=rho)
        assert found == pytest.approx(8 * 12 - 11 * 0.25 * 4)
