"""Expressions by name, derivatives and limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy

from ppdmodel import formulas
from ppdmodel.formulas import symbolic
from ppdmodel.formulas.symbolic.expressions import _one_maximum, _without_empty_start
from tests.support.backends import check_refusal_begins

p, d, e, k, D = (symbolic.SYMBOLS[n] for n in ("p_correct", "layers", "exit_layer", "k", "depth"))


def test_limits_and_derivatives() -> None:
    assert symbolic.limit("latency_per_token", "p_correct", 1) == sympy.Max(e, d / (D + 1))
    assert symbolic.limit("exchange_rate", "p_correct", 1) == k - 1
    assert symbolic.limit("threshold", "price", sympy.oo) == 0
    assert symbolic.limit("best_relative_exit", "exponent", sympy.oo) == 1
    assert symbolic.limit("compute_per_token", "k", p, depth=None) == d
    slope = symbolic.derivative("compute_per_token", "p_correct", depth=None)
    assert slope.subs({d: 40, e: 20, k: 3}).doit() == -20
    twice = symbolic.derivative("best_relative_exit", "exponent", "exponent")
    assert twice.subs(symbolic.SYMBOLS["exponent"], 1) == sympy.Rational(-1, 4)


def test_the_ends_of_a_domain_are_approached_from_inside() -> None:
    """Also an end that does not belong to it."""
    assert symbolic.limit("exchange_rate", "p_correct", 0) == sympy.oo
    assert symbolic.limit("break_even", "exit_layer", d, overhead=5) == sympy.oo * sympy.sign(1)
    wait = d * p**2 / (p + 1)
    assert symbolic.limit("latency_per_token", "exit_layer", 0, depth=1) == d - p * d + wait
    assert symbolic.limit("latency_per_token", "p_correct", 0) == d
    assert symbolic.limit("latency_per_token", "p_correct", 0.0) == d


def test_sums_are_written_with_symbols_of_whole_numbers() -> None:
    j = sympy.Symbol("j", integer=True)
    wait = sympy.Max(0, d - e * (D + 1)) * p ** (D + 1)
    latency = d - p * (d - e) + wait / sympy.Sum(p**j, (j, 0, D))
    assert symbolic.expr("latency_per_token") == latency
    for depth, is_a_sum in ((8, False), (9, True)):
        assert symbolic.expr("latency_per_token", depth=depth).has(sympy.Sum) == is_a_sum


def test_forms_are_as_short_as_the_domains_allow() -> None:
    assert str(symbolic.expr("compute_per_token", depth=1)) == (
        "d + (k - p)*(d - e + p*Min(e, d - e))/(p + 1)"
    )
    assert symbolic.expr("latency_per_token", depth=None) == d - p * (d - e)


def test_large_whole_numbers_leave_sums_as_sums() -> None:
    compute = symbolic.expr("compute_per_token", depth=50)
    assert compute.has(sympy.Sum)
    at = {p: sympy.Rational(1, 2), d: 80, e: 1, k: 1}
    exact = formulas.compute_per_token(sympy.Rational(1, 2), sympy.Integer(80), 1, 1, 50)
    assert compute.subs(at).doit() == exact
    slope = symbolic.derivative("latency_per_token", "p_correct", depth=20)
    assert slope.subs({p: 0, d: 40, e: 1}).doit() == -39


def test_fixed_values_may_be_numbers_or_expressions() -> None:
    x = sympy.Symbol("x", positive=True)
    assert symbolic.expr("exchange_rate", k=2, p_correct=x) == 2 / x - 1
    assert symbolic.expr("latency_per_token", layers=40, exit_layer=20, p_correct=0.75) == 25.0
    assert symbolic.expr("peak_units", layers=40, exit_layer=10, k=2, depth=None) == 15


def test_the_users_own_symbols_are_not_captured() -> None:
    """Summation indices are dummies: a user's j and g are not theirs."""
    j, g = sympy.symbols("j g", positive=True)
    latency = formulas.latency_per_token(j, 20, g, sympy.Symbol("n", integer=True, positive=True))
    value = latency.subs({sympy.Symbol("n", integer=True, positive=True): 3, j: 0.5, g: 2}).doit()
    assert float(value) == pytest.approx(formulas.latency_per_token(0.5, 20, 2, 3))


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: symbolic.expr("draft_tree"),
        "the formula must be a closed form; got 'draft_tree', a recursion; "
        "call ppdmodel.draft_tree itself",
    ),
    (
        lambda: symbolic.expr("threshold", depth=2),
        "threshold must be given its own parameters; got 'depth'; they are price",
    ),
    (
        lambda: symbolic.expr("latency_per_token", p_correct=2),
        "p_correct must lie in [0, 1]; got 2; give a probability",
    ),
    (
        lambda: symbolic.derivative("latency_per_token", "depth"),
        "a derivative must be along a real parameter; got depth; "
        "choose from p_correct, layers, exit_layer",
    ),
    (
        lambda: symbolic.derivative("latency_per_token", "p_correct", p_correct=0.5),
        "a derivative must be along a free parameter; got p_correct fixed; "
        "put its value into the result instead",
    ),
    (
        lambda: symbolic.limit("latency_per_token", "p_correct", 1, p_correct=0.5),
        "a limit must be along a free parameter; got p_correct fixed; leave it out",
    ),
    (
        lambda: symbolic.limit("latency_per_token", "p_correct", 2),
        "p_correct must lie in [0, 1]; got 2; give a probability",
    ),
    (
        lambda: symbolic.limit("exchange_rate", "k", 0),
        "k must be a number of at least 1; got 0; give the guesses per exit",
    ),
    (
        lambda: symbolic.limit("latency_per_token", "p_correct", sympy.oo),
        "p_correct must lie in [0, 1]; got oo; give a probability",
    ),
    (
        lambda: symbolic.limit("latency_per_token", "p_correct", "half"),
        "p_correct must go to a number, an expression or sympy.oo; got 'half'; give one",
    ),
    (
        lambda: symbolic.limit("latency_per_token", "layers", sympy.oo),
        "the limit must be one that SymPy finds; got latency_per_token at layers -> oo; "
        "fix other parameters, depth first",
    ),
    (
        lambda: symbolic.derivative("latency_per_token"),
        "a derivative must have a parameter; got none; give its name",
    ),
    (
        lambda: symbolic.limit("threshold", "k", 1),
        "threshold must be given its own parameters; got 'k'; they are price",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refusal_begins(call, message)


def test_a_maximum_of_unknowns_stays_as_it_is() -> None:
    x, y = sympy.symbols("x y")
    for unchanged in (1 + 2 * sympy.Max(x, y), 1 - sympy.Max(0, x), x + y):
        assert _one_maximum(unchanged) == unchanged


def test_a_sum_is_written_without_a_first_term_of_zero() -> None:
    j, n, x = sympy.symbols("j n x")
    for total, expected in (
        (sympy.Sum(j * x**j, (j, 0, n)), sympy.Sum(j * x**j, (j, 1, n))),
        (sympy.Sum(x**j, (j, 0, n)), sympy.Sum(x**j, (j, 0, n))),
        (sympy.Sum(j * x**j, (j, 2, n)), sympy.Sum(j * x**j, (j, 2, n))),
        (sympy.Sum(j * x**j, (j, 0, n), (x, 0, n)), sympy.Sum(j * x**j, (j, 0, n), (x, 0, n))),
    ):
        assert _without_empty_start(total) == expected
