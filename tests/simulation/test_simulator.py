"""The simulator by hand and against the tick-by-tick reference; the formulas against it."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from ppdmodel import Measurement, Policy, formulas, replay, simulate
from ppdmodel.errors import InvalidInputError
from ppdmodel.simulation.runs import Simulation
from tests.support.reference import tick_by_tick


def run_of(matches: list[Any], policy: Policy, layers: int, **costs: Any) -> Simulation:
    return replay(matches, policy, layers=layers, **costs).generations[0]


def test_plain_decoding() -> None:
    run = simulate(0.5, 7, 7, 3, tokens=4)
    assert run.finish_times.tolist() == [7, 14, 21, 28]
    assert run.work_done.tolist() == [7, 14, 21, 28]
    assert run.peak_units == 1


def test_one_match_and_one_miss_by_hand() -> None:
    """d = 4, e = 2, k = 2: the second token starts at 2; the third, missed, at 6."""
    run = run_of([True, False], Policy(2, 2), 4)
    assert run.finish_times.tolist() == [4, 6, 10]
    # by 4: the root ran 4, one wrong guess 2; by 6: a right one 4, two wrong ones 2 each; then 4
    assert run.work_done.tolist() == [6, 14, 18]
    assert run.peak_units == 3
    assert run.tokens == 3


def test_every_match_at_every_depth() -> None:
    for depth, each in ((1, 6), (2, 4), (3, 3), (11, 1), (None, 1)):
        run = simulate(1.0, 12, 1, 1, depth, tokens=60)
        steady = (run.finish_times[-1] - run.finish_times[11]) / 48
        assert steady == pytest.approx(max(each, 12 / ((depth or 99) + 1)), abs=0.2)


def test_recorded_processes_are_those_of_the_example() -> None:
    """The timeline of theory/01-setting.md."""
    run = run_of([True, False], Policy(2, 2), 4, record=True)
    assert run.processes is not None
    found = sorted(
        (p.token, p.started, p.ended, p.count, p.verified, p.generation) for p in run.processes
    )
    assert found == [
        (0, 0, 4, 1, True, 0),
        (1, 2, 4, 1, False, 1),
        (1, 2, 6, 1, True, 0),
        (2, 4, 6, 2, False, 1),
        (2, 6, 10, 1, True, 0),
    ]


def test_it_does_what_the_tick_by_tick_reference_does() -> None:
    """1500 random generations: several exits, gates, unequal layers, delays, every depth."""
    rng = random.Random(1)
    for _ in range(1500):
        d = rng.randint(1, 10)
        exits = sorted(rng.sample(range(1, d + 1), rng.randint(1, min(d, 3))))
        k = [rng.randint(1, 2) for _ in exits]
        depth = rng.choice([1, 2, 3, None] if d / exits[0] <= 4 else [1, 2])
        hits = [rng.choice([0, *exits]) for _ in range(rng.randint(0, 9))]
        hits = [exits.index(hit) + 1 if hit else 0 for hit in hits]
        ticks = [rng.randint(1, 3) if rng.random() < 0.5 else 1 for _ in range(d)]
        start, promotion = rng.choice([0, 0, 1, 2, 5]), rng.choice([0, 0, 1, 3, 30])
        run = run_of(
            hits,
            Policy(exits, k, depth),
            d,
            layer_times=ticks,
            start_delay=start,
            promotion_delay=promotion,
        )
        same = tick_by_tick(hits, ticks, exits, k, depth, None, start, promotion)
        case = (d, exits, k, depth, hits, ticks, start, promotion)
        assert run.finish_times.tolist() == same.finish_times, case
        assert run.work_done.tolist() == same.work_done, case
        assert run.peak_units == same.peak_units, case


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


def test_delays_are_paid_on_a_match_only() -> None:
    """theory/09-limits.md: d - p (d - e - start - promotion), for D = 1 and e >= d/2."""
    run = simulate(0.6, 40, 25, 2, tokens=30_000, start_delay=2, promotion_delay=1.5, seed=3)
    steps = np.diff(run.finish_times)
    assert sorted(set(steps)) == [25 + 3.5, 40]
    assert steps.mean() == pytest.approx(40 - 0.6 * (15 - 3.5), abs=4 * 15 * 0.5 / 30_000**0.5)


def test_the_peak_is_reached() -> None:
    for d, e, k, depth in ((12, 6, 3, 1), (12, 4, 2, 2), (12, 3, 2, None), (12, 5, 3, 9)):
        assert simulate(0.9, d, e, k, depth, tokens=100).peak_units == formulas.peak_units(
            d, e, k, depth
        )


def test_a_short_generation_has_its_own_peak() -> None:
    """Generation j needs token j: for few tokens the sum ends there (theory/03)."""
    assert simulate(0.9, 12, 2, 2, None, tokens=3).peak_units == 1 + 2 + 4
    assert simulate(0.9, 12, 2, 2, None, tokens=1).peak_units == 1


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
    assert replay(measurement, Policy(4, 2, gate=0.6)).latency_per_token == 6.0
    assert replay(measurement, Policy(4, 2, gate=0.6)).compute_per_token == 6.0
    everywhere = replay(measurement, Policy(4, 2, gate=0.5))
    assert everywhere.latency_per_token == replay(measurement, Policy(4, 2)).latency_per_token


def test_autocorrelation_of_a_replay_is_that_of_its_matches() -> None:
    run = simulate(0.5, 4, 2, tokens=50_000, autocorrelation=0.6, seed=1)
    result = replay(run.first_hit.tolist(), Policy(2), layers=4)
    assert result.autocorrelation == pytest.approx(0.6, abs=0.02)
    assert result.generations[0].finish_times.tolist() == run.finish_times.tolist()
    assert replay([], Policy(2), layers=4).match_rate is None
    assert replay([True, True], Policy(2), layers=4).autocorrelation is None


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
        {"share": 1.5},
        "share must lie in [0, 1]; got 1.5; give the share of tokens that pass the gate",
    ),
    (
        (0.5, 4, 2),
        {"layer_times": [1, 2]},
        "layer_times must have one value per layer; got 2 for 4 layers; give a time for each",
    ),
    (
        (0.5, 4, 2),
        {"layer_times": [1, 1, 0, 1]},
        "layer_times must be positive; got 0 at index 2; give the time of each layer",
    ),
    (
        (0.5, 4, 2),
        {"layer_times": 1},
        "layer_times must have one value per layer; got 1; give a time for each",
    ),
    (
        (0.5, 4, 2),
        {"layer_times": [1, 1, "a", 1]},
        "layer_times[2] must be a number of at least 0; got 'a'; give the time of each layer",
    ),
    (
        (0.5, 4, 2),
        {"seed": -1},
        "seed must be a whole number of at least 0; got -1; give another",
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
    (
        (0.5, 4, 2),
        {"start_delay": -1},
        "start_delay must be a number of at least 0; got -1; give it in layer times",
    ),
    (
        (0.5, 400, 1, 9, None),
        {},
        "the layer executions must fit a float; got more than 1e308; lower k or depth",
    ),
    (
        (0.5, 80, 1, 4, None),
        {"share": 0.9},
        "a gate must not draw from more than 4611686018427387904 processes at once; got ",
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
    for call, message in (
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
            lambda: replay([True], 2, layers=4),  # type: ignore[arg-type]
            "policy must be a Policy; got 2; give ppdmodel.Policy(exit_layer, k, depth)",
        ),
        (
            lambda: replay(None, Policy(2), layers=4),  # type: ignore[arg-type]
            "a trace must be a measurement or one sequence; got None; give a list",
        ),
        (
            lambda: Policy(2, gate="a"),  # type: ignore[arg-type]
            "gate must be a number of at least 0; got 'a'; give a probability",
        ),
        (lambda: Policy(2, gate=1.5), "gate must lie in [0, 1]; got 1.5; give a probability"),
        (lambda: Policy(()), "exit layers must increase; got none; give them in order"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert str(caught.value) == message


def test_a_replay_is_a_table_of_texts(measurement: Measurement) -> None:
    result = replay(measurement, Policy(4, k=2))
    frame = result.to_frame()
    assert len(frame) == len(result.generations)
    mean = (frame.tokens * frame.latency_per_token).sum() / frame.tokens.sum()
    assert mean == pytest.approx(result.latency_per_token)
