"""Several exits on every backend, and what is not accepted."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from ppdmodel import formulas
from ppdmodel.errors import InvalidInputError

RATES, LAYERS, EXITS, K = (0.3, 0.4), 40, (10, 20), (1, 2)


def test_by_hand() -> None:
    """W(10) = 10, W(20) = 20 + W(10) = 30, W(30) = 30 + W(20) + 2 W(10) = 80."""
    assert formulas.multi_exit_latency(RATES, LAYERS, EXITS) == pytest.approx(40 - 9 - 8)
    compute = formulas.multi_exit_compute(RATES, LAYERS, EXITS, K)
    assert compute == pytest.approx(40 + 0.7 * 80 + 1.6 * 30)


def test_one_value_on_every_backend() -> None:
    latency = formulas.multi_exit_latency(RATES, LAYERS, EXITS)
    compute = formulas.multi_exit_compute(RATES, LAYERS, EXITS, K)
    converters: tuple[Callable[[Any], Any], ...] = (
        lambda x: np.array([x, x], dtype=float),
        lambda x: torch.tensor([x, x], dtype=torch.float64),
        lambda x: sympy.Rational(str(x)),
    )
    for convert in converters:
        rates, exits, k = ([convert(x) for x in values] for values in (RATES, EXITS, K))
        found = formulas.multi_exit_latency(rates, convert(LAYERS), exits)
        assert np.asarray(found, dtype=float) == pytest.approx(latency)
        found = formulas.multi_exit_compute(rates, convert(LAYERS), exits, k)
        assert np.asarray(found, dtype=float) == pytest.approx(compute)


def test_rows_of_an_array_are_exits() -> None:
    """Shape [exits, ...]: each element is a setting of its own."""
    rates = np.array([[0.1, 0.3, 0.0], [0.2, 0.4, 0.0]])
    exits = np.array([[3, 10, 1], [5, 20, 2]])
    compute = formulas.multi_exit_compute(rates, 40, exits, np.array([1, 2]))
    assert compute.shape == (3,)
    for column in range(3):
        alone = formulas.multi_exit_compute(
            rates[:, column].tolist(), 40, exits[:, column].tolist(), [1, 2]
        )
        assert compute[column] == pytest.approx(alone, rel=1e-12)


def test_many_exits_give_the_numbers_on_arrays() -> None:
    """Also where a line of ancestors that started at late exits ends before others."""
    for exits, k in (((1, 2, 10), (1, 2, 1)), ((2, 3, 7, 12), (2, 0, 1, 3))):
        rates = [0.2] * len(exits)
        alone = formulas.multi_exit_compute(rates, 12, exits, k)
        found = formulas.multi_exit_compute(rates, np.array([12.0, 12.0]), exits, k)
        assert found == pytest.approx([alone, alone], rel=1e-12)


def test_depth_is_the_most_generations_of_symbols() -> None:
    d, e = sympy.symbols("d e", positive=True)
    for k in (sympy.Symbol("k", positive=True), 3):
        work = sympy.Max(0, d - e)
        for depth, whole in ((1, work), (2, work + k * sympy.Max(0, d - 2 * e))):
            found = formulas.multi_exit_compute([0], d, [e], [k], depth=depth)
            assert sympy.expand(found - d - k * whole) == 0
            assert not found.atoms(sympy.Float)


def test_the_rates_may_be_a_rounding_error_above_one() -> None:
    assert formulas.multi_exit_latency([1.0, 1e-9], 40, [10, 20]) == pytest.approx(10)
    with pytest.raises(InvalidInputError, match=r"must add up to at most 1; got 1\.000000003"):
        formulas.multi_exit_latency([1.0, 3e-9], 40, [10, 20])


def test_gradients_flow() -> None:
    q = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    e = torch.tensor([10.0, 20.0], dtype=torch.float64, requires_grad=True)
    latency = formulas.multi_exit_latency(q, 40, e)
    compute = formulas.multi_exit_compute(q, 40, e, [1, 2])
    grads = torch.autograd.grad(latency + compute, (q, e))
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert grads[0].tolist() == [-30 - 80, -20 - 30]


def test_symbolic_rates_in_a_numeric_schedule() -> None:
    q = sympy.symbols("q_1 q_2", positive=True)
    k = sympy.symbols("k_1 k_2", positive=True)
    compute = formulas.multi_exit_compute(q, 8, (3, 5), k)
    at = dict(zip((*q, *k), (0.2, 0.3, 2, 1), strict=True))
    assert float(compute.subs(at)) == pytest.approx(
        formulas.multi_exit_compute((0.2, 0.3), 8, (3, 5), (2, 1))
    )


def test_symbolic_layers_with_a_depth_give_the_numbers() -> None:
    d, early, late = sympy.symbols("d e f", positive=True)
    whole = formulas.multi_exit_compute([0.3, 0.4], d, [early, late], [1, 2], depth=3)
    at = {d: 40, early: 10, late: 20}
    assert float(whole.subs(at)) == pytest.approx(144)
    assert formulas.multi_exit_compute([0.3, 0.4], 40, [10, 20], [1, 2], depth=3) == 144


def test_the_least_depth_is_that_at_which_no_process_waits() -> None:
    rates, k = [0.3, 0.4], [1, 2]
    for depth in (3, 4, None):
        assert formulas.multi_exit_compute(rates, 40, [10, 20], k, depth=depth) == 144
    for layers, depth in ((40, 2), (41, 3)):
        with pytest.raises(InvalidInputError, match="depth must not hold processes back"):
            formulas.multi_exit_compute(rates, layers, [10, 20], k, depth=depth)


def test_an_exit_that_never_helps_costs_only_compute() -> None:
    one = formulas.multi_exit_compute([0.5], 20, [12], [2])
    two = formulas.multi_exit_compute([0.5, 0.0], 20, [12, 15], [2, 1])
    assert formulas.multi_exit_latency([0.5, 0.0], 20, [12, 15]) == pytest.approx(
        formulas.multi_exit_latency([0.5], 20, [12])
    )
    assert two == pytest.approx(one + 5)


def test_the_last_layer_as_an_exit_changes_nothing() -> None:
    for rates, k in itertools.product([(0.2, 0.7), (0.0, 1.0)], [(1, 1), (2, 3)]):
        one = formulas.multi_exit_compute(rates[:1], 12, [5], k[:1])
        assert formulas.multi_exit_compute(rates, 12, [5, 12], k) == pytest.approx(one)


def test_too_many_processes_for_a_float_is_infinite() -> None:
    assert formulas.multi_exit_compute([0.1, 0.2], 600, [1, 2], [9, 9.5]) == math.inf
    assert formulas.multi_exit_compute([0.1, 0.2], 600, [1, 2], [9, 9]) == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in ([10**12, 1e12], [10**12, 10**12], np.array([1e12, 1e12])):
            exits = np.array([[1, 30], [2, 40]])
            found = formulas.multi_exit_compute([0.1, 0.2], 60, exits, k)
            few = formulas.multi_exit_compute([0.1, 0.2], 60, [30, 40], list(k))
            assert found.tolist() == [math.inf, pytest.approx(few)]


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: formulas.multi_exit_latency([0.3], 40, [10, 20]),
        "first_match must have one value per exit; got 1; give as many as exit_layers, 2",
    ),
    (
        lambda: formulas.multi_exit_latency(0.3, 40, [10]),
        "first_match must have one value per exit; got 0.3; give a list, also of one",
    ),
    (
        lambda: formulas.multi_exit_latency([], 40, []),
        "exit_layers must have one value per exit; got []; give a list, also of one",
    ),
    (
        lambda: formulas.multi_exit_latency([0.3, 0.4], 40, [20, 10]),
        "exit_layers[1] must be larger than exit_layers[0]; got 10; give the exits in order",
    ),
    (
        lambda: formulas.multi_exit_latency([0.3, 0.4], 40, [20, 20]),
        "exit_layers[1] must be larger than exit_layers[0]; got 20; give the exits in order",
    ),
    (
        lambda: formulas.multi_exit_latency([0.3, 0.4], 40, [10, np.array([20, 9])]),
        "exit_layers[1] must be larger than exit_layers[0]; got 9.0 at index 1; "
        "give the exits in order",
    ),
    (
        lambda: formulas.multi_exit_latency([0.3, 0.4], 40, [10, 41]),
        "exit_layer must not exceed layers; got 41; exit layers run from 1 to 40",
    ),
    (
        lambda: formulas.multi_exit_latency([0.3, 0.4, 0.1], 40, [10, 20, 41]),
        "exit_layer must not exceed layers; got 41; exit layers run from 1 to 40",
    ),
    (
        lambda: formulas.multi_exit_latency([0.3, 0.4, 0.1], 40, [10, 20, 15]),
        "exit_layers[2] must be larger than exit_layers[1]; got 15; give the exits in order",
    ),
    (
        lambda: formulas.multi_exit_latency([np.array([0.1, 0.2])], 40, [torch.tensor([9.0, 8])]),
        "arguments must be of one kind beside plain numbers; got arrays and tensors; "
        "make them the same",
    ),
    (
        lambda: formulas.multi_exit_latency([0.3, 1.4], 40, [10, 20]),
        "first_match[1] must lie in [0, 1]; got 1.4; give a probability",
    ),
    (
        lambda: formulas.multi_exit_latency([0.6, 0.5], 40, [10, 20]),
        "first_match must add up to at most 1; got 1.1; "
        "give the probabilities that exit j is the first to hold the next token",
    ),
    (
        lambda: formulas.multi_exit_latency([np.array([0.1, 0.6]), 0.5], 40, [10, 20]),
        "first_match must add up to at most 1; got 1.1 at index 1; "
        "give the probabilities that exit j is the first to hold the next token",
    ),
    (
        lambda: formulas.multi_exit_compute([0.3, 0.4], 40, [10, 20], [1, -1]),
        "k[1] must be at least 0; got -1; give new guesses",
    ),
    (
        lambda: formulas.multi_exit_compute([0.3, 0.4], 40, [10, 20], [1]),
        "k must have one value per exit; got 1; give as many as exit_layers, 2",
    ),
    (
        lambda: formulas.multi_exit_compute([0.3, 0.4], 40, [10, 20], [1, 1], depth=2),
        "depth must not hold processes back (at least layers/exit_layers[0] - 1); got 2; "
        "use None for unlimited, or simulate",
    ),
    (
        lambda: formulas.multi_exit_compute([0.3], sympy.Symbol("d"), [10], [1]),
        "depth must be given for symbolic layers or exits; got None; "
        "give the D for which layers <= (D+1) * exit_layers[0]",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert str(caught.value) == message
