"""Page 7: prices, break-even, the best exit and the threshold rule."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import sympy

from ppdmodel import (
    Policy,
    best_exit,
    calibrated_compute,
    calibrated_latency,
    calibrated_plain_latency,
    exchange_rate,
    latency_per_token,
    multi_exit_compute,
    multi_exit_latency,
    replay,
    threshold,
)
from ppdmodel.decide.threshold_policies import Reading
from ppdmodel.formulas import symbolic
from ppdmodel.formulas.symbolic.catalogue import Expr
from tests.theory.latex import parsed, tagged_equations

p, d, e, k, a = (
    symbolic.SYMBOLS[n] for n in ("p_correct", "layers", "exit_layer", "k", "exponent")
)
WRITTEN = tagged_equations("07-decisions.md")


def test_the_price_does_not_depend_on_the_exit() -> None:
    """(7.1) on both sides of e = d/2."""
    latency, compute = (
        symbolic.expr(n, depth=1) for n in ("latency_per_token", "compute_per_token")
    )
    late = {sympy.Max(0, d - 2 * e): sympy.Integer(0), sympy.Min(e, d - e): d - e}
    early = {sympy.Max(0, d - 2 * e): d - 2 * e, sympy.Min(e, d - e): e}
    for side in (late, early):
        price = (compute.xreplace(side) - d) / (d - latency.xreplace(side))
        assert sympy.simplify(price - symbolic.expr("exchange_rate")) == 0


def test_break_even() -> None:
    """(7.2): with the overhead added, latency at p_0 is that of plain decoding."""
    overhead = symbolic.SYMBOLS["overhead"]
    latency = symbolic.expr("latency_per_token", depth=None) + overhead
    (rate,) = sympy.solve(sympy.Eq(latency, d), p)
    assert sympy.simplify(rate - symbolic.expr("break_even")) == 0


def test_the_best_relative_exit() -> None:
    """(7.3) and (7.4): the only stationary point, a minimum of latency, where the page says."""
    x, kappa = sympy.symbols("x kappa", positive=True)
    latency = symbolic.expr("normalized_latency", depth=None, p_correct=kappa * x**a)
    relative = sympy.powsimp(latency.subs(e, x * d))
    written = parsed(WRITTEN["7.3"].split("=")[1].strip().rstrip(","))
    at = {sympy.Symbol(s.name): s for s in (x, kappa, a)}
    assert sympy.simplify(relative - written.xreplace(at)) == 0
    slope = sympy.diff(written.xreplace(at), x)
    best = symbolic.expr("best_relative_exit")
    assert sympy.simplify(slope + kappa * x ** (a - 1) * (a - (a + 1) * x)) == 0
    assert sympy.simplify((a - (a + 1) * x).subs(x, best)) == 0
    saving = (kappa * x**a * (1 - x)).subs(x, best)
    assert sympy.simplify(saving - kappa * a**a / (a + 1) ** (a + 1)) == 0
    assert [saving.subs({kappa: 1, a: n}) for n in (1, 2)] == [
        sympy.Rational(1, 4),
        sympy.Rational(4, 27),
    ]


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1, 1.7, 2, 3.5, 8, 40])
def test_the_best_exit_is_the_best_of_all_layers(exponent: float) -> None:
    """(7.5) against trying every layer; of equals the later one."""
    for layers in [*range(1, 41), 80]:
        saved = {
            layer: (layer / layers) ** exponent * (layers - layer) for layer in range(1, layers + 1)
        }
        best = max(layer for layer, x in saved.items() if x >= max(saved.values()) * (1 - 1e-12))
        at = (best / layers) ** exponent
        assert latency_per_token(at, layers, best, None) == pytest.approx(layers - saved[best])
        assert best_exit(exponent, layers) == best, (exponent, layers)


def test_at_the_best_relative_exit_this_depth_is_enough() -> None:
    """(D+1) x* >= 1 is D >= 1/a."""
    depth = symbolic.SYMBOLS["depth"]
    lead = (depth + 1) * symbolic.expr("best_relative_exit") - 1
    assert sympy.simplify(lead * (a + 1) / a - (depth - 1 / a)) == 0


def test_no_policy_beats_the_threshold() -> None:
    """(7.6): against every policy that starts any set of candidates for each kind of token.

    Kinds of token occur with a probability and show calibrated candidates; D = 1, e >= d/2.
    """
    rng = random.Random(2)
    for _ in range(20):
        weights = [rng.random() for _ in range(3)]
        kinds = []
        for _ in range(3):
            shares = sorted((rng.random() ** 2 for _ in range(4)), reverse=True)
            total = sum(shares) * rng.uniform(1, 1.5)
            kinds.append([x / total for x in shares][:3])
        for price in (0.3, 1.0, 2.5, 6.0):
            subsets = list(itertools.product([True, False], repeat=3))
            policies = itertools.product(subsets, repeat=3)
            best = min(cost_at(price, weights, kinds, policy) for policy in policies)
            ours = [[q >= threshold(price) for q in candidates] for candidates in kinds]
            assert cost_at(price, weights, kinds, ours) == pytest.approx(best, abs=1e-12)


def cost_at(
    price: float,
    weights: Sequence[float],
    kinds: Sequence[Sequence[float]],
    policy: Sequence[Sequence[bool]],
) -> float:
    """Price times latency plus compute, 10 layers and an exit at 6, over the kinds of token."""
    total = 0.0
    for weight, candidates, started in zip(weights, kinds, policy, strict=True):
        rate = sum(q for q, on in zip(candidates, started, strict=True) if on)
        latency = 10 - rate * (10 - 6)
        compute = 10 + (sum(started) - rate) * (10 - 6)
        total += weight * (price * latency + compute)
    return total


def test_the_threshold_is_where_the_price_of_one_guess_is_met() -> None:
    """At q = 1/(1+pi) a single guess costs exactly pi per layer saved: k/p - 1 with k = 1."""
    for price in (0.2, 1.0, 7.0):
        assert exchange_rate(threshold(price), 1) == pytest.approx(price)


def test_what_a_start_is_worth() -> None:
    """(7.7): one guess more, of chance p, against the closed forms of depth 1 and e >= d/2."""
    price, others = symbolic.SYMBOLS["price"], sympy.Symbol("others", nonnegative=True)

    def cost(rate: Expr, guesses: Expr) -> Expr:
        late = {sympy.Max(0, d - 2 * e): sympy.Integer(0), sympy.Min(e, d - e): d - e}
        latency = symbolic.expr("latency_per_token", depth=1).xreplace(late)
        compute = symbolic.expr("compute_per_token", depth=1).xreplace(late)
        return (price * latency + compute).subs({p: rate, k: guesses}, simultaneous=True)

    gained = cost(others, k) - cost(others + p, k + 1)
    worth = symbolic.expr("start_worth")
    assert sympy.simplify(gained - worth) == 0
    assert sympy.simplify(worth.subs(p, symbolic.expr("threshold"))) == 0


def test_what_reading_an_exit_costs() -> None:
    """At one exit it is page 10 with layers of one time unit, exactly."""
    rng = random.Random(7)
    for _ in range(200):
        layers, guesses = rng.randint(2, 40), rng.randint(1, 5)
        rate = sympy.Rational(rng.randint(0, 10), 10)
        read, head = (sympy.Rational(rng.randint(0, 24), 4) for _ in "xh")
        reading = Reading(float(read), float(head))
        first = sympy.ceiling((layers + max(head - read, 0)) / 2)
        if first >= layers or first >= layers - (read - head):
            continue
        exit_layer = rng.choice(reading.exits(layers))
        times = {"busy_layer_time": 1, "batch_layer_time": 1, "head_time": head, "exit_time": read}
        whole, late = layers + head, exit_layer + read
        latency = multi_exit_latency([rate], whole, [late])
        assert latency == calibrated_latency(
            rate, layers, exit_layer, layer_time=1, token_time=0, start_delay=0,
            promotion_delay=0, unfinished=0, **times,
        )  # fmt: skip
        compute = multi_exit_compute([rate], whole, [late], [guesses]) + read
        assert compute == calibrated_compute(
            rate, layers, exit_layer, guesses, start_delay=0, unfinished=0, **times
        )
        assert whole == calibrated_plain_latency(layers, 1, head, 0)


def test_guesses_that_wait_for_a_reading_start_as_if_their_exit_lay_later() -> None:
    """Several exits, event by event; a verdict that waits for the head is one layer that is longer.

    The head of h is put into the last layer's time, where no process runs but to its verdict.
    """
    trace = random.Random(3).choices([0, 1, 2], k=4000)
    rates = [trace.count(number) / len(trace) for number in (1, 2)]
    policy = Policy((6, 8), k=(2, 1))
    for read, head in ((1.0, 0.0), (0.5, 0.0), (2.0, 2.0), (1.5, 1.0)):
        times = [1.0] * 9 + [1.0 + head]
        run = replay(trace, policy, layers=10, layer_times=times, start_delay=read)
        steps = np.diff(run.generations[0].finish_times)
        late = [e + read for e in policy.exits]
        expected = multi_exit_latency(rates, 10 + head, late)
        assert steps.mean() == pytest.approx(float(expected))
