"""The times of a run of PPD, read off its events, by hand; and where they are timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ppdmodel.errors import RunFailedError
from ppdmodel.pipeline.timing import _filled, ppd_terms, timed_exit_layers
from ppdmodel.pipeline.unit import EventKind
from ppdmodel.pipeline.worker_pool import Run

LAYER, HEAD, EXIT = EventKind.LAYER, EventKind.HEAD, EventKind.EXIT


def a_run(units: list[list[Any]], verdicts: list[int], matched: list[bool]) -> Run:
    """Events as (start, end, did, token, layer, rows), in seconds."""
    events = tuple(
        np.array([[s * 10**9, e * 10**9, int(did), *what] for s, e, did, *what in unit])
        for unit in units
    )
    times = np.array(verdicts) * 10**9
    return Run((7,) * len(verdicts), times, np.array(matched), events)


def test_the_times_of_a_run() -> None:
    """Three layers, exit after the second: a token after a miss, and one that was guessed."""
    first = [
        (102, 105, LAYER, 2, 1, 1),  # 2 s after the verdict on token 1
        (105, 107, LAYER, 2, 2, 1),
        (108, 112, LAYER, 2, 3, 1),
        (113, 123, HEAD, 2, 0, 1),
        (131, 135, EXIT, 3, 2, 1),  # guesses for token 4
        (136, 143, LAYER, 4, 1, 4),
        (145, 152, LAYER, 4, 2, 4),  # in flight at the verdict
        (153, 154, EventKind.DROP, 4, 2, 4),
    ]
    second = [
        (109, 114, EXIT, 2, 2, 1),
        (115, 124, LAYER, 3, 1, 4),  # in flight at the verdict
        (124, 125, EventKind.PROMOTE, 3, 1, 1),
        (126, 130, LAYER, 3, 2, 1),
        (130, 137, LAYER, 3, 3, 1),
        (138, 150, HEAD, 3, 0, 1),
    ]
    run = a_run([first, second], [50, 100, 123, 150], [False, False, False, True])
    assert ppd_terms(run, layers=3, exit_layer=2) == {
        "layer_time": pytest.approx((6 + 4) / 3),  # layers 1 and 2 of token 2, layer 2 of token 3
        "busy_layer_time": (5 + 8) / 2,
        "batch_layer_time": 9,
        "head_time": (10 + 12) / 2,
        "exit_time": (5 + 4) / 2,
        "token_time": 2,
        "start_delay": (2 + 1) / 2,
        "promotion_delay": 2,
    }


def test_a_guess_of_one_row_is_no_verified_layer() -> None:
    """With k = 1 the layers of both look alike; here the guess has run them all."""
    guess = [
        (90, 95, EXIT, 1, 1, 1),
        (95, 97, LAYER, 2, 1, 1),
        (97, 99, LAYER, 2, 2, 1),
        (100, 103, EventKind.PROMOTE, 2, 2, 1),
        (104, 110, HEAD, 2, 0, 1),
    ]
    found = ppd_terms(a_run([guess], [50, 100, 110], [False, False, True]), 2, 1)
    assert found == {
        "layer_time": None,
        "busy_layer_time": None,
        "batch_layer_time": 2,
        "head_time": 6,
        "exit_time": 5,
        "token_time": None,
        "start_delay": None,
        "promotion_delay": 4,
    }


def test_what_never_happened_is_taken_from_the_nearest_exit() -> None:
    assert _filled("exit_time", [None, 2.0, 3.0, None]) == [2.0, 2.0, 3.0, 3.0]
    with pytest.raises(RunFailedError, match=r"PPD must show its promotion_delay .* in time"):
        _filled("promotion_delay", [None, None])


@pytest.mark.parametrize(
    ("layers", "expected"), [(3, (1, 2)), (12, (3, 6, 9, 11)), (30, (8, 15, 23, 27))]
)
def test_ppd_is_timed_at_several_depths(layers: int, expected: tuple[int, ...]) -> None:
    assert timed_exit_layers(layers) == expected
