"""Page 5: Markov-correlated matches, from the recursion (1.1), in symbols."""

from __future__ import annotations

import itertools

import pytest
import sympy

from ppdmodel import formulas
from ppdmodel.formulas import symbolic
from tests.theory import chain
from tests.theory.latex import equations, letters_of, tagged_equations
from tests.theory.test_01_setting import recursion
from tests.theory.test_03_compute import family_at

p, d, e, k, rho = (
    symbolic.SYMBOLS[n] for n in ("p_correct", "layers", "exit_layer", "k", "autocorrelation")
)
again, anew = p + rho * (1 - p), p * (1 - rho)


def test_the_chain_has_this_rate_and_autocorrelation() -> None:
    """(5.1), as written."""
    written = equations(tagged_equations("05-correlation.md")["5.1"])
    assert sympy.expand(written["b"] - letters_of(again)) == 0
    assert sympy.expand(written["c"] - letters_of(anew)) == 0
    assert sympy.expand((1 - p) * anew + p * again - p) == 0
    assert sympy.expand(again - anew - rho) == 0


def test_a_symbol_of_the_chain_is_that_of_the_formula() -> None:
    assert chain.p == p
    assert chain.k == k


@pytest.mark.parametrize("schedule", chain.SCHEDULES, ids=str)
def test_the_chain_of_the_recursion_has_this_latency_and_compute(schedule: chain.Schedule) -> None:
    """(5.2) and (5.3): exactly in p, k and, for D = 1, in rho too; else at two values of it."""
    values = [chain.rho] if schedule.depth == 1 else [sympy.Rational(2, 5), sympy.Rational(-1, 5)]
    for value in values:
        at = {"layers": schedule.d, "exit_layer": schedule.e, "depth": schedule.depth}
        for name, exact in (
            ("correlated_latency", chain.latency(schedule, value)),
            ("correlated_compute", chain.compute(schedule, value)),
        ):
            formula = symbolic.expr(name, **at, autocorrelation=value)
            assert chain.equal(exact, formula), (name, value)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_places_add_up(depth: int) -> None:
    """The page's place probabilities: stationary, and (5.3) is their mean."""
    size = depth + 1
    b = sympy.Symbol("b", positive=True)
    total = sum(b**j for j in range(size))
    share = [1 - p + p * b**depth / total] + [p * b ** (r - 1) / total for r in range(1, size)]
    matching = [p * b**r / total for r in range(size)]
    assert sympy.cancel(sum(share) - 1) == 0
    assert sympy.cancel(sum(matching) - p) == 0
    for r in range(depth):
        assert sympy.cancel(matching[r] - share[r + 1]) == 0
    compute = d + sum(family_at(r, depth) * (k * share[r] - matching[r]) for r in range(size))
    formula = symbolic.expr("correlated_compute", depth=depth)
    for layers, exit_layer in ((9, 1), (9, 2), (9, 5)):
        at = {d: layers, e: exit_layer}
        one, other = compute.subs(at).subs(b, again), formula.subs(at)
        assert chain.equal(one, other)


def test_independence_is_the_special_case() -> None:
    for name, plain in (
        ("correlated_latency", "latency_per_token"),
        ("correlated_compute", "compute_per_token"),
        ("correlated_total_latency", "expected_total_latency"),
    ):
        for depth, layers, exit_layer in ((1, 9, 2), (2, 9, 2), (3, 9, 1), (2, 9, 4)):
            at = {"layers": layers, "exit_layer": exit_layer, "depth": depth}
            if "total" in name:
                at["tokens"] = 9
            chained = symbolic.expr(name, **at, autocorrelation=0)
            assert chain.equal(chained.doit(), symbolic.expr(plain, **at).doit())


def test_deep_schedules_do_not_notice() -> None:
    assert symbolic.expr("correlated_latency", depth=None) == d - p * (d - e)
    assert (
        sympy.expand(
            symbolic.expr("correlated_compute", depth=1, layers=10, exit_layer=6)
            - symbolic.expr("compute_per_token", depth=1, layers=10, exit_layer=6)
        )
        == 0
    )


def test_the_example() -> None:
    exact = symbolic.expr(
        "correlated_latency",
        layers=8,
        exit_layer=1,
        depth=1,
        p_correct=sympy.Rational(1, 2),
        autocorrelation=sympy.Rational(3, 5),
    )
    assert exact == sympy.Rational(35, 6)
    assert formulas.latency_per_token(0.5, 8, 1) == 5.5


@pytest.mark.parametrize("tokens", [1, 2, 3, 6])
@pytest.mark.parametrize(("layers", "exit_layer", "depth"), [(8, 1, 1), (9, 2, 2), (8, 5, 1)])
def test_the_total_of_all_sequences(tokens: int, layers: int, exit_layer: int, depth: int) -> None:
    """(5.4), and (5.5) where it holds, as polynomials in p and rho."""
    polynomials = sympy.QQ[p, rho]
    mean = square = polynomials.zero
    after = {match: polynomials.from_sympy(rate) for match, rate in ((True, again), (False, anew))}
    for matches in itertools.product([True, False], repeat=tokens - 1):
        weight, rate = polynomials.one, polynomials.from_sympy(p)
        for match in matches:
            weight *= rate if match else 1 - rate
            rate = after[match]
        total = recursion(list(matches), layers, exit_layer, depth)[-1]
        mean += weight * total
        square += weight * total**2
    at = {"layers": layers, "exit_layer": exit_layer, "tokens": tokens}
    formula = symbolic.expr("correlated_total_latency", **at, depth=depth)
    assert mean == polynomials.from_sympy(formula.doit())
    if (depth + 1) * exit_layer >= layers:
        variance = symbolic.expr("total_latency_variance", **at).doit()
        assert square - mean**2 == polynomials.from_sympy(variance)


def test_the_spread_of_a_long_generation() -> None:
    """The variance goes to (1+rho)/(1-rho) times that of independent matches."""
    for value in (0.3, 0.6, -0.2):
        ratio = formulas.total_latency_variance(
            0.5, 40, 20, 20_000, value
        ) / formulas.total_latency_variance(0.5, 40, 20, 20_000)
        assert ratio == pytest.approx((1 + value) / (1 - value), rel=1e-3)
