"""Page 6: several exits and gates, in symbols and process by process."""

from __future__ import annotations

import random

import pytest
import sympy

from ppdmodel import formulas
from ppdmodel.formulas import symbolic
from tests.theory import chain
from tests.theory.latex import letters_of, parsed, tagged_equations

p, d, e, k, s = (symbolic.SYMBOLS[n] for n in ("p_correct", "layers", "exit_layer", "k", "share"))
WRITTEN = tagged_equations("06-exits-and-gates.md")


def family(time_left: int, exits: tuple[int, ...], k_each: tuple[int, ...]) -> int:
    """What a wrong process and its descendants execute: each of them followed, one by one."""
    executed, running = 0, [time_left]
    for left in running:
        executed += left
        for exit_layer, guesses in zip(exits, k_each, strict=True):
            running += [left - exit_layer] * (guesses if left > exit_layer else 0)
    return executed


def test_compute_follows_every_process() -> None:
    """(6.2) and (6.3)."""
    rng = random.Random(8)
    for _ in range(60):
        layers = rng.randint(2, 14)
        exits = tuple(sorted(rng.sample(range(1, layers + 1), rng.randint(1, min(3, layers)))))
        if layers / exits[0] > 5:
            continue
        guesses = tuple(rng.randint(1, 2) for _ in exits)
        rates = [sympy.Rational(rng.randint(0, 3), 10) for _ in exits]
        expected = layers + sum(
            (n - q) * family(layers - x, exits, guesses) if layers > x else 0
            for n, q, x in zip(guesses, rates, exits, strict=True)
        )
        assert formulas.multi_exit_compute(rates, layers, exits, guesses) == expected


def test_the_page_says_what_the_functions_compute() -> None:
    """(6.1) to (6.3) for two exits in symbols, with two generations: e_1 < d <= 3 e_1."""
    q_1, q_2, e_1, e_2, k_1, k_2 = sympy.symbols("q_1 q_2 e_1 e_2 k_1 k_2", positive=True)
    j = sympy.Symbol("j")
    numbered = {1: (q_1, e_1, k_1), 2: (q_2, e_2, k_2)}

    def over_exits(latex: str, family_of: object) -> sympy.Expr:
        """The sum over j written out; the parser reads W (d - e_j) as a product with W."""
        total = sympy.Integer(0)
        for part in parsed(latex).atoms(sympy.Sum):
            assert part.limits[0] == (j, 1, sympy.Symbol("m"))
            for number, (q, exit_layer, guesses) in numbered.items():
                named = {"q_j": q, "e_j": exit_layer, "k_j": guesses, "d": d}
                if family_of is not None:
                    named["W"] = sympy.Symbol(f"W_{number}")
                at = {sympy.Symbol(x): v for x, v in named.items()}
                total += part.function.xreplace(at)
        return total

    latency = d - over_exits(WRITTEN["6.1"].split("=", 1)[1], None)
    assert "d - \\sum" in WRITTEN["6.1"]
    function = formulas.multi_exit_latency([q_1, q_2], d, [e_1, e_2])
    assert sympy.expand(latency - function) == 0
    # (6.2) with W as a symbol of its own, then W by (6.3), generation by generation
    compute = d + over_exits(WRITTEN["6.2"].split("=", 1)[1], "W")
    first = {n: sympy.Max(d - x, 0) for n, (_, x, _) in numbered.items()}
    second = {
        n: first[n] + sum(g * sympy.Max(d - x - y, 0) for _, y, g in numbered.values())
        for n, (_, x, _) in numbered.items()
    }
    for n, (_, x, _) in numbered.items():
        compute = compute.subs(sympy.Symbol(f"W_{n}") * (d - x), second[n])
    function = formulas.multi_exit_compute([q_1, q_2], d, [e_1, e_2], [k_1, k_2], depth=2)
    assert sympy.expand(compute - function) == 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_one_exit_is_the_special_case(depth: int) -> None:
    for layers in range(1, 13):
        for exit_layer in range(1, layers + 1):
            if (depth + 1) * exit_layer < layers:
                continue
            at = {"layers": layers, "exit_layer": exit_layer, "depth": None}
            latency = formulas.multi_exit_latency([p], layers, [exit_layer])
            assert sympy.expand(latency - symbolic.expr("latency_per_token", **at)) == 0
            compute = formulas.multi_exit_compute([p], layers, [exit_layer], [k], depth)
            assert sympy.expand(compute - symbolic.expr("compute_per_token", **at).doit()) == 0


@pytest.mark.parametrize("schedule", chain.SCHEDULES, ids=str)
def test_a_gate_in_the_chain_of_the_recursion(schedule: chain.Schedule) -> None:
    """(6.4) and (6.5): matches at the rate s p_s, s k starts each, s (k - p_s) of them dropped."""
    at = {"layers": schedule.d, "exit_layer": schedule.e, "depth": schedule.depth}
    rate = {chain.p: s * p}
    latency = chain.latency(schedule).xreplace(rate)
    assert sympy.cancel(latency - symbolic.expr("gated_latency", **at)) == 0
    dropped = sum(
        weight.xreplace(rate) * schedule.dropped_family(state[0]).xreplace({chain.k: s * k})
        for state, weight in chain.steady_state(schedule).items()
        if weight != 0
    )
    compute = schedule.d + s * (k - p) * dropped
    assert sympy.cancel(compute - symbolic.expr("gated_compute", **at)) == 0


def test_an_open_gate_is_no_gate() -> None:
    for gated, plain in (
        ("gated_latency", "latency_per_token"),
        ("gated_compute", "compute_per_token"),
    ):
        open_gate = symbolic.expr(gated, share=1)
        assert letters_of(open_gate - symbolic.expr(plain)) == 0


def test_the_share_does_not_enter_the_price() -> None:
    """(6.6), for D = 1, on both sides of e = d/2."""
    latency, compute = (symbolic.expr(n, depth=1) for n in ("gated_latency", "gated_compute"))
    late = {sympy.Max(0, d - 2 * e): sympy.Integer(0), sympy.Min(e, d - e): d - e}
    early = {sympy.Max(0, d - 2 * e): d - 2 * e, sympy.Min(e, d - e): e}
    for side in (late, early):
        price = (compute.xreplace(side) - d) / (d - latency.xreplace(side))
        assert sympy.simplify(price - symbolic.expr("exchange_rate")) == 0
    written = parsed(WRITTEN["6.6"].split("=")[1])
    assert sympy.simplify(written - letters_of(symbolic.expr("exchange_rate"))) == 0
