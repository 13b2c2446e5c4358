"""Closed forms as one writes them: abbreviations and LaTeX."""

from __future__ import annotations

import pytest
import sympy

from ppdmodel.formulas import symbolic

NAMES = symbolic.names()


p, d, e, k, D = (symbolic.SYMBOLS[n] for n in ("p_correct", "layers", "exit_layer", "k", "depth"))
rho = symbolic.SYMBOLS["autocorrelation"]


#: the abbreviations of a formula, of those that have any
LETTERS = {
    "latency_per_token": "g",
    "normalized_latency": "Lambda",
    "speedup": "Lambda",
    "compute_per_token": "a_g b_g B Q_g",
    "normalized_compute": "C",
    "mean_units": "Lambda C",
    "reserved_units": "Lambda",
    "expected_total_latency": "g",
    "generation_time": "g",
    "correlated_latency": "b g",
    "correlated_compute": "b a_g b_g B Q_g Pi_g",
    "correlated_total_latency": "b g",
    "gated_latency": "g",
    "gated_compute": "a_g b_g B Q_g",
    "best_exit": "e_0",
    "calibrated_latency": "n theta",
    "calibrated_speedup": "T T_0",
    "calibrated_break_even": "n theta",
    "calibrated_compute": "n theta",
    "calibrated_busy_time": "n theta",
    "calibrated_unfinished": "n",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_is_its_expression(name: str) -> None:
    """With the theory's letters for its long parts; putting these back gives the expression."""
    said = symbolic.statement(name)
    assert " ".join(map(str, said.where)) == LETTERS.get(name, "")
    expression = said.expression
    for symbol, meaning in reversed(list(said.where.items())):
        value = symbolic.expr(meaning) if isinstance(meaning, str) else meaning
        expression = expression.xreplace({symbol: value})
    assert sympy.expand(expression - symbolic.expr(name)) == 0 or (
        expression.doit() - symbolic.expr(name).doit()
    ).equals(0)


def test_abbreviations_are_those_of_the_theory() -> None:
    again = p + rho * (1 - p)
    said = symbolic.statement("correlated_latency")
    assert said.where[sympy.Symbol("b")] == again
    unlimited = symbolic.statement("compute_per_token", depth=None)
    assert unlimited.expression.has(sympy.Sum)
    assert sympy.Symbol("B") not in unlimited.where


@pytest.mark.parametrize("name", NAMES)
def test_latex_has_no_python_in_it(name: str) -> None:
    text = symbolic.latex(name)
    for word in ("Max", "Min", "Sum", "**", "Dummy", "Heaviside"):
        assert word not in text


def test_abbreviations_are_explained_after_the_formula() -> None:
    assert symbolic.latex("speedup") == (
        r"\frac{d}{\Lambda},\quad \Lambda = \text{latency\_per\_token}"
    )
    assert symbolic.latex("latency_per_token", depth=1) == (
        r"d + \frac{g p^{2}}{p + 1} - p \left(d - e\right),\quad g = \max\left(0, d - 2 e\right)"
    )


def test_what_is_fixed_is_said() -> None:
    assert symbolic.statement("mean_units", depth=None, k=3).where == {
        sympy.Symbol("Lambda"): "latency_per_token(depth=None)",
        sympy.Symbol("C"): "compute_per_token(depth=None, k=3)",
    }
    late = symbolic.statement("calibrated_unfinished", layers=30, exit_time=0).where
    names = ("busy_layer_time", "batch_layer_time", "head_time", "start_delay")
    busy, batch, head, start = (symbolic.SYMBOLS[n] for n in names)
    assert late == {sympy.Symbol("n"): sympy.Max(0, (30 - e) * busy + head - start) / batch}
    assert symbolic.statement("normalized_compute", depth=2).where == {
        sympy.Symbol("C"): "compute_per_token(depth=2)"
    }
    assert symbolic.limit("break_even", "exit_layer", d) == sympy.oo


def test_expressions_as_one_writes_them() -> None:
    wait = sympy.Symbol("g")
    said = symbolic.statement("latency_per_token")
    assert said.where == {wait: sympy.Max(0, d - e * (D + 1))}
    j = sympy.Symbol("j", integer=True)
    assert said.expression == d - p * (d - e) + wait * p ** (D + 1) / sympy.Sum(p**j, (j, 0, D))
    assert str(symbolic.expr("compute_per_token", depth=1)) == (
        "d + (k - p)*(d - e + p*Min(e, d - e))/(p + 1)"
    )
    assert str(symbolic.statement("correlated_total_latency").expression) == (
        "d*ell + g*p*Sum(b**(m*(D + 1) - 1)*((1 - b)*(ell - m*(D + 1) - 1) + 1), "
        "(m, 1, floor((ell - 1)/(D + 1)))) - p*(d - e)*(ell - 1)"
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
