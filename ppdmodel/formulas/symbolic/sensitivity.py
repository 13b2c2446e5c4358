"""Partial derivatives of closed forms as numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from .. import ops, symbolic
from ..contract import is_unknown
from .catalogue import check_parameters
from .expressions import check_along


def sensitivity(name: str, parameter: str, /, **values: Any) -> Any:
    """The partial derivative of a closed form along a parameter, from its symbolic derivative.

    Args:
        name: a closed form, one of `ppdmodel.symbolic.names()`.
        parameter: a real parameter of it, such as "p_correct" or "exit_layer".
        **values: its arguments: numbers or arrays, which broadcast. For torch tensors use
            autograd: the closed forms are differentiable.

    Returns:
        The derivative, in the formula's unit per unit of the parameter; a float, or an array. Where
        the slope jumps, as at (D+1)e = d, a value between the one-sided derivatives; NaN where
        it is undefined or overflows.

    Raises:
        InvalidInputError: an argument is outside its domain, or the parameter is a whole number.

    Source:
        `ppdmodel.symbolic.derivative`; theory/02-latency.md, equations (2.5) and (2.6).

    >>> sensitivity("latency_per_token", "p_correct", p_correct=0.7, layers=40, exit_layer=20)
    -20.0
    """
    check_along(name, (parameter,), {})
    entry = symbolic.formula(name)
    check_parameters(entry, values)
    bound = inspect.signature(entry.function).bind_partial(**values)
    bound.apply_defaults()
    missing = [p for p in entry.parameters if p not in bound.arguments]
    if missing:
        raise InvalidInputError(
            f"{name} must be given {missing[0]}; got none; give a number or an array"
        )
    entry.function(**bound.arguments)  # raises for an argument outside its domain
    given = list(bound.arguments.values())
    for argument, value in bound.arguments.items():
        if is_unknown(value) or ops.is_tensor(value):
            raise InvalidInputError(
                f"{argument} must be numbers; got {value!r}; "
                "symbols: ppdmodel.symbolic.derivative, tensors: autograd"
            )
    arrays = np.broadcast_arrays(*(math.inf if value is None else value for value in given))
    results = [
        _at(name, parameter, dict(zip(entry.parameters, map(float, point), strict=True)))
        for point in zip(*(array.ravel() for array in arrays), strict=True)
    ]
    (shape,) = {array.shape for array in arrays}
    return np.array(results).reshape(shape) if shape else results.pop()


def _at(name: str, parameter: str, point: dict[str, float]) -> float:
    """The derivative at one point, of the expression for its whole numbers."""
    whole = {n: int(x) for n, x in point.items() if n in symbolic.WHOLE and n != "depth"}
    depth = None
    if "depth" in point and (point["depth"] + 1) * point["exit_layer"] <= point["layers"]:
        depth = int(point["depth"])
    real = {n: x for n, x in point.items() if n not in symbolic.WHOLE}
    try:
        return float(_compiled(name, parameter, depth, tuple(whole.items()))(**real))
    except (ZeroDivisionError, OverflowError):
        return math.nan


@cache
def _compiled(
    name: str, parameter: str, depth: int | None, whole: tuple[tuple[str, int], ...]
) -> Callable[..., float]:
    import sympy

    entry = symbolic.formula(name)
    fixed = {"depth": depth} if "depth" in entry.parameters else {}
    slope = symbolic.derivative(name, parameter, **fixed, **dict(whole))
    named = {symbolic.SYMBOLS[p]: sympy.Symbol(p) for p in entry.parameters}
    real = [p for p in entry.parameters if p not in symbolic.WHOLE]
    known = {"Heaviside": lambda x, at=0.5: at if x == 0 else float(x > 0)}
    return sympy.lambdify(real, slope.xreplace(named), modules=[known, "math"])  # type: ignore[no-any-return]
