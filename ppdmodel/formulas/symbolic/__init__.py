r"""The closed forms as SymPy expressions, by name: LaTeX, derivatives, limits; JavaScript.

All expressions come from calling the functions of `ppdmodel.formulas` on symbols; no formula is
written twice.

>>> from ppdmodel import symbolic
>>> symbolic.expr("latency_per_token", depth=None)
d - p*(d - e)
>>> symbolic.latex("threshold")
'\\frac{1}{\\pi + 1}'
"""

from .catalogue import SYMBOLS, WHOLE, Formula, catalogue, formula, names
from .expressions import derivative, expr, limit
from .javascript import javascript
from .notation import Statement, as_latex, latex, statement

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
