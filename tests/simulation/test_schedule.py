"""The schedule by hand and against the tick-by-tick reference."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from ppdmodel import Policy, formulas, replay, simulate
from ppdmodel.errors import InvalidInputError
from ppdmodel.simulation.runs import Simulation
from ppdmodel.simulation.schedule import Schedule, schedule_times
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
        passes = [rng.random() < 0.8 for _ in hits] if rng.random() < 0.5 else None
        times = schedule_times(d, ticks, start, promotion)
        policy = Policy(exits, k, depth)
        run = Schedule(policy, times, hits, passes, wrong_gate=None, record=False).result()
        same = tick_by_tick(hits, ticks, exits, k, depth, passes, start, promotion)
        case = (d, exits, k, depth, hits, ticks, passes, start, promotion)
        assert run.finish_times.tolist() == same.finish_times, case
        assert run.work_done.tolist() == same.work_done, case
        assert run.peak_units == same.peak_units, case


@pytest.mark.parametrize(
    ("passing", "work", "peak"), [(0, [7, 14, 17], 3), (1, [9, 16, 19], 5), (2, [11, 18, 21], 7)]
)
def test_wrong_processes_start_guesses_where_they_pass_the_gate(
    passing: int, work: list[int], peak: int
) -> None:
    """d = 3, e = 1, k = 2, two misses: by 3 the two wrong ones ran 2, and those of theirs 1."""
    gated: list[int] = []

    def wrong_gate(processes: int) -> int:
        gated.append(processes)
        return passing

    times = schedule_times(3, None, 0, 0)
    policy = Policy(1, 2, depth=None)
    run = Schedule(policy, times, [0, 0], None, wrong_gate=wrong_gate, record=True).result()
    assert gated == [2]
    assert run.finish_times.tolist() == [3, 6, 9]
    assert run.work_done.tolist() == work
    assert run.peak_units == peak
    assert run.processes is not None
    assert all(process.count > 0 for process in run.processes)


def test_the_peak_is_reached() -> None:
    for d, e, k, depth in ((12, 6, 3, 1), (12, 4, 2, 2), (12, 3, 2, None), (12, 5, 3, 9)):
        assert simulate(0.9, d, e, k, depth, tokens=100).peak_units == formulas.peak_units(
            d, e, k, depth
        )


def test_a_short_generation_has_its_own_peak() -> None:
    """Generation j needs token j: for few tokens the sum ends there (theory/03)."""
    assert simulate(0.9, 12, 2, 2, None, tokens=3).peak_units == 1 + 2 + 4
    assert simulate(0.9, 12, 2, 2, None, tokens=1).peak_units == 1


def test_delays_are_paid_on_a_match_only() -> None:
    """theory/09-limits.md: d - p (d - e - start - promotion), for D = 1 and e >= d/2."""
    run = simulate(0.6, 40, 25, 2, tokens=30_000, start_delay=2, promotion_delay=1.5, seed=3)
    steps = np.diff(run.finish_times)
    assert sorted(set(steps)) == [25 + 3.5, 40]
    assert steps.mean() == pytest.approx(40 - 0.6 * (15 - 3.5), abs=4 * 15 * 0.5 / 30_000**0.5)


BAD: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
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


@pytest.mark.parametrize(("arguments", "options", "message"), BAD)
def test_bad_input_is_named(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        simulate(*arguments, **options)
    assert str(caught.value).startswith(message)


def test_a_match_costs_two_events() -> None:
    """An exit and a verification; a wrong process that can start nothing reads no exit."""
    times = schedule_times(8, None, 0, 0)
    run = Schedule(Policy(5, 3), times, [1] * 9, None, wrong_gate=None, record=False)
    assert next(run.order) == 10 + 9


def test_times_add_up_over_the_layers() -> None:
    times = schedule_times(3, [2, 1, 4], 0.5, 0.25)
    assert times.after == [0, 2, 3, 7]
    assert (times.start_delay, times.promotion_delay) == (0.5, 0.25)
    assert schedule_times(3, None, 0, 0).after == [0, 1, 2, 3]
    assert run_of([], Policy(1), 2, layer_times=[0.25, 0.5]).finish_times.tolist() == [0.75]


def test_records_say_what_the_work_was() -> None:
    """Units held and layers executed, counted from the records of 100 random generations."""
    rng = random.Random(2)
    for _ in range(100):
        d, e, k = rng.randint(2, 9), rng.randint(1, 4), rng.randint(1, 3)
        hits = [rng.randint(0, 1) for _ in range(rng.randint(0, 7))]
        depth = rng.choice([1, 2, None])
        run = run_of(hits, Policy(min(e, d), k, depth), d, record=True)
        assert run.processes is not None
        work = sum(p.count * min(p.ended - p.started, d) for p in run.processes)
        assert work == run.work_done[-1]
        true = sorted((p.token, p.ended) for p in run.processes if p.verified)
        assert true == list(enumerate(run.finish_times))
        assert all(p.verified == (p.generation == 0) for p in run.processes if p.verified)
        begins = {p.started for p in run.processes}
        held = [sum(p.count for p in run.processes if p.started <= t < p.ended) for t in begins]
        assert max(held) == run.peak_units


def test_an_exit_must_lie_in_the_model() -> None:
    """The last layer may be an exit; it starts nothing that helps."""
    assert run_of([True], Policy(4), 4).finish_times.tolist() == [4, 8]
    with pytest.raises(InvalidInputError, match=r"^exit_layer must not exceed layers; got 5"):
        run_of([True], Policy(5), 4)
    with pytest.raises(InvalidInputError, match=r"^exit_layer must not exceed layers; got 9"):
        run_of([True], Policy((1, 9)), 4)
