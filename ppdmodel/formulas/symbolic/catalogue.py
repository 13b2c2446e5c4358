"""The registered formulas with their symbols, equations and proofs."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy

from ...errors import InvalidInputError
from ..registry import FORMULAS

Expr = Any  # SymPy has no types


def _symbol(name: str, **assumptions: bool) -> Expr:
    return sympy.Symbol(name, **(assumptions or {"positive": True}))


_COUNT = {"integer": True, "positive": True}

#: the symbol of each parameter: the theory's letter, with SymPy's assumptions
SYMBOLS: dict[str, Expr] = {
    "p_correct": _symbol("p"),
    "layers": _symbol("d"),
    "exit_layer": _symbol("e"),
    "k": _symbol("k"),
    "depth": _symbol("D", **_COUNT),
    "overhead": _symbol("o"),
    "tokens": _symbol("ell", **_COUNT),
    "matches": _symbol("h", nonnegative=True),
    "groups": _symbol("w", nonnegative=True),
    "autocorrelation": _symbol("rho", real=True),
    "share": _symbol("s"),
    "exponent": _symbol("a"),
    "price": _symbol("pi"),
    "acceptance_rate": _symbol("alpha"),
    "draft_tokens": _symbol("gamma", **_COUNT),
    "block_tokens": _symbol("gamma", **_COUNT),
    "draft_time": _symbol("c"),
    "draft_compute": _symbol("chat"),
    "reuse": _symbol("u"),
    "found_rate": _symbol("f"),
    "verification_time": _symbol("v"),
    "stages": _symbol("n", **_COUNT),
    "draft_layers": _symbol("L"),
    "tokens_per_round": _symbol("tau"),
    "tree_depth": _symbol("h", **_COUNT),
    "tree_nodes": _symbol("n", **_COUNT),
    "drafted_from": _symbol("n_i", **_COUNT),
    "units": _symbol("N", **_COUNT),
    "efficiency": _symbol("eta"),
    "layer_time": _symbol("tau"),
    "busy_layer_time": _symbol("tau_b"),
    "batch_layer_time": _symbol("tau_k"),
    "head_time": _symbol("h"),
    "plain_head_time": _symbol("h_0"),
    "exit_time": _symbol("x"),
    "token_time": _symbol("a"),
    "start_delay": _symbol("s"),
    "promotion_delay": _symbol("m"),
    "unfinished": _symbol("phi"),
    "link_time": _symbol("delta"),
    "all_reduce_time": _symbol("r"),
    "all_reduce_messages": _symbol("mu"),
    "messages_per_match": _symbol("q"),
    "weights": _symbol("w"),
    "rows": _symbol("r", **_COUNT),
    "bytes_per_weight": _symbol("b"),
    "bytes_per_second": _symbol("B"),
    "flops_per_second": _symbol("F"),
}

#: whole-number parameters, which have no derivative
WHOLE = tuple(name for name, symbol in SYMBOLS.items() if symbol.is_integer)


@dataclass(frozen=True)
class Formula:
    """One entry of the catalogue: a formula's name, summary and derivation.

    `page` and `test` are paths in the project's repository; `written` is the docstring's equation,
    in LaTeX. A recursion has no `expr`: call the function itself.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[str, ...]
    summary: str
    page: str
    equation: str
    test: str
    written: tuple[str, ...]
    is_recursion: bool


def names() -> tuple[str, ...]:
    """The closed forms, in the order of their equations.

    >>> names()[0]
    'latency_per_token'
    """
    return tuple(entry.name for entry in catalogue() if not entry.is_recursion)


@cache
def catalogue() -> tuple[Formula, ...]:
    """All formulas, recursions too, in the order of their equations."""
    found = [_entry(name) for name in FORMULAS]
    return tuple(sorted(found, key=lambda f: tuple(int(n) for n in f.equation.split("."))))


def formula(name: str) -> Formula:
    """The catalogue entry of one formula.

    Raises:
        InvalidInputError: there is no formula of that name.

    >>> formula("latency_per_token").equation
    '2.1'
    """
    known = {entry.name: entry for entry in catalogue()}
    if not isinstance(name, str) or name not in known:
        close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        hint = f"closest are {', '.join(close)}; " if close else ""
        raise InvalidInputError(
            f"the formula must be a known one; got {name!r}; {hint}list them: ppdmodel formulas"
        )
    return known[name]


def _entry(name: str) -> Formula:
    function, equation, page, is_recursion = FORMULAS[name]
    text = inspect.getdoc(function) or ""
    return Formula(
        name=name,
        function=function,
        parameters=tuple(inspect.signature(function).parameters),
        summary=re.split(r"[:,]? \$|\.\s", text)[0],
        page=f"theory/{page}.md",
        equation=equation,
        test=f"tests/theory/test_{page.replace('-', '_')}.py",
        written=tuple(" ".join(x.split()) for x in _EQUATION.findall(text.partition("Args")[0])),
        is_recursion=is_recursion,
    )


#: LaTeX between dollar signs
_EQUATION = re.compile(r"\$([^$]+)\$")


def check_parameters(entry: Formula, given: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` for a parameter that the formula does not have."""
    for parameter in given:
        if parameter not in entry.parameters:
            raise InvalidInputError(
                f"{entry.name} must be given its own parameters; got {parameter!r}; "
                f"they are {', '.join(entry.parameters)}"
            )
