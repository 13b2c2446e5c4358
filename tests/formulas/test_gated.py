"""One gated exit: values by hand, limits, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
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


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: formulas.gated_latency(0.5, 8, 4, np.array([0.5, 2.0])),
        "share must lie in [0, 1]; got 2.0 at index 1; give the share of tokens that pass the gate",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    ("gated_latency", (0.9, 40, 20, 0.5), 31.0),
    # matches at the rate 1/4, a wait of 6, then of 3
    ("gated_latency", (0.5, 8, 1, 0.5), 6.25 + 6 * 0.0625 / 1.25),
    ("gated_latency", (0.5, 9, 2, 0.5, 2), 7.25 + 3 * 0.25**3 / 1.3125),
    ("gated_latency", (1, 40, 10, 1, None), 10.0),
    ("gated_latency", (0.9, 40, 10, 0), 40.0),
    ("gated_compute", (0.9, 40, 20, 0.5, 3), 61.0),
    ("gated_compute", (0.5, 8, 1, 0.5, 2), 8 + 0.75 * (7 + 0.25) / 1.25),
    ("gated_compute", (0.5, 12, 4, 0.5, 3, 2), 12 + 1.25 * (8 + 1.5 * 4)),
    ("gated_compute", (0.5, 8, 4, 0.5), 8 + 0.25 * 4.0),
    ("gated_compute", (0.5, 8, 4, 0, 9), 8.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("gated", GOLDEN)
