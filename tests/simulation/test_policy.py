"""Which settings of PPD can be run, and how they are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ppdmodel import Policy
from ppdmodel.errors import InvalidInputError


@pytest.mark.parametrize("exits", [[2, 5], (2, 5), np.array([2, 5]), (2.0, np.int64(5))])
def test_sequences_of_any_kind_are_tuples_of_whole_numbers(exits: Any) -> None:
    """Whole floats and NumPy's numbers count as whole numbers; one k is every exit's."""
    policy = Policy(exits, k=3)
    assert (policy.exits, policy.guesses) == ((2, 5), (3, 3))
    assert all(type(x) is int for x in policy.exits)
    assert policy == Policy((2, 5), k=3)
    assert hash(policy) == hash(Policy((2, 5), k=3))


def test_one_exit_and_its_defaults() -> None:
    """One guess, one token ahead, no gate."""
    four: Any = np.array(4)
    policy = Policy(four)
    assert (policy.exits, policy.guesses, policy.depth, policy.gate) == ((4,), (1,), 1, None)
    assert Policy((2, 5), k=(1, 4)).guesses == (1, 4)
    assert [Policy(2, gate=gate).gate for gate in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exit_layer": 0}, "exit_layer must be a positive integer; got 0; give 1 or more"),
        ({"exit_layer": "2"}, "exit_layer must be a positive integer; got 2; give 1 or more"),
        ({"exit_layer": True}, "exit_layer must be a positive integer; got True; give 1 or more"),
        ({"exit_layer": 2.5}, "exit_layer must be a positive integer; got 2.5; give 1 or more"),
        ({"exit_layer": None}, "exit_layer must be a positive integer; got None; give 1 or more"),
        ({"exit_layer": (2, 2)}, "exit layers must increase; got 2, 2; give them in order"),
        ({"exit_layer": (3, 2)}, "exit layers must increase; got 3, 2; give them in order"),
        ({"exit_layer": ()}, "exit layers must increase; got none; give them in order"),
        ({"exit_layer": 2, "k": 0}, "k must be a positive integer; got 0; give 1 or more"),
        ({"exit_layer": (2, 3), "k": (1, 0)}, "k must be a positive integer; got 0; give 1 or"),
        (
            {"exit_layer": 2, "k": (1, 2)},
            "k must have one value per exit; got 2 for 1 exits; give one for each, or one for all",
        ),
        ({"exit_layer": 2, "depth": 0}, "depth must be a positive integer; got 0; give 1 or more"),
        (
            {"exit_layer": 2, "gate": "a"},
            "gate must be a number of at least 0; got 'a'; give a probability",
        ),
        ({"exit_layer": 2, "gate": 1.5}, "gate must lie in [0, 1]; got 1.5; give a probability"),
        ({"exit_layer": 2, "gate": -0.1}, "gate must be a number of at least 0; got -0.1; give a"),
    ],
)
def test_what_no_schedule_has_is_named(arguments: dict[str, Any], message: str) -> None:
    """Each part of a policy has its domain."""
    with pytest.raises(InvalidInputError) as caught:
        Policy(**arguments)
    assert str(caught.value).startswith(message)
