"""The simulator by hand, and the closed forms against the simulator."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from ppdmodel import formulas, simulate, simulate_matches
from ppdmodel.errors import InvalidInputError


def test_plain_decoding() -> None:
    run = simulate(0.5, 7, 7, 3, tokens=4)
    assert run.finish_times == (7, 14, 21, 28)
    assert run.work_done == (7, 14, 21, 28)
    assert run.peak_units == 1


def test_one_match_and_one_miss_by_hand() -> None:
    """d = 4, e = 2, k = 2: the second token starts at 2; the third, missed, at 6."""
    run = simulate_matches([True, False], 4, 2, 2)
    assert run.finish_times == (4, 6, 10)
    # until 4: root 4, two guesses 2 each; until 6: root 2, two wrong guesses 2 each; then 4 alone
    assert run.work_done == (8, 14, 18)
    assert run.peak_units == 3
    assert run.tokens == 3


def test_every_match_at_every_depth() -> None:
    for depth, each in ((1, 6), (2, 4), (3, 3), (11, 1), (None, 1)):
        run = simulate(1.0, 12, 1, 1, depth, tokens=60)
        steady = (run.finish_times[-1] - run.finish_times[11]) / 48
        assert steady == pytest.approx(max(each, 12 / ((depth or 99) + 1)), abs=0.2)


def recursion(matches: list[bool], d: int, e: int, depth: int | None) -> list[int]:
    """Equation (1.1) of the theory, which the simulator does not use."""
    start, finish = 0, [d]
    for i, match in enumerate(matches):
        held = finish[i - depth] if depth is not None and i >= depth else 0
        start = max(start + e, held) if match else finish[i]
        finish.append(start + d)
    return finish


def test_start_times_follow_the_recursion() -> None:
    rng = random.Random(5)
    for _ in range(150):
        d = rng.randint(1, 14)
        e, k = rng.randint(1, d), rng.randint(1, 2)
        depth = rng.choice([1, 2, 3, None]) if d / e < 7 else 1
        matches = [rng.random() < 0.7 for _ in range(rng.randint(0, 20))]
        run = simulate_matches(matches, d, e, k, depth)
        assert list(run.finish_times) == recursion(matches, d, e, depth), (d, e, depth, matches)


def grid() -> list[tuple[float, int, int, int, int | None]]:
    """Random settings small enough to simulate, each kind of depth among them."""
    rng = random.Random(11)
    found: list[tuple[float, int, int, int, int | None]] = []
    while len(found) < 48:
        d = rng.randint(2, 24)
        e, k, depth = rng.randint(1, d), rng.randint(1, 4), (1, 2, 3, None)[len(found) % 4]
        if formulas.peak_units(d, e, k, depth) <= 40:
            found.append((round(rng.uniform(0.02, 0.98), 2), d, e, k, depth))
    return found


@pytest.mark.parametrize(("p", "d", "e", "k", "depth"), grid())
def test_closed_forms_within_four_standard_errors(
    p: float, d: int, e: int, k: int, depth: int | None
) -> None:
    tokens, batches = 4000, 40
    run = simulate(p, d, e, k, depth, tokens=tokens, seed=d * 1000 + e)
    edge = 50 if depth is None else depth + 1  # the first and last tokens are no steady state
    for totals, expected in (
        (run.finish_times, formulas.latency_per_token(p, d, e, depth)),
        (run.work_done, formulas.compute_per_token(p, d, e, k, depth)),
    ):
        steps = np.diff(np.array(totals[edge:-edge], dtype=float))
        means = np.array([part.mean() for part in np.array_split(steps, batches)])
        error = means.std(ddof=1) / math.sqrt(batches)
        assert abs(steps.mean() - expected) <= 4 * error + 1e-9, (steps.mean(), expected, error)
    assert run.peak_units <= formulas.peak_units(d, e, k, depth)


def test_correlated_matches_wait_more_often_than_independent_ones() -> None:
    """theory/02: two-state Markov matches, p = 1/2, lag-1 autocorrelation 0.6."""
    rng = random.Random(3)
    matches = [True]
    while len(matches) < 40_000:
        matches.append(rng.random() < (0.8 if matches[-1] else 0.2))
    run = simulate_matches(matches, 8, 1, 1, 1)
    assert run.finish_times[-1] / run.tokens == pytest.approx(35 / 6, rel=0.02)
    assert formulas.latency_per_token(0.5, 8, 1, 1) == pytest.approx(5.5)


def test_the_peak_is_reached() -> None:
    for d, e, k, depth in ((12, 6, 3, 1), (12, 4, 2, 2), (12, 3, 2, None), (12, 5, 3, 9)):
        assert simulate(0.9, d, e, k, depth, tokens=100).peak_units == formulas.peak_units(
            d, e, k, depth
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5, 4, 2), "p_correct must lie in [0, 1]; got 1.5; give a probability"),
        ((0.5, 4.5, 2), "layers must be a positive integer; got 4.5; give 1 or more"),
        ((0.5, 4, 5), "exit_layer must not exceed layers; got 5; exit layers run from 1 to 4"),
        ((0.5, 4, 2, True), "k must be a positive integer; got True; give 1 or more"),
        (
            (0.5, 4, 2, 1, 0),
            "depth must be a positive integer; got 0; give 1 or more, or unlimited (None, inf)",
        ),
    ],
)
def test_bad_input_is_named(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        simulate(*arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_matches_must_be_booleans() -> None:
    with pytest.raises(InvalidInputError, match="matches must be true or false"):
        simulate_matches([0.5], 4, 2)  # type: ignore[list-item]
