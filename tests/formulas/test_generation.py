"""Generations of so many tokens: values by hand on every backend, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ppdmodel import formulas
from tests.support.backends import (
    BACKENDS,
    check_all_have_values,
    check_golden,
    check_refused,
)

BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: formulas.expected_total_latency(0.5, 40, 20, 10**9),
        "a sum must not have more than 2000000 terms; got 5e+08; "
        "lower tokens, drafted tokens or depth",
    ),
    (
        lambda: formulas.expected_total_latency(0.5, 8, 4, np.array([5, 0])),
        "tokens must be a whole number of at least 1; got 0 at index 1; give 1 or more",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    # two trials, a wait of 6 where both match
    ("expected_total_latency", (0.5, 8, 1, 3), 24 - 7 + 6 * 0.25),
    ("expected_total_latency", (0.7, 40, 20, 101), 2640.0),
    # five trials: a first group of three at once, or after a miss at one of two places
    ("expected_total_latency", (0.5, 9, 2, 6, 2), 54 - 17.5 + 3 * 0.125 * 2),
    ("expected_total_latency", (1, 8, 1, 5), 40 - 28 + 12.0),
    ("expected_total_latency", (0, 8, 1, 5), 40.0),
    # sub-processes that never wait
    ("expected_total_latency", (0.5, 8, 5, 4), 32 - 4.5),
    ("generation_time", (9, 5, 6, 4, 2), 54 - 16.0),
    ("expected_total_latency", (0.3, 40, 20, 1, None), 40.0),
    ("generation_time", (40, 20, 101, 70, 0), 2640.0),
    ("generation_time", (8, 1, 5, 4, 2), 24.0),
    ("generation_time", (9, 2, 6, 3, 1, 2), 54 - 21 + 3.0),
    ("generation_time", (40, 10, 5, 3, 2, None), 110.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("generation", GOLDEN)
