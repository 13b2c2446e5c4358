"""Page 2: latency, from the recursion (1.1), in symbols."""

from __future__ import annotations

import pytest
import sympy

from ppdmodel.formulas import symbolic
from tests.theory import chain
from tests.theory.latex import letters_of, parsed, tagged_equations

p, d, e = (symbolic.SYMBOLS[name] for name in ("p_correct", "layers", "exit_layer"))
DEPTHS = (1, 2, 3, 4, 5)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_claim_within_a_run_obeys_the_recursion(depth: int) -> None:
    """S_n = n e + g floor(n/(D+1)) with n = q (D+1) + r and g > 0, for symbolic q, d and e."""
    q, g = sympy.symbols("q g", positive=True)
    layers = g + (depth + 1) * e

    def start(groups: sympy.Expr, rest: int) -> sympy.Expr:
        return (groups * (depth + 1) + rest) * e + g * groups

    for rest in range(depth + 1):
        # token n - D: the same group if rest = D, else the one before it
        earlier = start(q, 0) if rest == depth else start(q - 1, rest + 1)
        lead = sympy.expand(earlier + layers - (start(q, rest) + e))
        assert lead == (g if rest == depth else 0)
        following = start(q + 1, 0) if rest == depth else start(q, rest + 1)
        assert sympy.expand(following - (start(q, rest) + e + sympy.Max(0, lead))) == 0


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_places_are_stationary_and_their_mean_step_is_the_latency(depth: int) -> None:
    size = depth + 1
    total = sum(p**j for j in range(size))
    share = [p**r / total for r in range(size)]
    after = [
        p * share[(r - 1) % size] + (1 - p) * sympy.Integer(r == 0)  # every miss leads to place 0
        for r in range(size)
    ]
    assert all(sympy.cancel(a - b) == 0 for a, b in zip(after, share, strict=True))
    wait = sympy.Max(0, d - size * e)
    step = (1 - p) * d + p * e + p * share[depth] * wait
    assert sympy.simplify(step - symbolic.expr("latency_per_token", depth=depth)) == 0


@pytest.mark.parametrize("schedule", chain.SCHEDULES, ids=str)
def test_the_chain_of_the_recursion_has_this_latency(schedule: chain.Schedule) -> None:
    """No step of the page is used: (1.1) is solved as a Markov chain, exactly in p."""
    formula = symbolic.expr(
        "latency_per_token", layers=schedule.d, exit_layer=schedule.e, depth=schedule.depth
    )
    assert chain.equal(chain.latency(schedule), formula)


def test_depth_beyond_its_reach_changes_nothing() -> None:
    """(2.2), and the unlimited form."""
    reach = letters_of(sympy.ceiling(d / e) - 1)
    assert parsed(tagged_equations("02-latency.md")["2.2"].split("=")[1]) == reach
    for layers in range(1, 12):
        for exit_layer in range(1, layers + 1):
            depth = max(-(-layers // exit_layer) - 1, 1)
            at = {"layers": layers, "exit_layer": exit_layer}
            unlimited = symbolic.expr("latency_per_token", **at, depth=None)
            for deep in (depth, depth + 1, depth + 4):
                same = symbolic.expr("latency_per_token", **at, depth=deep) - unlimited
                assert sympy.cancel(same) == 0


def test_limits() -> None:
    size = symbolic.SYMBOLS["depth"] + 1
    assert symbolic.limit("latency_per_token", "p_correct", 1) == sympy.Max(e, d / size)
    assert symbolic.limit("latency_per_token", "p_correct", 0) == d
    assert sympy.simplify(symbolic.limit("latency_per_token", "exit_layer", d) - d) == 0
    assert symbolic.limit("latency_per_token", "depth", sympy.oo) == d - p * (d - e)
    assert symbolic.limit("normalized_latency", "layers", sympy.oo, depth=None) == 1 - p


def test_the_ratio_for_deep_schedules() -> None:
    ratio = symbolic.expr("normalized_latency", depth=None)
    assert sympy.simplify(ratio - (1 - p * (1 - e / d))) == 0


def test_the_sensitivities_of_deep_schedules() -> None:
    """(2.5) and (2.6)."""
    written = tagged_equations("02-latency.md")
    for tag, parameter in (("2.5", "p_correct"), ("2.6", "exit_layer")):
        slope = symbolic.derivative("latency_per_token", parameter, depth=None)
        assert sympy.expand(parsed(written[tag].split("=")[1]) - letters_of(slope)) == 0
