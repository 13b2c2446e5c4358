"""Page 3: compute, from the recursion (1.1), in symbols."""

from __future__ import annotations

import pytest
import sympy

from ppdmodel.formulas import symbolic
from tests.theory import chain
from tests.theory.latex import letters_of, parsed, tagged_equations

p, d, e, k = (symbolic.SYMBOLS[name] for name in ("p_correct", "layers", "exit_layer", "k"))
WRITTEN = tagged_equations("03-compute.md")


def generation(depth: int, g: int) -> tuple[sympy.Expr, sympy.Expr]:
    """a_g and b_g."""
    free = sympy.Max(d - g * e, 0)
    return free, sympy.Min(free, (depth + 1 - g) * e)


def family_at(place: int, depth: int) -> sympy.Expr:
    """W_r, (3.2)."""
    return sum(
        k ** (g - 1) * generation(depth, g)[0 if g <= depth - place else 1]
        for g in range(1, depth + 1)
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_mean_over_the_places_is_the_closed_form(depth: int) -> None:
    total = sum(p**j for j in range(depth + 1))
    mean = sum(p**r / total * family_at(r, depth) for r in range(depth + 1))
    formula = letters_of(symbolic.expr("compute_per_token", depth=depth))
    difference = formula - letters_of(d + (k - p) * mean)
    for layers, exit_layer in ((8, 1), (9, 2), (9, 3), (7, 4), (5, 5)):
        at = {sympy.Symbol("d"): layers, sympy.Symbol("e"): exit_layer}
        assert sympy.cancel(difference.subs(at)) == 0


@pytest.mark.parametrize(("layers", "exit_layer"), [(8, 1), (9, 2), (9, 4)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_the_page_says_a_place_executes(depth: int, layers: int, exit_layer: int) -> None:
    """(3.2) as written: its sums written out, since the parser's a_g is one symbol for every g."""
    written = parsed(WRITTEN["3.2"].split("=", 1)[1].rstrip(". \n"))
    at = {sympy.Symbol("d"): layers, sympy.Symbol("e"): exit_layer}
    for place in range(depth + 1):
        numbers = {sympy.Symbol("D"): depth, sympy.Symbol("r"): place}
        total = 0
        for part in written.atoms(sympy.Sum):
            index, first, last = part.limits[0]
            for g in range(int(first.subs(numbers)), int(last.subs(numbers)) + 1):
                free, held = (letters_of(x).subs(at) for x in generation(depth, g))
                values = {sympy.Symbol("a_g"): free, sympy.Symbol("b_g"): held, index: g}
                total += part.function.subs(values)
        assert sympy.expand(total - letters_of(family_at(place, depth)).subs(at)) == 0


@pytest.mark.parametrize("schedule", chain.SCHEDULES, ids=str)
def test_the_chain_of_the_recursion_has_this_compute(schedule: chain.Schedule) -> None:
    """No step of the page is used: dropped families are followed through (1.1), exactly in p, k."""
    formula = symbolic.expr(
        "compute_per_token", layers=schedule.d, exit_layer=schedule.e, depth=schedule.depth
    )
    assert chain.equal(chain.compute(schedule), formula)


def test_deep_schedules_need_no_places() -> None:
    """(3.3): for (D+1)e >= d every place executes the same."""
    for layers, exit_layer, depth in ((8, 4, 1), (9, 3, 2), (9, 5, 3), (12, 3, 3), (12, 3, 5)):
        at = {d: layers, e: exit_layer}
        expected = sum(k ** (g - 1) * max(layers - g * exit_layer, 0) for g in range(1, depth + 1))
        written = parsed(WRITTEN["3.3"].split("=", 1)[1].split(r"\quad")[0])
        numbers = {sympy.Symbol(x): v for x, v in (("d", layers), ("e", exit_layer), ("D", depth))}
        assert sympy.expand(written.subs(numbers).doit() - letters_of(expected)) == 0
        for place in range(depth + 1):
            assert sympy.expand(family_at(place, depth).subs(at) - expected) == 0
        unlimited = symbolic.expr("compute_per_token", depth=None).subs(at).doit()
        assert sympy.expand(unlimited - (layers + (k - p) * expected)) == 0


def test_the_simplest_case() -> None:
    """D = 1, e >= d/2."""
    formula = symbolic.expr("compute_per_token", depth=1)
    late = formula.subs(sympy.Min(e, d - e), d - e)
    assert sympy.simplify(late - (d + (k - p) * (d - e))) == 0


def test_units_are_ratios_and_products() -> None:
    """(3.4), (3.5) and (3.7) in terms of the others."""
    latency, compute = (symbolic.expr(n) for n in ("latency_per_token", "compute_per_token"))
    assert sympy.simplify(symbolic.expr("normalized_compute") - compute / d) == 0
    assert sympy.simplify(symbolic.expr("mean_units") - compute / latency) == 0
    peak = symbolic.expr("peak_units")
    assert symbolic.expr("reserved_units") == peak * latency
