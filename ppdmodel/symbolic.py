r"""The closed forms as SymPy expressions, by name: LaTeX, derivatives, limits; JavaScript.

Everything here is made by calling the functions of `ppdmodel.formulas` on symbols; no formula is
typed again.

>>> from ppdmodel import symbolic
>>> symbolic.expr("latency_per_token", depth=None)
d - p*(d - e)
>>> symbolic.latex("threshold")
'\\frac{1}{\\pi + 1}'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from . import formulas
from .catalogue import SYMBOLS, WHOLE, Expr, Formula, catalogue, check_parameters, formula, names
from .errors import InvalidInputError
from .formulas.contract import DOMAINS, check

__all__ = [
    "SYMBOLS",
    "WHOLE",
    "Formula",
    "Statement",
    "as_latex",
    "catalogue",
    "derivative",
    "expr",
    "formula",
    "javascript",
    "latex",
    "limit",
    "names",
    "statement",
]


@dataclass(frozen=True)
class Statement:
    """A formula as one writes it: an expression, and what its abbreviations stand for.

    `where` maps each abbreviation to an expression in the symbols and the abbreviations before it,
    or, where it is itself a formula, to that formula's name, with what was fixed in brackets.
    """

    expression: Expr
    where: Mapping[Expr, Any]


#: up to this whole number a sum is written out term by term
_FEW = 8


def expr(name: str, **fixed: Any) -> Expr:
    """A closed form as a SymPy expression in `SYMBOLS`.

    For numbers, call the function of `ppdmodel.formulas` itself; `sympy.lambdify` can do its sums
    with `modules="math"`.

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
    entry = formula(name)
    if entry.is_recursion:
        raise InvalidInputError(
            f"the formula must be a closed form; got {name!r}, a recursion; "
            f"call ppdmodel.{name} itself"
        )
    check_parameters(entry, fixed)
    given = {p: fixed.get(p, SYMBOLS[p]) for p in entry.parameters}
    # sums over more than a few terms stay sums
    large = {p: n for p, n in fixed.items() if p in WHOLE and isinstance(n, int) and n > _FEW}
    arguments = given | {p: SYMBOLS[p] for p in large}
    result = sympy.sympify(getattr(formulas, name)(**arguments))
    result = result.subs({SYMBOLS[p]: sympy.Integer(n) for p, n in large.items()})
    return _tidy(_plain_indices(result), given)


def derivative(name: str, *parameters: str, **fixed: Any) -> Expr:
    """The derivative of a closed form along one or more real parameters, in that order.

    At a kink, where (D+1)e = d, it holds Heaviside functions: it differs on the two sides.

    Raises:
        InvalidInputError: as `expr`, or a parameter is a whole number.

    >>> derivative("latency_per_token", "p_correct", depth=None)
    -d + e
    """
    entry = formula(name)
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
    whole = expr(name, **fixed)
    for parameter in parameters:
        whole = _slope(whole, SYMBOLS[parameter])
    return whole


def _slope(expression: Expr, along: Expr) -> Expr:
    """The derivative, with rounded numbers and steps constant: between jumps they are."""
    jumps = expression.atoms(sympy.ceiling, sympy.floor, sympy.Heaviside)
    steps = {x: sympy.Dummy(integer=True) for x in jumps}
    slope = sympy.diff(expression.xreplace(steps), along)
    back = {dummy: x for x, dummy in steps.items()}
    return _each_sum(_plain_indices(slope.xreplace(back)), _without_empty_start)


def _without_empty_start(total: Expr) -> Expr:
    """The derivative of a sum of powers, from the first power that has one."""
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
    has_end = value == 0 or (value == sympy.oo and bool(DOMAINS[parameter][1](1e9)))
    if not has_end:  # what is no end of an open domain must lie inside
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
    """Sums of powers as closed expressions; those over generations stay."""

    def is_plain(term: Expr) -> bool:
        return isinstance(term, sympy.Sum) and not term.has(sympy.Max, sympy.Min)

    evaluated = expression.replace(is_plain, lambda total: total.doit())
    # the last exponents of a geometric series of 0 are at least 1
    return evaluated.replace(lambda t: t.is_Pow and t.base == 0, lambda _: sympy.Integer(0))


def latex(name: str, **fixed: Any) -> str:
    r"""A closed form as LaTeX, with the abbreviations of `statement`.

    Raises:
        InvalidInputError: as `expr`.

    >>> latex("exchange_rate")
    '\\frac{k}{p} - 1'
    """
    return as_latex(statement(name, **fixed))


def as_latex(said: Statement) -> str:
    """A statement as LaTeX, its abbreviations after it."""
    lines = [sympy.latex(said.expression)]
    for symbol, meaning in said.where.items():
        is_name = isinstance(meaning, str)
        right = _named(meaning) if is_name else sympy.latex(meaning)
        lines.append(f"{sympy.latex(symbol)} = {right}")
    return r",\quad ".join(lines)


def _named(formula_name: str) -> str:
    return r"\text{" + formula_name.replace("_", r"\_") + "}"


def statement(name: str, **fixed: Any) -> Statement:
    """A closed form as one writes it, with abbreviations for what would hide its shape.

    Raises:
        InvalidInputError: as `expr`.

    >>> statement("speedup").expression
    d/Lambda
    """
    whole = expr(name, **fixed)
    where: dict[Expr, Any] = {}
    for symbol, meaning in _abbreviations(name, fixed):
        target, shown = meaning if isinstance(meaning, tuple) else (meaning, None)
        for known, definition in where.items():
            if not isinstance(definition, str):
                target = target.xreplace({definition: known})
        shorter = _abbreviated(whole, target, symbol)
        if shorter not in (whole, symbol):
            whole = shorter
            where[symbol] = shown or target
    used = _used(whole, where)
    return Statement(whole, {s: m for s, m in where.items() if s in used})


def _abbreviated(whole: Expr, target: Expr, symbol: Expr) -> Expr:
    if target.is_Mul:  # a quotient may be among other factors
        return whole.replace(lambda t: t.is_Mul, lambda product: product.subs(target, symbol))
    return whole.xreplace({target: symbol, 1 - target: 1 - symbol})


def _used(whole: Expr, where: Mapping[Expr, Any]) -> set[Expr]:
    """The abbreviations that the expression or another one in use mentions."""
    used = {s for s in where if whole.has(s)}
    for symbol, meaning in reversed(list(where.items())):
        if symbol in used and not isinstance(meaning, str):
            used |= {s for s in where if meaning.has(s)}
    return used


#: what formulas are called inside ratios of them
_LETTERS = {
    "Lambda": "latency_per_token",
    "C": "compute_per_token",
    "T": "calibrated_latency",
    "T_0": "calibrated_plain_latency",
}


def _abbreviations(name: str, fixed: Mapping[str, Any]) -> list[tuple[Expr, Any]]:
    """What may be abbreviated, in order: formulas inside ratios, then parts of the theory."""
    found: list[tuple[Expr, Any]] = []
    for letter, inner in _LETTERS.items():
        if inner != name and set(formula(inner).parameters) <= set(formula(name).parameters):
            known = {p: v for p, v in fixed.items() if p in formula(inner).parameters}
            shown = ", ".join(f"{p}={v}" for p, v in known.items())
            named = f"{inner}({shown})" if shown else inner
            found.append((sympy.Symbol(letter), (expr(inner, **known), named)))
    if "batch_layer_time" in formula(name).parameters:
        found += _in_time(fixed)
    p, d, e, rho, share, a = (
        SYMBOLS[n]
        for n in ("p_correct", "layers", "exit_layer", "autocorrelation", "share", "exponent")
    )
    depth = sympy.sympify(fixed.get("depth", SYMBOLS["depth"]))
    if fixed.get("depth", 1) is None:
        return found
    again = p + rho * (1 - p)
    found.append((sympy.Symbol("b"), again))
    found.append((sympy.Symbol("e_0"), sympy.floor(a * d / (a + 1))))
    if "compute" not in name:
        found.append((sympy.Symbol("g"), sympy.Max(0, d - e * (depth + 1))))
        return found
    j, g = (sympy.Symbol(letter, integer=True) for letter in "jg")
    free = sympy.Max(0, d - e * g)
    found.append((sympy.Symbol("a_g"), free))
    found.append((sympy.Symbol("b_g"), sympy.Min(e * (depth + 1 - g), free)))
    base = {"correlated_compute": again, "gated_compute": share * p}.get(name, p)
    total = sympy.Sum(base**j, (j, 0, depth))
    found.append((sympy.Symbol("B"), total))
    found.append((sympy.Symbol("Q_g"), sympy.Sum(base**j, (j, 0, depth - g)) / total))
    earlier = base**depth + sympy.Sum(base**j, (j, 0, depth - g - 1))
    found.append((sympy.Symbol("Pi_g"), 1 - p + p * earlier / total))
    return found


def _in_time(fixed: Mapping[str, Any]) -> list[tuple[Expr, Any]]:
    """What sub-processes run before a verdict, and whether any: theory/10-seconds.md."""
    d, e, busy, batch, head, reading, start = (
        sympy.sympify(fixed.get(n, SYMBOLS[n]))
        for n in (
            "layers", "exit_layer", "busy_layer_time", "batch_layer_time",
            "head_time", "exit_time", "start_delay",
        )
    )  # fmt: skip
    ahead = sympy.Max(0, (d - e) * busy + head - start - reading) / batch
    in_time = sympy.ceiling(sympy.Min(ahead, 1))
    return [(sympy.Symbol("n"), ahead), (sympy.Symbol("theta"), in_time)]


def _plain_indices(expression: Expr) -> Expr:
    """Summation indices as symbols of their own name."""
    return expression.xreplace(
        {x: sympy.Symbol(x.name, integer=True) for x in expression.atoms(sympy.Dummy)}
    )


def _tidy(expression: Expr, arguments: Mapping[str, Any]) -> Expr:
    """What the domains allow to drop: e <= d, and generations that unlimited depth leaves room."""
    if "exit_layer" not in arguments:
        return expression
    d, e = sympy.sympify(arguments["layers"]), sympy.sympify(arguments["exit_layer"])
    known = {sympy.Max(0, d - e): d - e}
    if arguments.get("depth", 1) is None:
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
    """A sum whose summand says nothing twice."""
    factored = sympy.powsimp(sympy.factor(sympy.expand_mul(total.function)), combine="base")
    return total.func(min(total.function, factored, key=_length), *total.limits)


def _each_sum(expression: Expr, change: Callable[[Expr], Expr]) -> Expr:
    return expression.xreplace({total: change(total) for total in expression.atoms(sympy.Sum)})


def _together(product: Expr) -> Expr:
    """A product whose factors of several fractions stand over one denominator, if shorter."""
    return product.func(
        *(min(x, sympy.together(x), key=_length) if _fractions(x) > 1 else x for x in product.args)
    )


def _fractions(factor: Expr) -> int:
    if not factor.is_Add or factor.has(sympy.Sum):
        return 0
    return sum(sympy.fraction(sympy.together(term))[1] != 1 for term in factor.args)


def _one_maximum(expression: Expr) -> Expr:
    """A term c Max(0, y) beside x as Max(x, x + c y), where that is shorter."""
    expanded = sympy.expand_mul(expression)
    maxima = [term for term in sympy.Add.make_args(expanded) if term.has(sympy.Max)]
    if len(maxima) != 1:
        return expression
    factor, maximum = maxima[0].as_independent(sympy.Max)
    if not (isinstance(maximum, sympy.Max) and 0 in maximum.args and factor.is_positive):
        return expression
    rest = expanded - maxima[0]
    other = sympy.Max(*(x for x in maximum.args if x != 0))
    return min(sympy.Max(rest, sympy.simplify(rest + factor * other)), expression, key=_length)


def _length(expression: Expr) -> int:
    return int(sympy.count_ops(expression))


def javascript(*names: str) -> str:
    """JavaScript source of closed forms: one function each, of the same name and parameters.

    As in Python a `depth` of null is unlimited. Domains are not checked.

    Args:
        *names: some of `names()`.

    Returns:
        Source that needs nothing else: a helper `sum`, then the functions.

    Raises:
        InvalidInputError: there is no closed form of one of the names.

    >>> print(javascript("threshold").splitlines()[-2])
      return 1/(price + 1);
    """
    from .codegen import javascript_source

    return javascript_source(names)
