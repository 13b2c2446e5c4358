"""Page 1: the schedule obeys the recursion (1.1), which the simulator does not know."""

from __future__ import annotations

import itertools
import random

from ppdmodel import Policy, replay


def recursion(matches: list[bool], d: int, e: int, depth: int | None) -> list[int]:
    """When each token ends, by (1.1)."""
    start, finish = 0, [d]
    for i, match in enumerate(matches):
        held = finish[i - depth] if depth is not None and i >= depth else 0
        start = max(start + e, held) if match else finish[i]
        finish.append(start + d)
    return finish


def test_the_schedule_obeys_the_recursion() -> None:
    """All sequences of 8 matches on some schedules, and random ones on many."""
    every = [list(m) for m in itertools.product([True, False], repeat=8)]
    cases = [(m, d, e, D) for m in every for d, e, D in ((7, 1, 2), (6, 2, 1), (5, 2, None))]
    rng = random.Random(5)
    for _ in range(400):
        d = rng.randint(1, 30)
        matches = [rng.random() < 0.7 for _ in range(rng.randint(0, 30))]
        cases.append((matches, d, rng.randint(1, d), rng.choice([1, 2, 3, None])))
    for matches, d, e, depth in cases:
        run = replay(matches, Policy(e, 2, depth), layers=d).generations[0]
        assert run.finish_times.tolist() == recursion(matches, d, e, depth), (d, e, depth, matches)
