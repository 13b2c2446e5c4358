"""What the pages and the docstrings say is what the functions compute.

Each page's equation and each docstring's is parsed and compared with the function's symbolic form:
exactly, in rational numbers, on random points.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import pytest
import sympy

from ppdmodel import best_exit
from ppdmodel.formulas import symbolic
from tests.support.grids import arguments
from tests.theory.latex import THEORY, computed, equations, parsed, resolved, tagged_equations

#: its equation has a case in the text; it has a test of its own below
NAMES = [name for name in symbolic.names() if name != "best_exit"]
#: what the docstrings of other functions take from that of `compute_per_token`
SHARED = tagged_equations("03-compute.md")["3.1"].partition(r"\qquad")[2]


def exact_value(expression: Any, point: Mapping[Any, Any]) -> Any:
    """The value at a point in rational numbers, worked out from the symbols up.

    `subs` puts in one symbol after another, and works out signs of what is left each time.
    """
    if isinstance(expression, sympy.Sum):
        ((index, *bounds),) = expression.limits
        first, last = (int(exact_value(bound, point)) for bound in bounds)
        terms = (
            exact_value(expression.function, {**point, index: sympy.Integer(j)})
            for j in range(first, last + 1)
        )
        return sum(terms, start=sympy.Integer(0))
    if not expression.args:
        return point.get(expression, expression)
    return expression.func(*(exact_value(x, point) for x in expression.args))


def assert_same(written: Any, name: str, points: int = 12) -> None:
    ours_in_symbols = computed(name)
    rng = random.Random(f"exact {name}")
    for _ in range(points):
        drawn = arguments(name, rng)
        point = {p: sympy.Rational(x).limit_denominator(20) for p, x in drawn.items()}
        for rate in ("p_correct", "acceptance_rate"):  # not rounded to a pole
            if rate in point:
                point[rate] = min(max(point[rate], sympy.Rational(1, 20)), sympy.Rational(19, 20))
        at = {sympy.Symbol(symbolic.SYMBOLS[p].name): x for p, x in point.items()}
        ours, theirs = (exact_value(x, at) for x in (ours_in_symbols, written))
        assert ours.is_Rational
        assert ours == theirs, (name, point, ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_function_computes(name: str) -> None:
    entry = symbolic.formula(name)
    found = tagged_equations(entry.page.removeprefix("theory/"))
    assert_same(resolved(found[entry.equation], name), name)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_what_the_function_computes(name: str) -> None:
    written = symbolic.formula(name).written
    main = next((part for part in written if " = " in part), f"x = {written[0]}")
    rest = [part for part in written if " = " in part and part != main]
    known = {part.split(" = ")[0] for part in rest}
    shared = [f"{left} = {right}" for left, right in _shared() if left not in known]
    assert_same(resolved(r"\quad ".join([main, *rest, *shared]), name), name)


def _shared() -> list[tuple[str, str]]:
    parts = [part.strip().rstrip(",") for part in SHARED.split(r"\qquad")]
    return [(left, right) for left, _, right in (part.partition(" = ") for part in parts)]


def test_a_wrong_equation_would_be_noticed() -> None:
    right = tagged_equations("02-latency.md")["2.1"]
    for old, new in (("D+1", "D"), ("j=0", "j=1"), ("d - p", "d + p"), (r"\max", r"\min")):
        assert old in right
        with pytest.raises(AssertionError):
            assert_same(resolved(right.replace(old, new), ""), "latency_per_token")


def test_the_best_exit_is_the_one_that_page_and_docstring_say() -> None:
    page = (THEORY / "07-decisions.md").read_text("utf-8")
    docstring = "$".join(symbolic.formula("best_exit").written)
    (equation,) = [e for tag, e in tagged_equations("07-decisions.md").items() if tag == "7.5"]
    rounded = equations(equation)
    for text in (page, docstring):
        case = re.search(r"\(e_0/\(e_0\+1\)\)\^a[^$]*?>[^$]*", text)
        assert case is not None
        left, right = (parsed(side) for side in case[0].split(">"))
        for a in (1, 2, 3, 7):
            for d in range(1, 40):
                at = {sympy.Symbol("a"): sympy.Integer(a), sympy.Symbol("d"): sympy.Integer(d)}
                at |= {sympy.Symbol("e_0"): exact_value(rounded["e_0"], at)}
                is_first = exact_value(left, at) > exact_value(right, at)
                at |= {sympy.Symbol("theta"): sympy.Integer(bool(is_first))}
                assert exact_value(rounded["e^ast"], at) == best_exit(a, d)


def test_every_numbered_equation_of_a_formula_is_that_formula_alone() -> None:
    entries = symbolic.catalogue()
    assert len({entry.equation for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.equation in tagged_equations(entry.page.removeprefix("theory/")), entry
        assert (THEORY.parent / entry.test).is_file(), entry
        page = (THEORY.parent / entry.page).read_text("utf-8")
        assert f"`ppdmodel.{entry.name}`" in page, entry.name
