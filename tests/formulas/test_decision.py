"""Prices, break-even, the best exit, the threshold: values by hand on every backend, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ppdmodel import formulas
from tests.support.backends import BACKENDS, check_all_have_values, check_golden, check_refused


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


#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    ("exchange_rate", (0.5, 3), 5.0),
    ("exchange_rate", (0.5,), 1.0),
    ("break_even", (40, 20, 5), 0.25),
    ("break_even", (40, 39, 0), 0.0),
    ("best_relative_exit", (3,), 0.75),
    ("best_relative_exit", (1,), 0.5),
    # e**3 (30-e): 85184 at 22, 85169 at 23
    ("best_exit", (3, 30), 22.0),
    ("best_exit", (3, 31), 23.0),
    # e (5-e): 6 at 2 and at 3, of which the later costs less
    ("best_exit", (1, 5), 3.0),
    ("best_exit", (1, 4), 2.0),
    ("best_exit", (0.2, 2), 1.0),
    ("best_exit", (1, 1), 1.0),
    ("best_exit", (1, 0.5), 1.0),
    ("threshold", (3,), 0.25),
    ("threshold", (0,), 1.0),
    ("start_worth", (0.5, 40, 20, 3), 20.0),
    ("start_worth", (0, 40, 10, 2), -30.0),
    ("start_worth", (1, 40, 30, 3), 30.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


BAD: list[tuple[Callable[[], Any], str]] = [
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
        lambda: formulas.break_even(40, 20, -1),
        "overhead must be a number of at least 0; got -1; give it in layer units",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("decision", GOLDEN)
