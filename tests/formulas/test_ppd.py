"""Every closed form on every backend, against golden values and its own limits."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppdmodel import formulas
from ppdmodel.errors import InvalidInputError

#: (function, arguments, value); values worked out by hand from theory/02 and theory/03
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
    ("reserved_units", (0.7, 40, 20), 52.0),
    ("exchange_rate", (0.5, 3), 5.0),
    ("break_even", (40, 20, 5), 0.25),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", ["float", "numpy", "torch", "sympy"])
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    convert: Callable[[Any], Any] = {
        "float": lambda x: x,
        "numpy": lambda x: np.array([x, x], dtype=float),
        "torch": lambda x: torch.tensor([x, x], dtype=torch.float64),
        "sympy": sympy.nsimplify,
    }[backend]
    given = [x if x is None else convert(x) for x in arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = getattr(formulas, name)(*given)
    assert np.asarray(result, dtype=float) == pytest.approx(value, rel=1e-13)


def test_peak_units() -> None:
    assert formulas.peak_units(40, 20) == 2
    assert formulas.peak_units(40, 20, 3) == 4
    assert formulas.peak_units(40, 40, 3) == 1
    assert formulas.peak_units(40, 10, 3, 2) == 1 + 3 + 9
    assert formulas.peak_units(40, 10, 2, None) == 1 + 2 + 4 + 8
    assert formulas.peak_units(40, 10, 2, 99) == 1 + 2 + 4 + 8
    peaks = formulas.peak_units(40, np.array([10, 20, 40]), 2, None)
    assert peaks.tolist() == [15, 3, 1]


def test_the_exchange_rate_is_not_that_of_depth_one_for_deeper_schedules() -> None:
    paid = formulas.compute_per_token(0.7, 40, 10, 3, 2) - 40
    saved = 40 - formulas.latency_per_token(0.7, 40, 10, 2)
    assert paid / saved == pytest.approx(8.46, abs=0.005)
    assert formulas.exchange_rate(0.7, 3) == pytest.approx(3.29, abs=0.005)


def test_no_guess_is_ever_right_at_an_infinite_price() -> None:
    assert formulas.exchange_rate(0.0, 1) == math.inf
    assert formulas.exchange_rate(np.array([0.0, 0.5]), 1).tolist() == [math.inf, 1.0]
    assert formulas.break_even(40, 40, 1) == math.inf
    assert math.isnan(formulas.break_even(40, 40, 0))


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
    compute = formulas.compute_per_token(p, d, e, k, n).subs(at | {k: 2}).doit()
    assert float(compute) == pytest.approx(formulas.compute_per_token(0.5, 13, 2, 2, 3))


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


def test_integer_arrays_do_not_wrap_around() -> None:
    k = np.array([10], dtype=np.int64)
    large = formulas.compute_per_token(0.5, 60, 1, k, None)
    assert large[0] == pytest.approx(formulas.compute_per_token(0.5, 60, 1, 10, None), rel=1e-12)
    assert large[0] > 1e50


def test_too_many_processes_for_a_float_is_infinite() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert formulas.compute_per_token(0.5, 400, 1, 10.0, None) == math.inf
        result = formulas.compute_per_token(0.5, 400, np.array([1, 200]), 10, None)
    assert result[0] == math.inf
    assert result[1] == pytest.approx(formulas.compute_per_token(0.5, 400, 200, 10, None))


def test_a_column_of_a_table_is_an_array() -> None:
    table = pd.DataFrame({"p": [0.1, 0.5], "e": [10, 20]})
    found = formulas.latency_per_token(table["p"], 40, table["e"], None)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [37.0, 30.0]


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


@given(schedules, st.floats(0, 1))
def test_a_gate_saves_less_at_no_higher_compute(
    schedule: tuple[float, int, float, int, int], passing: float
) -> None:
    p, d, share, k, depth = schedule
    e = max(1, round(share * d))
    close = 1e-9 * d
    assert formulas.gated_latency(p, d, e, passing, depth) >= (
        formulas.latency_per_token(p, d, e, depth) - close
    )
    gated = formulas.gated_compute(p, d, e, passing, k, depth)
    assert d - close <= gated
    if depth == 1 and 2 * e >= d:
        assert gated <= formulas.compute_per_token(p, d, e, k, depth) + close


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
        lambda: formulas.latency_per_token(np.float64(1.5), 40, 20),
        "p_correct must lie in [0, 1]; got 1.5; give a probability",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 40, np.int64(50)),
        "exit_layer must not exceed layers; got 50.0; exit layers run from 1 to 40",
    ),
    (
        lambda: formulas.latency_per_token([0.5, 0.6], 40, 20),
        "p_correct must lie in [0, 1]; got [0.5, 0.6]; make an array of it: numpy.asarray",
    ),
    (
        lambda: formulas.latency_per_token(np.array([0.5 + 1j]), 40, 20),
        "p_correct must lie in [0, 1]; got an array of complex128; give real numbers",
    ),
    (
        lambda: formulas.latency_per_token(np.array([0.1, 0.2, 0.3]), 40, np.array([10, 20])),
        "the shapes of the arguments must broadcast; got p_correct (3,), exit_layer (2,); "
        "give them equal lengths, or axes of their own",
    ),
    (
        lambda: formulas.latency_per_token(np.array([0.1, 0.2]), 40, torch.tensor([10.0, 20.0])),
        "arguments must be of one kind beside plain numbers; got arrays and tensors; "
        "make them the same",
    ),
    (
        lambda: formulas.latency_per_token(np.array([0.1, 0.2]), 40, sympy.Symbol("e")),
        "arguments must be of one kind beside plain numbers; got arrays and symbols; "
        "make them the same",
    ),
    (
        lambda: formulas.latency_per_token(pd.Series([0.1, 1.2]), 40, 20),
        "p_correct must lie in [0, 1]; got 1.2 at index 1; give a probability",
    ),
    (
        lambda: formulas.compute_per_token(0.5, 10**6, 1, 2, None),
        "the tokens in flight must not exceed 10000; got 999999; raise exit_layer or lower depth",
    ),
    (
        lambda: formulas.expected_total_latency(0.5, 40, 20, 10**9),
        "a sum must not have more than 2000000 terms; got 5e+08; "
        "lower tokens, drafted tokens or depth",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 10**400, 1),
        f"layers must be a positive number; got {10**400}; give a layer count",
    ),
    (
        lambda: formulas.latency_per_token(0.5, np.array([[40], [10]]), np.array([3, 20])),
        "exit_layer must not exceed layers; got 20.0 at index (1, 1); lower it",
    ),
    (
        lambda: formulas.correlated_latency(0.5, 8, 1, 1, 1.0),
        "autocorrelation must lie in [-1, 1); got 1.0; 0 means independent matches",
    ),
    (
        lambda: formulas.correlated_latency(np.array([0.5, 0.1]), 8, 1, 1, -0.5),
        "autocorrelation must be at least -p/(1-p) and -(1-p)/p; got -0.5 at index 1; "
        "no sequence of matches at this match rate alternates that much",
    ),
    (
        lambda: formulas.gated_latency(0.5, 8, 4, np.array([0.5, 2.0])),
        "share must lie in [0, 1]; got 2.0 at index 1; give the share of tokens that pass the gate",
    ),
    (
        lambda: formulas.expected_total_latency(0.5, 8, 4, np.array([5, 0])),
        "tokens must be a whole number of at least 1; got 0 at index 1; give 1 or more",
    ),
    (
        lambda: formulas.best_exit(0, 30),
        "exponent must be a positive number; got 0; give a > 0 of p_correct = (e/d)**a",
    ),
    (
        lambda: formulas.threshold(-1),
        "price must be a number of at least 0; got -1; "
        "give extra layer executions per layer time saved",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 8, 4, np.array([1, math.inf])),
        "depth must be a whole number of at least 1; got inf at index 1; use None for unlimited",
    ),
    (
        lambda: formulas.latency_per_token(1.2, 40, 20),
        "p_correct must lie in [0, 1]; got 1.2; give a probability",
    ),
    (
        lambda: formulas.latency_per_token(math.nan, 40, 20),
        "p_correct must lie in [0, 1]; got nan; give a probability",
    ),
    (
        lambda: formulas.latency_per_token("half", 40, 20),
        "p_correct must lie in [0, 1]; got 'half'; give a probability",
    ),
    (
        lambda: formulas.speedup(0.5, 40, 41),
        "exit_layer must not exceed layers; got 41; exit layers run from 1 to 40",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 40, 0),
        "exit_layer must be a positive number; got 0; count layers from 1",
    ),
    (
        lambda: formulas.latency_per_token(0.5, math.inf, 1),
        "layers must be a positive number; got inf; give a layer count",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 40, 20, 1.5),
        "depth must be a whole number of at least 1; got 1.5; use None for unlimited",
    ),
    (
        lambda: formulas.compute_per_token(0.5, 40, 20, 0),
        "k must be a number of at least 1; got 0; give the guesses per exit",
    ),
    (
        lambda: formulas.latency_per_token(np.array([[0.1, 0.2], [0.3, math.nan]]), 40, 20),
        "p_correct must lie in [0, 1]; got nan at index (1, 1); give a probability",
    ),
    (
        lambda: formulas.latency_per_token(torch.tensor([0.5, -1.0]), 40, 20),
        "p_correct must lie in [0, 1]; got -1.0 at index 1; give a probability",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 40, np.array([3, 50])),
        "exit_layer must not exceed layers; got 50.0 at index 1; exit layers run from 1 to 40",
    ),
    (
        lambda: formulas.break_even(40, 20, -1),
        "overhead must be a number of at least 0; got -1; give it in layer units",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert str(caught.value) == message
