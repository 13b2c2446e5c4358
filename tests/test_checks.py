"""What the checks of numbers take, at the ends of it, and how they refuse the rest."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdmodel.checks import (
    check_schedule,
    positive_integer,
    possible_autocorrelation,
    probability,
    real_number,
)
from ppdmodel.errors import InvalidInputError


@pytest.mark.parametrize("value", [1, 2.0, np.int64(7), 10**30])
def test_whole_numbers_from_one_are_taken(value: Any) -> None:
    found = positive_integer("layers", value)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None, math.nan, math.inf, [1]])
def test_what_is_no_positive_integer_is_named(value: Any) -> None:
    words = f"layers must be a positive integer; got {value}; give 1 or more"
    with pytest.raises(InvalidInputError, match=f"^{re.escape(words)}$"):
        positive_integer("layers", value)


def test_the_fix_can_be_another() -> None:
    with pytest.raises(InvalidInputError, match=r"got 0; leave it out$"):
        positive_integer("depth", 0, "leave it out")


@pytest.mark.parametrize("value", [0, 0.5, 1e300, np.float32(2)])
def test_reals_from_the_least_are_taken(value: Any) -> None:
    assert real_number("delay", value, 0, "give one") is value


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan, "x", None, np.array([1.0, 2.0])])
def test_what_is_no_such_real_is_named(value: Any) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^delay must be a number of at least 0; got .*; give"
    ):
        real_number("delay", value, 0, "give one")


@pytest.mark.parametrize("value", [0, 0.25, 1])
def test_probabilities_are_taken(value: float) -> None:
    assert probability("share", value) == value


@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, math.nan, "x", None, np.array([0.1, 0.2])])
def test_what_is_no_probability_is_named(value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^share must lie in \[0, 1\]; got"):
        probability("share", value)


@given(st.floats(0.01, 0.99), st.floats(-1, 1))
def test_an_autocorrelation_is_possible_where_both_probabilities_are(p: float, rho: float) -> None:
    """Of a match after a miss and after a match, as conditional probabilities of the chain."""
    covariance = rho * p * (1 - p)
    after_match, after_miss = (covariance + p * p) / p, (p * (1 - p) - covariance) / (1 - p)
    expected = all(-1e-9 <= q <= 1 + 1e-9 for q in (after_match, after_miss))
    surely = all(1e-9 <= q <= 1 - 1e-9 for q in (after_match, after_miss))
    found = bool(possible_autocorrelation(rho, p))
    assert found <= expected
    assert found >= surely


def test_autocorrelations_elementwise() -> None:
    found = possible_autocorrelation(np.array([-1.0, -0.5, 1.0]), np.array([0.5, 0.3, 0.3]))
    assert found.tolist() == [True, False, True]
    assert bool(possible_autocorrelation(-3 / 7, 0.3))
    assert not bool(possible_autocorrelation(-3 / 7 - 1e-6, 0.3))
    assert not bool(possible_autocorrelation(-3 / 7 - 1e-6, 0.7))


def test_a_schedule() -> None:
    check_schedule(40, 40, 1, None)
    check_schedule(1, 1)
    for bad, words in (
        ((0, 1), "layers must be a positive integer; got 0"),
        ((40, 0), "exit_layer must be a positive integer; got 0"),
        ((40, 41), "exit_layer must not exceed layers; got 41; exit layers run from 1 to 40"),
        ((40, 20, 0), "k must be a positive integer; got 0"),
        ((40, 20, 1, 0), r"depth must be a positive integer; got 0; give 1 or more, or unlimited"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            check_schedule(*bad)
