"""Closed forms as SymPy expressions: with some parameters fixed, derivatives, limits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy

from ...errors import InvalidInputError
from ..contract import DOMAINS, check
from .catalogue import SYMBOLS, WHOLE, Expr, Formula, check_parameters, formula

#: largest whole number up to which a sum is written out term by term
_FEW = 8


def expr(name: str, **fixed: Any) -> Expr:
    """A closed form as a SymPy expression in `SYMBOLS`.

    For numbers, call the function of `ppdmodel.formulas` itself; `sympy.lambdify` needs
    `modules="math"` for sums.

    Args:
        name: one of `names()`.
        **fixed: values or expressions for some parameters. `depth=None` gives the form for
            unlimited depth.

    Raises:
        InvalidInputError: there is no such formula or parameter, or a value is out of its domain.

    >>> expr("latency_per_token", depth=1)
    d + p**2*Max(0, d - 2*e)/(p + 1) - p*(d - e)
    >>> expr("compute_per_token", depth=None)
    d + (k - p)*Sum(k**(g - 1)*(d - e*g), (g, 1, ceiling(d/e) - 1))
    """
    entry = closed(name)
    check_parameters(entry, fixed)
    given = {p: fixed.get(p, SYMBOLS[p]) for p in entry.parameters}
    # sums over more than a few terms stay sums
    large = {p: n for p, n in fixed.items() if p in WHOLE and isinstance(n, int) and n > _FEW}
    arguments = given | {p: SYMBOLS[p] for p in large}
    result = sympy.sympify(entry.function(**arguments))
    result = result.subs({SYMBOLS[p]: sympy.Integer(n) for p, n in large.items()})
    return _tidy(_plain_indices(result), given)


def closed(name: str) -> Formula:
    """The catalogue entry of a closed form; raises `InvalidInputError` for a recursion."""
    entry = formula(name)
    if entry.is_recursion:
        raise InvalidInputError(
            f"the formula must be a closed form; got {name!r}, a recursion; "
            f"call ppdmodel.{name} itself"
        )
    return entry


def check_along(name: str, parameters: Sequence[str], fixed: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` unless a formula has a derivative along these parameters."""
    entry = closed(name)
    if not parameters:
        raise InvalidInputError("a derivative must have a parameter; got none; give its name")
    check_parameters(entry, dict.fromkeys(parameters))
    for parameter in parameters:
        if parameter in WHOLE:
            raise InvalidInputError(
                f"a derivative must be along a real parameter; got {parameter}; "
                f"choose from {', '.join(p for p in entry.parameters if p not in WHOLE)}"
            )
        if parameter in fixed:
            raise InvalidInputError(
                f"a derivative must be along a free parameter; got {parameter} fixed; "
                "put its value into the result instead"
            )


def derivative(name: str, *parameters: str, **fixed: Any) -> Expr:
    """The derivative of a closed form along one or more real parameters, in that order.

    At the kink (D+1)e = d the one-sided derivatives differ: the result has Heaviside functions.

    Raises:
        InvalidInputError: as `expr`, or a parameter is a whole number.

    >>> derivative("latency_per_token", "p_correct", depth=None)
    -d + e
    """
    check_along(name, parameters, fixed)
    whole = expr(name, **fixed)
    for parameter in parameters:
        whole = _slope(whole, SYMBOLS[parameter])
    return whole


def _slope(expression: Expr, along: Expr) -> Expr:
    """The derivative; ceiling, floor and step functions count as constant."""
    jumps = expression.atoms(sympy.ceiling, sympy.floor, sympy.Heaviside)
    steps = {x: sympy.Dummy(real=True) for x in jumps}
    slope = sympy.diff(expression.xreplace(steps), along)
    back = {dummy: x for x, dummy in steps.items()}
    return _each_sum(_plain_indices(slope.xreplace(back)), _without_empty_start)


def _without_empty_start(total: Expr) -> Expr:
    """A sum without its first term, where that is 0: the derivative of a constant."""
    (index, first, last), *others = total.limits
    if others or first != 0 or total.function.subs(index, 0) != 0:
        return total
    return total.func(sympy.powsimp(total.function), (index, 1, last))


def limit(name: str, parameter: str, value: Any, **fixed: Any) -> Expr:
    """The limit of a closed form as one parameter goes to `value`, which may be `sympy.oo`.

    Raises:
        InvalidInputError: as `expr`, or `value` is outside the parameter's domain and its ends, or
            SymPy finds no limit.

    >>> limit("latency_per_token", "p_correct", 1)
    Max(e, d/(D + 1))
    >>> limit("latency_per_token", "depth", sympy.oo)
    d - p*(d - e)
    """
    check_parameters(formula(name), {parameter: None})
    if parameter in fixed:
        raise InvalidInputError(
            f"a limit must be along a free parameter; got {parameter} fixed; leave it out"
        )
    value = _as_expression(parameter, value)
    _, rule, _ = DOMAINS[parameter]
    beside = sys.float_info.min if value == 0 else sys.float_info.max
    if not (value in (0, sympy.oo) and rule(beside)):  # it is no open end of the domain
        check(parameter, value)
    if parameter == "depth" and value == sympy.oo:
        return expr(name, **fixed, depth=None)
    whole = expr(name, **fixed)
    at = _evaluated(whole.subs(SYMBOLS[parameter], value))
    if value == sympy.oo or at.has(sympy.nan, sympy.zoo):
        try:
            side = "+" if value == 0 else "-"  # from inside the domain
            at = sympy.limit(_evaluated(whole), SYMBOLS[parameter], value, side)
        except (NotImplementedError, ValueError):
            at = sympy.nan
    if at.has(sympy.nan, sympy.zoo, sympy.Limit):
        raise InvalidInputError(
            f"the limit must be one that SymPy finds; got {name} at {parameter} -> {value}; "
            "fix other parameters, depth first"
        )
    return _one_maximum(at)


def _as_expression(parameter: str, value: Any) -> Expr:
    try:
        found = sympy.sympify(value, strict=True)
    except sympy.SympifyError:
        found = sympy.nan
    if found in (sympy.nan, sympy.zoo):
        raise InvalidInputError(
            f"{parameter} must go to a number, an expression or sympy.oo; got {value!r}; give one"
        )
    return found


def _evaluated(expression: Expr) -> Expr:
    """Sums of powers as closed expressions; sums over generations are kept."""

    def is_plain(term: Expr) -> bool:
        return isinstance(term, sympy.Sum) and not term.has(sympy.Max, sympy.Min)

    evaluated = expression.replace(is_plain, lambda total: total.doit())
    # the last exponents of a geometric series of 0 are at least 1
    return evaluated.replace(lambda t: t.is_Pow and t.base == 0, lambda _: sympy.Integer(0))


def _plain_indices(expression: Expr) -> Expr:
    """Summation indices as plain symbols instead of dummies."""
    return expression.xreplace(
        {x: sympy.Symbol(x.name, integer=True) for x in expression.atoms(sympy.Dummy)}
    )


def _tidy(expression: Expr, arguments: Mapping[str, Any]) -> Expr:
    """Simplify by the domains: e <= d, and generations that unlimited depth never delays."""
    if "exit_layer" not in arguments:
        return expression
    d, e = sympy.sympify(arguments["layers"]), sympy.sympify(arguments["exit_layer"])
    known = {sympy.Max(0, d - e): d - e}
    if arguments.get("depth", "limited") is None:
        reach, g = sympy.ceiling(d / e), sympy.Symbol("g", integer=True)
        free = sympy.Max(0, d - e * g)
        known |= {
            sympy.Max(0, d - e * reach): sympy.Integer(0),
            sympy.Min(e * (reach - g), free): d - e * g,
            free: d - e * g,
        }
        expression = _each_sum(expression.xreplace(known), _collected)
    else:
        expression = expression.xreplace(known)
    return expression.replace(lambda t: t.is_Mul, _together)


def _collected(total: Expr) -> Expr:
    """A sum with its summand factored, if shorter."""
    factored = sympy.powsimp(sympy.factor(sympy.expand_mul(total.function)), combine="base")
    return total.func(min(total.function, factored, key=_length), *total.limits)


def _each_sum(expression: Expr, change: Callable[[Expr], Expr]) -> Expr:
    return expression.xreplace({total: change(total) for total in expression.atoms(sympy.Sum)})


def _together(product: Expr) -> Expr:
    """A product whose sums of terms have one denominator, if shorter; a `Sum` stays as it is."""
    return product.func(
        *(x if x.has(sympy.Sum) else min(x, sympy.together(x), key=_length) for x in product.args)
    )


def _one_maximum(expression: Expr) -> Expr:
    """Rewrite x + c Max(0, y) as Max(x, x + c y), where that is shorter."""
    expanded = sympy.expand_mul(expression)
    maxima = [term for term in sympy.Add.make_args(expanded) if term.has(sympy.Max)]
    if len(maxima) != 1:
        return expression
    (term,) = maxima
    factor, maximum = term.as_independent(sympy.Max)
    if not (isinstance(maximum, sympy.Max) and 0 in maximum.args and factor.is_positive):
        return expression
    rest = expanded - term
    other = sympy.Max(*(x for x in maximum.args if x != 0))
    return min(sympy.Max(rest, sympy.simplify(rest + factor * other)), expression, key=_length)


def _length(expression: Expr) -> int:
    return int(sympy.count_ops(expression))
