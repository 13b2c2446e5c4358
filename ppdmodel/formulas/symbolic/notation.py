"""Closed forms in written notation: LaTeX, with abbreviations for long parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from .catalogue import SYMBOLS, Expr, formula
from .expressions import expr


@dataclass(frozen=True)
class Statement:
    """A formula in written notation: an expression and the meaning of its abbreviations.

    `where` maps each abbreviation to an expression in the symbols and the abbreviations before it,
    or, where it is itself a formula, to that formula's name with the fixed values in brackets.
    """

    expression: Expr
    where: Mapping[Expr, Any]


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
    """A closed form in written notation, with abbreviations for long parts.

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
    if target.is_Mul:  # a product may contain the quotient beside other factors
        return whole.replace(lambda t: t.is_Mul, lambda product: product.subs(target, symbol))
    return whole.xreplace({target: symbol, 1 - target: 1 - symbol})


def _used(whole: Expr, where: Mapping[Expr, Any]) -> set[Expr]:
    """The abbreviations that the expression uses, directly or through others."""
    used = {s for s in where if whole.has(s)}
    for symbol, meaning in reversed(list(where.items())):
        if symbol in used and not isinstance(meaning, str):
            used |= {s for s in where if meaning.has(s)}
    return used


#: letters for formulas inside ratios of them
_LETTERS = {
    "Lambda": "latency_per_token",
    "C": "compute_per_token",
    "T": "calibrated_latency",
    "T_0": "calibrated_plain_latency",
}


def _abbreviations(name: str, fixed: Mapping[str, Any]) -> list[tuple[Expr, Any]]:
    """Possible abbreviations, in order: formulas inside ratios, then terms of the theory."""
    found: list[tuple[Expr, Any]] = []
    for letter, inner in _LETTERS.items():
        if set(formula(inner).parameters) <= set(formula(name).parameters):
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
    depth = fixed.get("depth", SYMBOLS["depth"])
    if depth is None:
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
    """The abbreviations n and theta of theory/10-seconds.md."""
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
