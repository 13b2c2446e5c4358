"""PPD with one exit: values by hand on every backend, and its own limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppdmodel import formulas
from tests.support.backends import BACKENDS, check_all_have_values, check_golden, check_refused

#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    ("latency_per_token", (0.7, 40, 20), 26.0),
    ("latency_per_token", (1, 40, 10), 20.0),
    ("latency_per_token", (1, 40, 10, 2), 40 / 3),
    ("latency_per_token", (1, 40, 10, None), 10.0),
    ("latency_per_token", (0.5, 8, 1), 4.5 + 6 * 0.25 / 1.5),
    ("latency_per_token", (0, 40, 10, 3), 40.0),
    ("latency_per_token", (0.3, 40, 40, 3), 40.0),
    ("normalized_latency", (0.7, 40, 20), 0.65),
    ("speedup", (1, 40, 10, None), 4.0),
    ("compute_per_token", (0.7, 40, 20), 46.0),
    ("compute_per_token", (0.7, 40, 20, 3), 40 + 2.3 * 20),
    # D = 1, e < d/2: W is d-e at place 0 and e at place 1, with probabilities 1/(1+p), p/(1+p)
    ("compute_per_token", (0.5, 8, 1, 2), 8 + 1.5 * (7 / 1.5 + 1 * 0.5 / 1.5)),
    # D = 2, (D+1)e >= d: W = (d-e) + k(d-2e)
    ("compute_per_token", (0.5, 12, 4, 3, 2), 12 + 2.5 * (8 + 3 * 4)),
    ("compute_per_token", (0.5, 12, 4, 3, None), 12 + 2.5 * (8 + 3 * 4)),
    ("compute_per_token", (0.2, 40, 40, 5, 4), 40.0),
    ("normalized_compute", (0.7, 40, 20), 1.15),
    ("mean_units", (0.7, 40, 20), 46 / 26),
    ("peak_units", (40, 20, 3), 4.0),
    ("reserved_units", (0.7, 40, 20), 52.0),
    ("reserved_units", (0.5, 40, 20, 3, 2), 4 * 30.0),
    ("reserved_units", (0.5, 42, 14, 3, 2), 13 * 28.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


def test_peak_units() -> None:
    assert formulas.peak_units(40, 20) == 2
    assert formulas.peak_units(40, 20, 3) == 4
    assert formulas.peak_units(40, 40, 3) == 1
    assert formulas.peak_units(40, 10, 3, 2) == 1 + 3 + 9
    assert formulas.peak_units(40, 10, 2, None) == 1 + 2 + 4 + 8
    assert formulas.peak_units(40, 10, 2, 99) == 1 + 2 + 4 + 8
    peaks = formulas.peak_units(40, np.array([10, 20, 40]), 2, None)
    assert peaks.tolist() == [15, 3, 1]


@pytest.mark.parametrize("depth", [1, 2, 3, 7, None])
def test_backends_agree_on_a_grid(depth: int | None) -> None:
    p, e, k = np.linspace(0, 1, 6)[:, None, None], np.arange(1, 13)[:, None], np.arange(1, 4)
    functions: tuple[Callable[..., Any], ...] = (
        formulas.compute_per_token,
        formulas.mean_units,
        formulas.reserved_units,
    )
    for function in functions:
        arrays = function(p, 12, e, k, depth)
        assert arrays.shape == (6, 12, 3)
        tensors = function(*(torch.tensor(x) for x in (p, 12, e, k)), depth)
        assert tensors.numpy() == pytest.approx(arrays, rel=1e-12)
        for index in itertools.product(range(6), range(12), range(3)):
            value = function(
                float(p[index[0], 0, 0]), 12, int(e[index[1], 0]), int(k[index[2]]), depth
            )
            assert value == pytest.approx(arrays[index], rel=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 5, None])
def test_symbols_give_the_same_numbers(depth: int | None) -> None:
    p, d, e, k = sympy.symbols("p d e k", positive=True)
    for values in ((0.3, 13, 2, 3), (0.9, 12, 4, 1), (0.6, 9, 9, 2)):
        at = dict(zip((p, d, e, k), values, strict=True))
        latency = formulas.latency_per_token(p, d, e, depth).subs(at).doit()
        compute = formulas.compute_per_token(p, d, e, k, depth).subs(at).doit()
        assert float(latency) == pytest.approx(formulas.latency_per_token(*values[:3], depth))
        assert float(compute) == pytest.approx(formulas.compute_per_token(*values, depth))


def test_symbolic_depth_stays_a_sum() -> None:
    p, d, e, k, n = sympy.symbols("p d e k D", positive=True, integer=True)
    latency = formulas.latency_per_token(p, d, e, n)
    assert latency.has(sympy.Sum)
    at = {p: sympy.Rational(1, 2), d: 13, e: 2, n: 3}
    assert float(latency.subs(at).doit()) == formulas.latency_per_token(0.5, 13, 2, 3)
    whole = formulas.compute_per_token(p, d, e, k, n)
    for exit_layer in (2, 6, 11):  # of the last two no sub-process reaches the depth
        compute = whole.subs(at | {e: exit_layer, k: 2}).doit()
        expected = formulas.compute_per_token(0.5, 13, exit_layer, 2, 3)
        assert float(compute) == pytest.approx(expected)


@pytest.mark.parametrize("depth", [1, 2, None])
def test_gradients_are_finite_at_the_edges_and_right_inside(depth: int | None) -> None:
    p = torch.tensor([0.0, 1.0, 0.4], dtype=torch.float64, requires_grad=True)
    e = torch.tensor([1.0, 12.0, 3.5], dtype=torch.float64, requires_grad=True)
    latency = formulas.latency_per_token(p, 12, e, depth)
    compute = formulas.compute_per_token(p, 12, e, 2, depth)
    grads = torch.autograd.grad((latency + compute).sum(), (p, e))
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    step = 1e-6
    for x, grad in ((p, grads[0]), (e, grads[1])):
        moved = [
            formulas.latency_per_token(*a, depth) + formulas.compute_per_token(*a, 2, depth)
            for s in (step, -step)
            for a in [(0.4 + s * (x is p), 12, 3.5 + s * (x is e))]
        ]
        assert float(grad[2]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-5)


schedules = st.tuples(
    st.floats(0, 1), st.integers(1, 60), st.floats(0.01, 1), st.integers(1, 4), st.integers(1, 6)
)


@given(schedules)
def test_bounds(schedule: tuple[float, int, float, int, int]) -> None:
    p, d, share, k, depth = schedule
    e = max(1, round(share * d))
    free = formulas.latency_per_token(p, d, e, None)
    deep = formulas.latency_per_token(p, d, e, depth + 1)
    shallow = formulas.latency_per_token(p, d, e, depth)
    close = 1e-9 * d
    assert e - close <= free <= deep + close
    assert deep <= shallow + close
    assert shallow <= d + close
    assert formulas.compute_per_token(p, d, e, k, depth) >= d - close
    assert formulas.reserved_units(p, d, e, k, depth) >= (
        formulas.compute_per_token(p, d, e, k, depth) * (1 - 1e-9)
    )


@given(schedules, st.floats(0, 1))
def test_latency_falls_with_the_match_rate(
    schedule: tuple[float, int, float, int, int], other: float
) -> None:
    p, d, share, _, depth = schedule
    low, high = sorted((p, other))
    e = max(1, round(share * d))
    fast = formulas.latency_per_token(high, d, e, depth)
    assert fast <= formulas.latency_per_token(low, d, e, depth) + 1e-9 * d


@given(schedules, st.floats(0.01, 1))
def test_latency_never_falls_with_the_exit_layer(
    schedule: tuple[float, int, float, int, int], other: float
) -> None:
    p, d, share, _, depth = schedule
    early, late = sorted((share * d, other * d))
    fast = formulas.latency_per_token(p, d, early, depth)
    assert fast <= formulas.latency_per_token(p, d, late, depth) + 1e-9 * d


@given(st.floats(0, 1), st.integers(2, 6), st.integers(1, 5), st.integers(1, 4))
def test_continuous_where_the_wait_vanishes(p: float, e: int, depth: int, k: int) -> None:
    d = (depth + 1) * e
    below = e * (1 - 1e-9)
    assert formulas.latency_per_token(p, d, below, depth) == pytest.approx(
        formulas.latency_per_token(p, d, e, depth), rel=1e-6
    )
    assert formulas.compute_per_token(p, d, below, k, depth) == pytest.approx(
        formulas.compute_per_token(p, d, e, k, depth), rel=1e-6
    )


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: formulas.compute_per_token(0.5, 40, 20, 0),
        "k must be a number of at least 1; got 0; give the guesses per exit",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("ppd", GOLDEN)
