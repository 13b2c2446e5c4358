"""The few operations that differ between floats, NumPy, torch and SymPy.

A closed form is written once, with Python's operators and the functions below. Packages are looked
up in `sys.modules` and never imported here: an argument can only be a tensor if torch is loaded.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from ..errors import InvalidInputError

#: most terms of a sum; more would take minutes
MOST_TERMS = 2_000_000

#: A float, a NumPy array, a torch tensor or a SymPy expression.
Operand: TypeAlias = Any


def _is_from(package: str, type_name: str, value: Operand) -> bool:
    module = sys.modules.get(package)
    return module is not None and isinstance(value, getattr(module, type_name))


def is_tensor(value: Operand) -> bool:
    """Whether `value` is a torch tensor."""
    return _is_from("torch", "Tensor", value)


def is_array(value: Operand) -> bool:
    """Whether `value` is a NumPy array or a NumPy scalar that is no Python float."""
    is_numpy = _is_from("numpy", "ndarray", value) or _is_from("numpy", "generic", value)
    return is_numpy and not isinstance(value, float)


def is_symbolic(value: Operand) -> bool:
    """Whether `value` is a SymPy expression."""
    return _is_from("sympy", "Basic", value)


def maximum(a: Operand, b: Operand) -> Operand:
    """Elementwise larger of `a` and `b`."""
    return _extremum("maximum", "Max", max, a, b)


def minimum(a: Operand, b: Operand) -> Operand:
    """Elementwise smaller of `a` and `b`."""
    return _extremum("minimum", "Min", min, a, b)


def _extremum(
    name: str, symbolic: str, plain: Callable[[Any, Any], Any], a: Operand, b: Operand
) -> Operand:
    if is_tensor(a) or is_tensor(b):
        return getattr(sys.modules["torch"], name)(*_tensors(a, b))
    if is_symbolic(a) or is_symbolic(b):
        return getattr(sys.modules["sympy"], symbolic)(a, b)
    if is_array(a) or is_array(b):
        return getattr(sys.modules["numpy"], name)(a, b)
    return plain(a, b)


def _tensors(a: Operand, b: Operand) -> tuple[Operand, Operand]:
    like = a if is_tensor(a) else b
    as_tensor = sys.modules["torch"].as_tensor
    return tuple(
        x if is_tensor(x) else as_tensor(x, dtype=like.dtype, device=like.device) for x in (a, b)
    )


def ceil(x: Operand) -> Operand:
    """Smallest integer that is not below `x`, elementwise; an `int` for a float."""
    if is_tensor(x):
        return x.detach().ceil()
    if is_symbolic(x):
        return sys.modules["sympy"].ceiling(x)
    if is_array(x):
        return sys.modules["numpy"].ceil(x)
    return math.ceil(x)


def floor(x: Operand) -> Operand:
    """Largest integer that is not above `x`, elementwise; an `int` for a float."""
    return sys.modules["sympy"].floor(x) if is_symbolic(x) else -ceil(-x)


def step(x: Operand) -> Operand:
    """1 where `x` is positive, else 0, elementwise."""
    if is_tensor(x):
        return (x > 0).to(x.dtype)
    if is_symbolic(x):
        return sys.modules["sympy"].Heaviside(x, 0)
    if is_array(x):
        return (x > 0).astype(float)
    return int(x > 0)


def divide(a: Operand, b: Operand) -> Operand:
    """`a / b`, where a number over zero is signed infinity and 0 / 0 is NaN, without a warning."""
    if is_tensor(a) or is_tensor(b) or is_symbolic(a) or is_symbolic(b):
        return a / b
    if is_array(a) or is_array(b):
        numpy = sys.modules["numpy"]
        with numpy.errstate(divide="ignore", invalid="ignore"):
            return numpy.true_divide(a, b)
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)
    return a / b


def sum(term: Callable[[Operand], Operand], lower: Operand, upper: Operand) -> Operand:
    """Sum of `term(j)` for the integers `lower <= j <= upper`; an empty sum is 0.

    Number bounds give a loop, whatever `term` returns. Array bounds give one sum per element:
    `term` is evaluated only inside the bounds of each element, so that terms outside the sum
    affect neither its value nor its gradient. A symbolic bound gives a `sympy.Sum` over an index
    named after `term`'s parameter.
    """
    if is_symbolic(lower) or is_symbolic(upper):
        if not (_is_integer(lower) and _is_integer(upper)):
            sympy = sys.modules["sympy"]
            index = sympy.Dummy(term.__code__.co_varnames[0], integer=True)
            return sympy.Sum(term(index), (index, lower, upper))
    elif _has_elements(lower) or _has_elements(upper):
        return _masked_sum(term, lower, upper)
    total: Operand = 0
    for j in _indices(lower, upper):
        total = total + term(j)
    return total


def _indices(first: Operand, last: Operand) -> range:
    terms = last - first + 1
    if terms > MOST_TERMS:
        raise InvalidInputError(
            f"a sum must not have more than {MOST_TERMS} terms; got {terms:g}; "
            "lower tokens, drafted tokens or depth"
        )
    return range(int(first), int(last) + 1)


def _is_integer(bound: Operand) -> bool:
    return bool(bound.is_Integer) if is_symbolic(bound) else True


def _has_elements(bound: Operand) -> bool:
    return is_tensor(bound) or is_array(bound)


def _masked_sum(term: Callable[[Operand], Operand], lower: Operand, upper: Operand) -> Operand:
    like = upper if _has_elements(upper) else lower
    if 0 in like.shape:
        return like
    first, last = (
        int(bound.min() if pick == "min" else bound.max()) if _has_elements(bound) else int(bound)
        for bound, pick in ((lower, "min"), (upper, "max"))
    )
    total = 0.0 * like
    for j in _indices(first, last):
        inside = (lower <= j) & (upper >= j)
        index = maximum(minimum(j, upper), lower)
        total = total + _where(inside, term(index))
    return total


def _where(condition: Operand, value: Operand) -> Operand:
    if is_tensor(value):
        torch = sys.modules["torch"]
        return torch.where(torch.as_tensor(condition), value, torch.zeros_like(value))
    return sys.modules["numpy"].where(condition, value, 0.0)
