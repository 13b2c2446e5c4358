"""JavaScript source of the closed forms, printed from their symbolic expressions."""

from __future__ import annotations

import inspect
from functools import cache

import sympy
from sympy.printing.jscode import JavascriptCodePrinter

from .catalogue import SYMBOLS, Expr, formula
from .expressions import expr


def javascript(*names: str) -> str:
    """JavaScript source of closed forms: one function each, of the same name and parameters.

    As in Python a `depth` of null is unlimited. Domains are not checked.

    Args:
        *names: some of `names()`.

    Returns:
        Self-contained source: a helper `sum`, then the functions.

    Raises:
        InvalidInputError: there is no closed form of one of the names.

    >>> print(javascript("threshold").splitlines()[-2])
      return 1/(price + 1);
    """
    return "\n".join([_SUM, *(_function(name) for name in names)])


_SUM = """const sum = (term, first, last) => {
  let total = 0;
  for (let index = first; index <= last; index += 1) total += term(index);
  return total;
};"""


@cache
def _function(name: str) -> str:
    entry, expression = formula(name), expr(name)
    named = {SYMBOLS[p]: sympy.Symbol(p) for p in entry.parameters}
    defaults = {
        p: "" if q.default is q.empty else f" = {q.default}"
        for p, q in inspect.signature(entry.function).parameters.items()
    }
    lines = [f"function {name}({', '.join(p + defaults[p] for p in entry.parameters)}) {{"]
    if "depth" in entry.parameters:
        reach = sympy.Max(sympy.ceiling(SYMBOLS["layers"] / SYMBOLS["exit_layer"]) - 1, 1)
        code = _JavaScript().doprint(reach.xreplace(named))
        lines.append(f"  depth = Math.min(depth ?? Infinity, {code});")
    code = _JavaScript().doprint(expression.xreplace(named))
    return "\n".join([*lines, f"  return {code};", "}"])


class _JavaScript(JavascriptCodePrinter):  # type: ignore[misc]
    """SymPy's printer, with the sums, extrema and steps of the formulas."""

    def _print_Sum(self, total: Expr) -> str:  # noqa: N802
        ((index, first, last),) = total.limits
        term, low, high = (self._print(x) for x in (total.function, first, last))
        return f"sum(({index}) => {term}, {low}, {high})"

    def _print_Heaviside(self, step: Expr) -> str:  # noqa: N802
        return f"({self._print(step.args[0])} > 0 ? 1 : 0)"
