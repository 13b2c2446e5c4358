"""Policies: what they hold, and what is no policy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from ppdmodel import Policy
from ppdmodel.errors import InvalidInputError


def test_one_exit_or_several() -> None:
    one, several = Policy(4), Policy([2, 5, 9], k=3, depth=None, gate=1)
    assert (one.exits, one.guesses, one.depth, one.gate) == ((4,), (1,), 1, None)
    assert (several.exits, several.guesses) == ((2, 5, 9), (3, 3, 3))
    assert Policy((2, 5), k=(1, 4)).guesses == (1, 4)
    assert Policy(2, gate=0).gate == 0


def test_sequences_and_numbers_of_any_kind_are_the_same_policy() -> None:
    plain = Policy((2, 5), (1, 4))
    assert Policy(np.array([2, 5]), np.array([1, 4])) == plain  # type: ignore[arg-type]
    assert Policy([2.0, 5.0], [1, 4]) == plain  # type: ignore[list-item]
    assert Policy(np.int64(2), 2) == Policy(2, 2)  # type: ignore[arg-type]
    assert hash(Policy([2, 5], [1, 4])) == hash(plain)


BAD: list[tuple[Callable[[], Policy], str]] = [
    (
        lambda: Policy(2, gate="a"),  # type: ignore[arg-type]
        "gate must be a number of at least 0; got 'a'; give a probability",
    ),
    (
        lambda: Policy((1, None)),  # type: ignore[arg-type]
        "exit_layer must be a positive integer; got None; give 1 or more",
    ),
    (
        lambda: Policy(math.nan),  # type: ignore[arg-type]
        "exit_layer must be a positive integer; got nan; give 1 or more",
    ),
    (
        lambda: Policy(2, math.inf),  # type: ignore[arg-type]
        "k must be a positive integer; got inf; give 1 or more",
    ),
    (
        lambda: Policy(2.5),  # type: ignore[arg-type]
        "exit_layer must be a positive integer; got 2.5; give 1 or more",
    ),
    (lambda: Policy(2, gate=1.5), "gate must lie in [0, 1]; got 1.5; give a probability"),
    (lambda: Policy(()), "exit layers must increase; got none; give them in order"),
    (lambda: Policy((3, 2)), "exit layers must increase; got 3, 2; give them in order"),
    (lambda: Policy((3, 3)), "exit layers must increase; got 3, 3; give them in order"),
    (lambda: Policy(0), "exit_layer must be a positive integer; got 0; give 1 or more"),
    (lambda: Policy(2, True), "k must be a positive integer; got True; give 1 or more"),
    (
        lambda: Policy(2, (1, 2)),
        "k must have one value per exit; got 2 for 1 exits; give one for each, or one for all",
    ),
    (
        lambda: Policy(2, 1, 0),
        "depth must be a positive integer; got 0; give 1 or more, or unlimited (None, inf)",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Policy], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert str(caught.value) == message
