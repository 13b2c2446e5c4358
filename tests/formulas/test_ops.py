"""The operations on which the backends disagree, each on each of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from ppdmodel.errors import InvalidInputError
from ppdmodel.formulas import ops


def test_extrema_of_every_backend() -> None:
    assert ops.maximum(1, 2.5) == 2.5
    assert ops.minimum(1, 2.5) == 1
    assert ops.maximum(np.array([1, 5]), 3).tolist() == [3, 5]
    assert ops.minimum(3, torch.tensor([1.0, 5.0])).tolist() == [1.0, 3.0]
    x = sympy.Symbol("x")
    assert ops.maximum(x, 0) == sympy.Max(x, 0)
    assert ops.minimum(0, x) == sympy.Min(x, 0)


def test_ceil_is_an_int_for_floats_and_carries_no_gradient() -> None:
    assert ops.ceil(2.1) == 3
    assert isinstance(ops.ceil(2.1), int)
    assert ops.ceil(np.array([1.5, 2.0])).tolist() == [2.0, 2.0]
    assert not ops.ceil(torch.tensor([1.5], requires_grad=True)).requires_grad
    assert ops.ceil(sympy.Symbol("x")) == sympy.ceiling(sympy.Symbol("x"))


def test_floor_and_step() -> None:
    assert ops.floor(2.9) == 2
    assert ops.floor(np.array([2.9, -0.5])).tolist() == [2.0, -1.0]
    assert ops.floor(torch.tensor([2.9])).tolist() == [2.0]
    x = sympy.Symbol("x")
    assert ops.floor(x) == sympy.floor(x)
    assert [ops.step(v) for v in (-0.5, 0, 0.1)] == [0, 0, 1]
    assert ops.step(np.array([-0.5, 0.0, 0.5])).tolist() == [0, 0, 1]
    assert ops.step(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [0, 0, 1]
    assert ops.step(x).subs(x, 0) == 0


def test_a_sum_over_nothing_has_the_shape_of_its_bounds() -> None:
    assert ops.sum(lambda j: j, 1, np.empty((0, 3))).shape == (0, 3)


def test_division_by_zero_has_a_value_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ops.divide(1, 0) == math.inf
        assert ops.divide(-1.0, 0) == -math.inf
        assert math.isnan(ops.divide(0, 0))
        assert ops.divide(np.array([1.0, -1.0]), 0).tolist() == [math.inf, -math.inf]
        assert ops.divide(1, torch.tensor(0.0)).item() == math.inf
        assert ops.divide(3, 2) == 1.5
    x = sympy.Symbol("x")
    assert [ops.divide(x, 0), ops.divide(1, x)] == [sympy.zoo * x, 1 / x]


def test_sum_over_numbers_arrays_and_symbols() -> None:
    assert ops.sum(lambda j: j * j, 1, 3) == 14
    assert ops.sum(lambda j: j, 1, 0) == 0
    bounds = np.array([0.0, 1.0, 3.0])
    assert ops.sum(lambda j: j * j, 1, bounds).tolist() == [0.0, 1.0, 14.0]
    assert ops.sum(lambda j: j * j, 1, torch.tensor(bounds)).tolist() == [0.0, 1.0, 14.0]
    n = sympy.Symbol("n", integer=True, positive=True)
    total = ops.sum(lambda j: j, 1, n)
    assert isinstance(total, sympy.Sum)
    assert sympy.simplify(total.doit() - n * (n + 1) / 2) == 0
    assert ops.sum(lambda j: j, 1, sympy.Integer(3)) == 6

    def term(j: Any) -> Any:
        square = j * j
        return square + 1

    ((index, _, _),) = ops.sum(term, 1, n).limits
    assert (index.name, index.is_integer) == ("j", True)


def test_a_sum_of_too_many_terms_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "MOST_TERMS", 5)
    for last in (7, np.array([1, 7])):
        assert np.max(ops.sum(lambda j: j, 3, last)) == 25
        with pytest.raises(InvalidInputError, match="not have more than 5 terms; got 6; lower"):
            ops.sum(lambda j: j, 3, last + 1)


def test_sum_of_arrays_never_leaves_its_bounds() -> None:
    """A term outside an element's bounds must not be evaluated: it may be infinite."""
    upper = np.array([1.0, 2.0])
    limit = np.array([1.0, 2.0])

    def term(j: np.ndarray) -> np.ndarray:
        assert (j <= limit).all()
        value: np.ndarray = 1 / (limit + 1 - j)
        return value

    assert ops.sum(term, 1, upper).tolist() == [1.0, 1.5]


@pytest.mark.parametrize("value", [np.float64(1.5), 1.5, 2])
def test_python_like_numbers_are_not_arrays(value: float) -> None:
    assert not ops.is_array(value)
