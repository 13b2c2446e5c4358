"""Expressions by name, and what is made of them: statements, LaTeX, derivatives, JavaScript."""

from __future__ import annotations

import inspect
import json
import random
from typing import Any

import numpy as np
import pytest
import sympy
from py_mini_racer import MiniRacer

from ppdmodel import formulas
from ppdmodel.errors import InvalidInputError
from ppdmodel.formulas import symbolic
from tests.support.grids import arguments

NAMES = symbolic.names()
p, d, e, k, D = (symbolic.SYMBOLS[n] for n in ("p_correct", "layers", "exit_layer", "k", "depth"))


def test_the_catalogue_holds_every_formula() -> None:
    entries = {entry.name for entry in symbolic.catalogue()}
    assert entries == set(formulas.__all__) - {"DraftTree"}
    recursions = {entry.name for entry in symbolic.catalogue() if entry.is_recursion}
    assert recursions == {
        "calibrated_early_latency",
        "draft_tree",
        "multi_exit_compute",
        "multi_exit_latency",
    }
    assert set(NAMES) == entries - recursions
    for entry in symbolic.catalogue():
        assert entry.summary.isascii()
        assert not entry.summary.endswith((".", ",", ":")), entry
        assert entry.written, entry


def test_expressions_as_one_writes_them() -> None:
    wait = sympy.Symbol("g")
    said = symbolic.statement("latency_per_token")
    assert said.where == {wait: sympy.Max(0, d - e * (D + 1))}
    j = sympy.Symbol("j", integer=True)
    assert said.expression == d - p * (d - e) + wait * p ** (D + 1) / sympy.Sum(p**j, (j, 0, D))
    assert str(symbolic.expr("compute_per_token", depth=1)) == (
        "d + (k - p)*(d - e + p*Min(e, d - e))/(p + 1)"
    )
    assert str(symbolic.statement("mean_units").expression) == "C/Lambda"
    assert symbolic.statement("mean_units").where == {
        sympy.Symbol("Lambda"): "latency_per_token",
        sympy.Symbol("C"): "compute_per_token",
    }
    compute = symbolic.statement("compute_per_token")
    assert str(compute.expression) == (
        "d + (k - p)*Sum(k**(g - 1)*(Q_g*a_g + b_g*(1 - Q_g)), (g, 1, D))"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_is_its_expression(name: str) -> None:
    """Putting the abbreviations back gives the expression."""
    said = symbolic.statement(name)
    expression = said.expression
    for symbol, meaning in reversed(list(said.where.items())):
        value = symbolic.expr(meaning) if isinstance(meaning, str) else meaning
        expression = expression.xreplace({symbol: value})
    assert sympy.expand(expression - symbolic.expr(name)) == 0 or (
        expression.doit() - symbolic.expr(name).doit()
    ).equals(0)


@pytest.mark.parametrize("name", NAMES)
def test_latex_has_no_python_in_it(name: str) -> None:
    text = symbolic.latex(name)
    for word in ("Max", "Min", "Sum", "**", "Dummy", "Heaviside"):
        assert word not in text


def test_limits_and_derivatives() -> None:
    assert symbolic.limit("latency_per_token", "p_correct", 1) == sympy.Max(e, d / (D + 1))
    assert symbolic.limit("exchange_rate", "p_correct", 1) == k - 1
    assert symbolic.limit("threshold", "price", sympy.oo) == 0
    assert symbolic.limit("compute_per_token", "k", p, depth=None) == d
    slope = symbolic.derivative("compute_per_token", "p_correct", depth=None)
    assert slope.subs({d: 40, e: 20, k: 3}).doit() == -20
    twice = symbolic.derivative("best_relative_exit", "exponent", "exponent")
    assert twice.subs(symbolic.SYMBOLS["exponent"], 1) == sympy.Rational(-1, 4)


def test_large_whole_numbers_leave_sums_as_sums() -> None:
    compute = symbolic.expr("compute_per_token", depth=50)
    assert compute.has(sympy.Sum)
    at = {p: sympy.Rational(1, 2), d: 80, e: 1, k: 1}
    exact = formulas.compute_per_token(sympy.Rational(1, 2), sympy.Integer(80), 1, 1, 50)
    assert compute.subs(at).doit() == exact
    slope = symbolic.derivative("latency_per_token", "p_correct", depth=20)
    assert slope.subs({p: 0, d: 40, e: 1}).doit() == -39


def test_what_is_fixed_is_said() -> None:
    assert symbolic.statement("normalized_compute", depth=2).where == {
        sympy.Symbol("C"): "compute_per_token(depth=2)"
    }
    assert symbolic.limit("break_even", "exit_layer", d) == sympy.oo


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


@pytest.mark.parametrize("name", NAMES)
def test_javascript_gives_the_numbers_of_python(name: str) -> None:
    rng = random.Random(f"js {name}")
    context = MiniRacer()
    context.eval(symbolic.javascript(name))
    function = getattr(formulas, name)
    for number in range(40):
        point = arguments(name, rng)
        if "depth" in point and number % 4 == 0:
            point["depth"] = None
        if number == 1:
            point |= {n: 0.0 for n in ("p_correct", "acceptance_rate") if n in point}
            point |= {"autocorrelation": 0.0} if "autocorrelation" in point else {}
        found = context.eval(f"{name}({', '.join(map(json.dumps, point.values()))})")
        expected = function(**point)
        if expected == float("inf"):
            assert found is None or found == expected
        else:
            assert found == pytest.approx(float(expected), rel=1e-9), point


def test_javascript_has_pythons_defaults() -> None:
    context = MiniRacer()
    context.eval(symbolic.javascript("compute_per_token", "exchange_rate"))
    assert context.eval("compute_per_token(0.7, 40, 20)") == pytest.approx(46)
    assert context.eval("exchange_rate(0.5)") == 1
    source = symbolic.javascript(*NAMES)
    for name in NAMES:
        assert f"function {name}({symbolic.formula(name).parameters[0]}" in source
    assert source.count("const sum") == 1


BAD: list[tuple[Any, str]] = [
    (
        lambda: symbolic.expr("latency"),
        "the formula must be a known one; got 'latency'; closest are gated_latency, ",
    ),
    (
        lambda: symbolic.expr("zzz"),
        "the formula must be a known one; got 'zzz'; list them: ppdmodel formulas",
    ),
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
        lambda: symbolic.limit("latency_per_token", "p_correct", 2),
        "p_correct must lie in [0, 1]; got 2; give a probability",
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
        lambda: symbolic.javascript("multi_exit_latency"),
        "the formula must be a closed form; got 'multi_exit_latency', a recursion; ",
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
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_symbols_and_parameters_are_the_same_set() -> None:
    used = {x for n in NAMES for x in inspect.signature(getattr(formulas, n)).parameters}
    assert used == set(symbolic.SYMBOLS)
    assert np.all([symbolic.SYMBOLS[n].is_positive in (True, None) for n in used])
