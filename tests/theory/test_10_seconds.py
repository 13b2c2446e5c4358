"""Page 10: PPD in seconds, held against a schedule that is run layer by layer, in fractions."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from typing import Any

import pytest
import sympy

from ppdmodel import (
    calibrated_break_even,
    calibrated_busy_time,
    calibrated_compute,
    calibrated_early_latency,
    calibrated_head_start,
    calibrated_latency,
    calibrated_plain_compute,
    calibrated_plain_latency,
    calibrated_speedup,
    calibrated_unfinished,
    latency_per_token,
    speedup,
)
from ppdmodel.formulas import symbolic
from tests.support.calibrated_reference import Terms, run

S = symbolic.SYMBOLS
FREE = ("head_time", "exit_time", "token_time", "start_delay", "promotion_delay", "unfinished")
NOTHING = dict.fromkeys(FREE, 0) | {"busy_layer_time": S["layer_time"],
                                    "batch_layer_time": S["layer_time"]}  # fmt: skip


def drawn(rng: random.Random, *, early: bool = False) -> Terms:
    """Random terms, in fractions, whose units are free again when the next exit is there."""

    def between(low: float, high: float) -> Fraction:
        return Fraction(round(rng.uniform(low, high) * 60), 60)

    while True:
        d = rng.randint(4, 14)
        terms = Terms(
            layers=d,
            exit_layer=rng.randint(1, d) if early else rng.randint(d // 2, d),
            layer_time=between(0.5, 1.5),
            busy_layer_time=between(0.5, 1.5),
            batch_layer_time=between(0.5, 2),
            head_time=between(0, 5),
            exit_time=between(0, 5),
            token_time=between(0, 1),
            start_delay=between(0, 0.5),
            promotion_delay=between(0, 0.5),
        )
        free = terms.token_time + terms.exit_layer * terms.layer_time + terms.start_delay
        if free >= max(terms.batch_layer_time, terms.exit_time) and (
            early or ahead(terms) <= terms.exit_layer
        ):
            return terms


def ahead(terms: Terms) -> Any:
    """Batch layers run at the verdict after a start from layer 0, by the page's n."""
    left = (terms.layers - terms.exit_layer) * terms.busy_layer_time + terms.head_time
    return Fraction(max(left - terms.start_delay - terms.exit_time, 0)) / terms.batch_layer_time


@pytest.mark.parametrize("seed", range(60))
def test_each_step_is_that_of_the_schedule(seed: int) -> None:
    """(10.1), (10.5) and (10.6), exactly: phi = ceil(n) - n, as nothing varies."""
    terms, k = drawn(random.Random(seed)), 3
    n = ahead(terms)
    left = math.ceil(n) - n
    whole, work = terms.named(), terms.named("layer_time", "token_time", "promotion_delay")
    busy = terms.named("promotion_delay")
    heads = (terms.head_time + terms.exit_time) / terms.busy_layer_time
    for match in (False, True):
        seen = run(terms, [match] * 6, k)
        assert set(seen.begun) == {math.ceil(n)}
        assert set(seen.steps) == {calibrated_latency(int(match), **whole, unfinished=left)}
        compute = calibrated_compute(int(match), **work, k=k, unfinished=left)
        assert set(seen.executed[1:]) == {compute - heads}
        spent = {after - before for before, after in itertools.pairwise(seen.busy)}
        assert spent == {calibrated_busy_time(int(match), **busy, unfinished=left)}


@pytest.mark.parametrize("seed", range(20))
def test_layers_that_never_vary(seed: int) -> None:
    """(10.8) from the layers that the schedule begins; (10.9) from one that never guesses."""
    terms = drawn(random.Random(seed))
    unwanted = ("layer_time", "token_time", "promotion_delay")
    (begun,) = set(run(terms, [False] * 4).begun)
    assert calibrated_unfinished(**terms.named(*unwanted)) == begun - ahead(terms)
    alone = calibrated_compute(
        0, terms.layers, terms.layers, 1, terms.layer_time, terms.layer_time, terms.head_time,
        start_delay=terms.head_time, unfinished=0,
    )  # fmt: skip
    assert calibrated_plain_compute(terms.layers, terms.layer_time, terms.head_time) == alone


@pytest.mark.parametrize("seed", range(20))
def test_how_far_the_guesses_get(seed: int) -> None:
    """(10.10): cut into m parts, a batch layer shows n to 1/m."""
    terms = drawn(random.Random(seed))
    unwanted = ("layer_time", "token_time", "promotion_delay")
    n = calibrated_head_start(**terms.named(*unwanted))
    for parts in (1, 2, 7):
        finer = terms.with_(batch_layer_time=terms.batch_layer_time / parts)
        (begun,) = set(run(finer, [False] * 4).begun)
        assert begun == min(math.ceil(parts * n), terms.layers)


@pytest.mark.parametrize("seed", range(5))
def test_any_sequence_of_matches_takes_the_sum_of_its_steps(seed: int) -> None:
    """So the mean needs only the long-run rate."""
    rng = random.Random(seed)
    terms = drawn(rng)
    n = ahead(terms)
    miss, match = (
        calibrated_latency(p, **terms.named(), unfinished=math.ceil(n) - n) for p in (0, 1)
    )
    matches = [rng.random() < 0.6 for _ in range(200)]
    steps = run(terms, matches).steps
    assert steps == [match if hit else miss for hit in matches[:-1]]


@pytest.mark.parametrize("seed", range(10))
def test_half_a_layer_is_left_where_verdicts_fall_anywhere(seed: int) -> None:
    """phi = 1/2: the mean over heads that spread n evenly over two whole layers."""
    terms = drawn(random.Random(seed)).with_(head_time=Fraction(0), exit_time=Fraction(0))
    terms = terms.with_(exit_layer=terms.layers - 1, start_delay=terms.busy_layer_time)
    points = 40
    steps, closed = [], []
    for i in range(points):
        head = terms.batch_layer_time * 2 * Fraction(2 * i + 1, 2 * points)
        spread = terms.with_(head_time=head)
        steps.append(run(spread, [True] * 3).steps[-1])
        closed.append(calibrated_latency(1, **spread.named(), unfinished=Fraction(1, 2)))
    assert sum(steps) == sum(closed)


def test_within_the_first_layer_the_step_is_right_on_average() -> None:
    """0 < n < 1: a match gains the whole first layer; the mean saving is tau - tau_k / 2."""
    points, saved = 50, Fraction(0)
    smooth = Fraction(0)
    for i in range(points):
        head = Fraction(2 * i + 1, 2 * points) * 2
        terms = Terms(6, 5, Fraction(1), Fraction(1), Fraction(2), head, start_delay=Fraction(1))
        assert 0 < ahead(terms) < 1
        miss, match = (run(terms, [hit] * 3).steps[-1] for hit in (False, True))
        saved += (miss - match) / points
        smooth += (
            miss - calibrated_latency(1, **terms.named(), unfinished=Fraction(1, 2))
        ) / points
    assert saved == smooth == 1 - Fraction(2, 2)


def test_guesses_that_come_too_late_change_nothing() -> None:
    """R <= s + x, with equality too: every step is that of a miss."""
    for reading in (5, 6, 9):
        terms = Terms(8, 6, 1, 1, 1, 3, exit_time=reading, token_time=2, promotion_delay=1)
        plain = calibrated_latency(0, **terms.named())
        for p in (0.3, 1):
            assert calibrated_latency(p, **terms.named()) == plain
            assert calibrated_early_latency(p, **terms.named()) == pytest.approx(plain)
        assert set(run(terms, [True] * 5).steps) == {plain}
        assert not any(run(terms, [True] * 5).used)
    just = Terms(8, 6, 1, 1, 1, 3, exit_time=Fraction(499, 100), token_time=2)
    assert all(run(just, [True] * 5).used)


def test_it_is_page_two_when_nothing_costs_anything() -> None:
    """In symbols, for e < d: T = tau (d - p (d - e)), and C = d + (k - p)(d - e)."""
    d, e, p, k, tau = (S[n] for n in ("layers", "exit_layer", "p_correct", "k", "layer_time"))
    saved = sympy.Symbol("saved", positive=True)
    in_time = {sympy.ceiling(sympy.Min(1, saved)): 1}
    at = {e: d - saved}
    latency = symbolic.expr("calibrated_latency", **NOTHING).subs(at).xreplace(in_time)
    layers = symbolic.expr("latency_per_token", depth=None).subs(at)
    assert sympy.expand(latency - tau * layers) == 0
    work = {n: x for n, x in NOTHING.items() if n not in ("token_time", "promotion_delay")}
    compute = symbolic.expr("calibrated_compute", **work).subs(at).xreplace(in_time)
    assert sympy.expand(compute - (d + (k - p) * (d - e)).subs(at)) == 0


def test_what_heads_cost() -> None:
    p, tau, batch = (S[n] for n in ("p_correct", "layer_time", "batch_layer_time"))
    slopes = {n: symbolic.derivative("calibrated_latency", n) for n in ("head_time", "exit_time")}
    at = {S["layers"]: 40, S["exit_layer"]: 25, S["busy_layer_time"]: 1, S["token_time"]: 0,
          S["start_delay"]: 0, S["promotion_delay"]: 0, S["unfinished"]: 0, S["head_time"]: 6,
          S["exit_time"]: 5, batch: 2}  # fmt: skip
    assert sympy.expand(slopes["head_time"].subs(at) - (1 - p * tau / 2)) == 0
    assert sympy.expand(slopes["exit_time"].subs(at) - p * tau / 2) == 0


def test_break_even() -> None:
    """(10.4): at p_0 the latency is that of plain decoding, in symbols and in numbers."""
    latency, plain = (symbolic.expr(f"calibrated_{n}latency") for n in ("", "plain_"))
    p = S["p_correct"]
    assert sympy.expand(sympy.diff(latency, p, 2)) == 0
    rate = (latency.subs(p, 0) - plain) / -sympy.diff(latency, p)
    half = sympy.Rational(1, 2)
    point = {
        "layers": 30, "exit_layer": 20, "layer_time": 1, "busy_layer_time": 1 + half / 2,
        "batch_layer_time": 2, "plain_head_time": 6, "head_time": 7, "exit_time": 6,
        "token_time": 1, "start_delay": half, "promotion_delay": 1, "unfinished": half,
    }  # fmt: skip
    assert rate.subs({S[n]: x for n, x in point.items()}) == calibrated_break_even(**point)
    costs: dict[str, Any] = {n: float(x) for n, x in point.items()}
    least = calibrated_break_even(**costs)
    assert 0 < least < 1
    assert calibrated_speedup(least, **costs) == pytest.approx(1)
    assert calibrated_speedup(least + 0.01, **costs) > 1 > calibrated_speedup(least - 0.01, **costs)


def test_no_match_rate_is_enough_where_a_match_saves_nothing() -> None:
    late = {"plain_head_time": 1, "head_time": 2, "exit_time": 50}
    assert calibrated_break_even(30, 20, 1, 1, 1, **late) == math.inf
    slow = {"plain_head_time": 1, "head_time": 2, "promotion_delay": 40}
    assert calibrated_break_even(30, 20, 1, 1, 1, **slow) == math.inf
    assert calibrated_speedup(1, 30, 20, 1, 1, 1, **slow) < 1


def test_the_example_of_the_page() -> None:
    terms = Terms(30, 20, 1.0, 1.0, 1.5, head_time=6, exit_time=6)
    assert round(float(10 / terms.batch_layer_time), 2) == 6.67
    miss, match = (calibrated_latency(p, **terms.named()) for p in (0, 1))
    assert round(miss - match, 2) == 6.42
    ratio = calibrated_speedup(0.5, **terms.named(), plain_head_time=6)
    assert round(ratio, 3) == 1.098
    assert ratio == calibrated_plain_latency(30, 1.0, 6) / calibrated_latency(0.5, **terms.named())
    assert round(speedup(0.5, 30, 20), 2) == 1.2


@pytest.mark.parametrize("seed", range(50))
def test_early_exits_follow_the_run(seed: int) -> None:
    """(10.7), layer by layer: the steps of one long run of matches, weighted by (1-p) p^r."""
    terms = drawn(random.Random(1000 + seed), early=True)
    steps = run(terms, [True] * 240).steps
    first = run(terms, [False] * 3).steps[-1]
    steps = [first, *steps]
    for p in (0, Fraction(1, 3), Fraction(4, 5)):
        mean = sum((1 - p) * p**r * step for r, step in enumerate(steps[:120]))
        found = calibrated_early_latency(float(p), **terms.named(), unfinished=None)
        assert float(found) == pytest.approx(float(mean), rel=1e-9)
    found = calibrated_early_latency(1, **terms.named(), unfinished=None)
    assert float(found) == pytest.approx(float(sum(steps[-40:]) / 40), rel=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_early_exits_are_the_closed_form_where_no_process_passes_its_exit(seed: int) -> None:
    terms = drawn(random.Random(seed))
    for p, share in itertools.product((0, 0.4, 1), (0, 0.3, 0.5)):
        closed = calibrated_latency(p, **terms.named(), unfinished=share)
        found = calibrated_early_latency(p, **terms.named(), unfinished=share)
        assert float(found) == pytest.approx(float(closed), rel=1e-12)


def test_early_exits_are_page_two_when_nothing_costs_anything() -> None:
    for d, p in itertools.product((7, 12, 40), (0, 0.3, 0.8, 1)):
        for e in range(1, d + 1):
            found = calibrated_early_latency(p, d, e, 0.3, 0.3, 0.3, unfinished=0)
            assert found == pytest.approx(0.3 * latency_per_token(p, d, e), rel=1e-12)


def test_a_run_settles_or_alternates() -> None:
    """p = 1: to one step where a batch layer is slower, else between two."""

    def cycle(batch: float, busy: float) -> int:
        steps = run(Terms(40, 4, 1, busy, batch, token_time=3), [True] * 300).steps[200:]
        return next(n for n in range(1, 50) if steps[n:] == steps[:-n])

    assert cycle(3, 1) == 1
    assert [cycle(1, 1), cycle(1, 1.1), cycle(1, 2)] == [2, 2, 2]
