"""Random and recorded matches through the schedule, and the formulas against the simulator."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sympy

from ppdmodel import Measurement, Policy, formulas, replay, simulate
from ppdmodel.errors import InvalidInputError
from ppdmodel.simulation.runs import Simulation
from ppdmodel.simulation.simulator import _MOST_DRAWN, _binomial_gate

#: p, d, e, k, D
Point = tuple[float, int, int, int, int | None]


def grid() -> list[Point]:
    """240 random settings, each kind of depth among them."""
    rng = random.Random(11)
    found: list[Point] = []
    for number in range(240):
        d = rng.randint(1, 80)
        depth = (1, 2, 3, None)[number % 4]
        found.append(
            (round(rng.uniform(0.02, 0.98), 2), d, rng.randint(1, d), rng.randint(1, 5), depth)
        )
    return found


def within_four_standard_errors(
    run: Simulation, edge: int, latency: float, compute: float, batches: int = 40
) -> None:
    """Means between the first and the last `edge` tokens, which are no steady state."""
    for totals, expected in ((run.finish_times, latency), (run.work_done, compute)):
        steps = np.diff(totals[edge : -edge or None])
        means = np.array([part.mean() for part in np.array_split(steps, batches)])
        error = means.std(ddof=1) / math.sqrt(batches)
        close = 4 * error + 1e-9 * expected
        assert abs(steps.mean() - expected) <= close, (steps.mean(), expected, error)


@pytest.mark.parametrize("point", grid(), ids=lambda point: "-".join(map(str, point)))
def test_closed_forms_within_four_standard_errors(point: Point) -> None:
    p, d, e, k, depth = point
    run = simulate(p, d, e, k, depth, tokens=6000, seed=d * 1000 + e)
    within_four_standard_errors(
        run,
        edge=100,
        latency=formulas.latency_per_token(p, d, e, depth),
        compute=formulas.compute_per_token(p, d, e, k, depth),
    )
    assert run.peak_units <= formulas.peak_units(d, e, k, depth)


@pytest.mark.parametrize("share", [0.2, 0.7])
@pytest.mark.parametrize(("d", "e", "k", "depth"), [(20, 12, 3, 1), (20, 4, 2, 1), (20, 3, 2, 3)])
def test_gated_closed_forms(share: float, d: int, e: int, k: int, depth: int) -> None:
    run = simulate(0.8, d, e, k, depth, tokens=40_000, share=share, seed=e)
    within_four_standard_errors(
        run,
        edge=50,
        latency=formulas.gated_latency(0.8, d, e, share, depth),
        compute=formulas.gated_compute(0.8, d, e, share, k, depth),
    )


@pytest.mark.parametrize(
    ("rates", "d", "exits", "k"),
    [
        ((0.3, 0.4), 40, (10, 20), (1, 2)),
        ((0.1, 0.2, 0.3), 30, (4, 9, 21), (2, 1, 1)),
        ((0.5, 0.5), 12, (2, 11), (1, 3)),
        ((0.0, 0.6), 12, (6, 12), (1, 1)),
    ],
)
def test_several_exits(
    rates: tuple[float, ...], d: int, exits: tuple[int, ...], k: tuple[int, ...]
) -> None:
    run = simulate(rates, d, exits, k, None, tokens=30_000, seed=4)
    within_four_standard_errors(
        run,
        edge=50,
        latency=formulas.multi_exit_latency(rates, d, exits),
        compute=formulas.multi_exit_compute(rates, d, exits, k),
    )


@pytest.mark.parametrize("rho", [-0.3, 0.4, 0.8])
@pytest.mark.parametrize(("d", "e", "k", "depth"), [(8, 1, 1, 1), (20, 2, 3, 2), (30, 3, 2, 5)])
def test_correlated_closed_forms(rho: float, d: int, e: int, k: int, depth: int) -> None:
    run = simulate(0.4, d, e, k, depth, tokens=60_000, autocorrelation=rho, seed=d)
    within_four_standard_errors(
        run,
        edge=50,
        latency=formulas.correlated_latency(0.4, d, e, depth, rho),
        compute=formulas.correlated_compute(0.4, d, e, k, depth, rho),
    )


def test_unequal_layers_keep_the_form_of_the_closed_form() -> None:
    """For D = 1 and an exit past half the time: (1-p) of all layers and p of those to the exit."""
    times = [3.0, 1.0, 1.0, 2.0, 1.0, 1.0]
    run = simulate(0.6, 6, 4, tokens=30_000, layer_times=times, seed=2)
    within_four_standard_errors(run, 5, 0.4 * 9 + 0.6 * 7, 9 + 0.4 * 2)


def test_at_an_autocorrelation_of_minus_one_matches_and_misses_alternate() -> None:
    run = simulate(0.5, 4, 2, tokens=40, autocorrelation=-1)
    steps = np.diff(run.finish_times)
    assert set(steps.tolist()) == {2, 4}
    assert (steps[1:] != steps[:-1]).all()


def test_a_thousand_tokens_unless_given() -> None:
    assert simulate(0.5, 4, 2).tokens == 1000


def test_what_is_left_out_is_the_plain_setting() -> None:
    """One guess, depth 1, seed 0, independent matches, no gate, equal layers and no delays."""
    costs: dict[str, Any] = {"layer_times": [1] * 9, "start_delay": 0, "promotion_delay": 0}
    given = simulate(
        0.4, 9, 2, 1, 1, tokens=60, seed=0, autocorrelation=0, share=1, record=True, **costs
    )
    hits = given.first_hit.tolist()
    for run in (
        simulate(0.4, 9, 2, tokens=60),
        replay(hits, Policy(2), layers=9).generations[0],
        replay(hits, Policy(2), layers=9, record=True, **costs).generations[0],
    ):
        assert run.first_hit.tolist() == hits
        assert run.finish_times.tolist() == given.finish_times.tolist()
        assert run.work_done.tolist() == given.work_done.tolist()
        assert run.processes in (None, given.processes)
    assert simulate(0.4, 9, 2, tokens=60).processes is None
    assert replay(hits, Policy(2), layers=9).generations[0].processes is None


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.5, 0.5 + 1e-9)])
def test_rates_may_add_up_to_nought_or_by_rounding_to_more_than_one(
    rates: tuple[float, ...],
) -> None:
    first_hit = simulate(rates, 9, (2, 4), tokens=200).first_hit
    assert ((first_hit > 0) == (sum(rates) > 0)).all()
    assert set(first_hit.tolist()) == ({1, 2} if sum(rates) else {0})


def test_a_gate_draws_from_as_many_processes_as_a_binomial_can() -> None:
    draw = _binomial_gate(np.random.default_rng(0), 0.5)
    assert draw(_MOST_DRAWN) == pytest.approx(_MOST_DRAWN / 2, rel=1e-6)
    with pytest.raises(InvalidInputError, match=f"more than {_MOST_DRAWN} processes at once"):
        draw(_MOST_DRAWN + 1)


def test_seeds_repeat_and_differ() -> None:
    first, again, other = (simulate(0.5, 9, 3, tokens=200, seed=s) for s in (1, 1, 2))
    assert first.finish_times.tolist() == again.finish_times.tolist()
    assert first.finish_times.tolist() != other.finish_times.tolist()


def test_replay_of_a_measurement_counts_its_prompts(measurement: Measurement) -> None:
    policy = Policy(exit_layer=4, k=2)
    result = replay(measurement, policy)
    assert len(result.generations) == 12
    assert result.n_tokens == measurement.n_tokens
    hits = measurement.rank[:, 3] <= 2
    last = measurement.position == 19
    p = hits[~last].mean()
    assert result.match_rate == pytest.approx(p)
    # D = 1, e >= d/2: d for the first token of each prompt, then d or e
    expected = 6 - p * (6 - 4) * (20 - 1) / 20
    assert result.latency_per_token == pytest.approx(expected)
    assert result.compute_per_token == pytest.approx(6 + (2 - p) * 2 * 19 / 20)
    assert result.autocorrelation is not None
    assert abs(result.autocorrelation) < 1


def test_replay_of_several_exits_takes_the_first_that_holds_the_token(
    measurement: Measurement,
) -> None:
    result = replay(measurement, Policy(exit_layer=(3, 5), k=(1, 4), depth=None))
    first = np.concatenate([run.first_hit for run in result.generations])
    kept = measurement.position < 19
    early = measurement.rank[kept, 2] <= 1
    late = (measurement.rank[kept, 4] <= 4) & ~early
    assert (first == 1).tolist() == early.tolist()
    assert (first == 2).tolist() == late.tolist()


def test_a_gate_starts_only_where_the_exit_is_confident(measurement: Measurement) -> None:
    closed = replay(measurement, Policy(4, 2, gate=0.6))
    assert (closed.latency_per_token, closed.compute_per_token) == (6.0, 6.0)
    assert not np.concatenate([run.first_hit for run in closed.generations]).any()
    for passed in range(1, 7):  # only this exit is confident
        top_prob = np.where(np.arange(1, 7) == passed, 0.9, 0.1) + 0 * measurement.top_prob
        one = replay(replace(measurement, top_prob=top_prob), Policy(4, 2, gate=0.6))
        assert (one.latency_per_token < 6) == (passed == 4)
    everywhere = replay(measurement, Policy(4, 2, gate=0.5))
    assert everywhere.latency_per_token == replay(measurement, Policy(4, 2)).latency_per_token


BAD_SIMULATIONS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((1.5, 4, 2), {}, "p_correct must lie in [0, 1]; got 1.5; give a probability"),
    ((0.5, 4.5, 2), {}, "layers must be a positive integer; got 4.5; give 1 or more"),
    ((0.5, 4, 5), {}, "exit_layer must not exceed layers; got 5; exit layers run from 1 to 4"),
    ((0.5, 4, 2, True), {}, "k must be a positive integer; got True; give 1 or more"),
    (
        (0.5, 4, 2, 1, 0),
        {},
        "depth must be a positive integer; got 0; give 1 or more, or unlimited (None, inf)",
    ),
    ((0.5, 4, 2), {"tokens": 0}, "tokens must be a positive integer; got 0; give 1 or more"),
    (
        (0.5, 4, (2, 3)),
        {},
        "p_correct must have one value per exit; got 1 for 2; give a list q_j",
    ),
    (
        ((0.6, 0.5), 4, (2, 3)),
        {},
        "p_correct must add up to at most 1; got 1.1; "
        "give the probabilities that exit j is the first to hold the next token",
    ),
    ((0.5, 4, (3, 2)), {}, "exit layers must increase; got 3, 2; give them in order"),
    (
        (0.5, 4, 2, (1, 2)),
        {},
        "k must have one value per exit; got 2 for 1 exits; give one for each, or one for all",
    ),
    (
        (0.2, 4, 2),
        {"autocorrelation": -0.5},
        "autocorrelation must be at least -p/(1-p) and -(1-p)/p; got -0.5; "
        "no sequence of matches at this match rate alternates that much",
    ),
    (
        (0.5, 4, 2),
        {"autocorrelation": 1},
        "autocorrelation must lie in [-1, 1); got 1; 0 means independent matches",
    ),
    (
        (sympy.Symbol("p"), 4, 2),
        {},
        "p_correct must be a number; got p; symbols are for the closed forms",
    ),
    (
        (0.5, 4, 2),
        {"share": 1.5},
        "share must lie in [0, 1]; got 1.5; give the share of tokens that pass the gate",
    ),
    (
        (0.5, 4, 2),
        {"seed": -1},
        "seed must be a whole number of at least 0; got -1; give another",
    ),
    (
        (0.5, 4, 2),
        {"seed": True},
        "seed must be a whole number of at least 0; got True; give another",
    ),
    (
        (0.5, 4, 2),
        {"seed": 1.5},
        "seed must be a whole number of at least 0; got 1.5; give another",
    ),
    (
        ((0.5, 1.5), 4, (2, 3)),
        {},
        "p_correct[1] must lie in [0, 1]; got 1.5; give a probability",
    ),
    (
        (0.5, 4, 2),
        {"autocorrelation": -1.5},
        "autocorrelation must lie in [-1, 1); got -1.5; 0 means independent matches",
    ),
    (
        (0.5, 4, 0),
        {},
        "exit_layer must be a positive integer; got 0; give 1 or more",
    ),
    (
        (0.5, 4, "2"),
        {},
        "exit_layer must be a positive integer; got 2; give 1 or more",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD_SIMULATIONS)
def test_bad_input_is_named(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        simulate(*arguments, **options)
    assert str(caught.value).startswith(message)


def test_bad_traces_are_named(measurement: Measurement) -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: replay([True, 2], Policy(2), layers=4),
            "a trace must hold whole numbers from 0 (miss) to 1, the exits; got 2 at index 1; "
            "booleans do for one exit",
        ),
        (
            lambda: replay([0.5], Policy(2), layers=4),  # type: ignore[list-item]
            "a trace must hold whole numbers from 0 (miss) to 1, the exits; got 0.5 at index 0; "
            "booleans do for one exit",
        ),
        (
            lambda: replay([True], Policy(2)),
            "layers must be given for a sequence; got None; give a count",
        ),
        (
            lambda: replay(measurement, Policy((2, 9))),
            "exit_layer must not exceed layers; got 9; exit layers run from 1 to 6",
        ),
        (
            lambda: replay(measurement, Policy(2), layers=4),
            "layers must be left out for a measurement; got 4; it has 6",
        ),
        (
            lambda: replay(measurement, Policy(9)),
            "exit_layer must not exceed layers; got 9; exit layers run from 1 to 6",
        ),
        (
            lambda: replay([True], Policy(2, gate=0.5), layers=4),
            "a gate must have a measurement's probabilities; got gate 0.5 and a sequence; "
            "give a measurement, or make closed gates misses",
        ),
        (
            lambda: replay(measurement, Policy(2, depth=2, gate=0.5)),
            "a gate must have one exit and depth 1; got more; the recorded probabilities are those "
            "of the true processes alone",
        ),
        (
            lambda: replay(measurement, Policy((2, 4), gate=0.5)),
            "a gate must have one exit and depth 1; got more; the recorded probabilities are those "
            "of the true processes alone",
        ),
        (
            lambda: replay([True], 2, layers=4),  # type: ignore[arg-type]
            "policy must be a Policy; got 2; give ppdmodel.Policy(exit_layer, k, depth)",
        ),
        (
            lambda: replay(None, Policy(2), layers=4),  # type: ignore[arg-type]
            "a trace must be a measurement or one sequence; got None; give a list",
        ),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert str(caught.value) == message
