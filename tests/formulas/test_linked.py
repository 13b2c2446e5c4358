"""PPD and split layers over a link: values by hand on every backend."""

from __future__ import annotations

from typing import Any

import pytest

from ppdmodel import formulas
from tests.support.backends import BACKENDS, check_all_have_values, check_golden

#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    ("tensor_parallel_linked_latency", (40, 2, 1, 0.25, 6), 43.25),
    ("tensor_parallel_linked_latency", (40, 2, 1, 0.25, 6, 0.8), 28.75 + 20.25),
    ("tensor_parallel_linked_latency", (10, 1, 2, 0), 20.0),
    ("ppd_linked_latency", (0.7, 40, 20, 0.25, 1, 6, 6), 46 - 0.7 * 19.75),
    ("ppd_linked_latency", (0.5, 10, 6, 0.5, 2, 3, 1, 2), 23 - 0.5 * 9),
    ("ppd_linked_latency", (0.5, 10, 6, 0.5, 2), 20 - 0.5 * 7.5),
    ("ppd_linked_latency", (0.5, 10, 6, 100, 2, 3, 1), 23.0),
    ("link_break_even", (0.7, 40, 20, 2, 1, 6, 6), 9 / 80.3),
    ("link_break_even", (0.5, 40, 10, 4, 1, 6, 6, 0.8, 2, 3), 16.625 / 160.5),
    ("link_break_even", (0, 40, 20, 2, 1), 20 / 81),
    # a match that comes later than plain decoding: one unit alone beats the split ones first
    ("link_break_even", (0.5, 40, 38, 2, 1, 6, 10), 23 / 81),
    ("link_break_even", (1, 40, 1, 2, 1, 6), 0.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("linked", GOLDEN)


def test_the_break_even_is_in_the_unit_of_the_times() -> None:
    one = formulas.link_break_even(0.7, 40, 20, 2, 1.0, head_time=6, exit_time=5)
    two = formulas.link_break_even(0.7, 40, 20, 2, 2.0, head_time=12, exit_time=10)
    assert two == pytest.approx(2 * one)
