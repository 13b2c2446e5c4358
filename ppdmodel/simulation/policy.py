"""A PPD policy: exit layers, guesses, depth and gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..checks import check_schedule, positive_integer, real_number
from ..errors import InvalidInputError


@dataclass(frozen=True)
class Policy:
    """A PPD policy: exit layers, guesses per exit, depth and confidence gate.

    Args:
        exit_layer: exit layer, or several in increasing order.
        k: guesses started at each exit; one number means the same at every exit.
        depth: tokens in flight beyond the one being verified; None is unlimited.
        gate: start guesses only where the exit's top probability is at least this; None: always.

    Raises:
        InvalidInputError: one of them is out of its domain.

    >>> Policy(exit_layer=(10, 20), k=2).guesses
    (2, 2)
    """

    exit_layer: int | Sequence[int]
    k: int | Sequence[int] = 1
    depth: int | None = 1
    gate: float | None = None

    def __post_init__(self) -> None:
        for name in ("exit_layer", "k"):  # store any sequence as a tuple
            value = getattr(self, name)
            object.__setattr__(self, name, value if _is_one(value) else _each(value))
        exits = self.exits
        for exit_layer in exits:
            positive_integer("exit_layer", exit_layer)
        for guesses in self.guesses:
            positive_integer("k", guesses)
        if len(self.guesses) != len(exits):
            raise InvalidInputError(
                f"k must have one value per exit; got {len(self.guesses)} for {len(exits)} exits; "
                "give one for each, or one for all"
            )
        if not exits or any(b <= a for a, b in pairwise(exits)):
            raise InvalidInputError(
                f"exit layers must increase; got {', '.join(map(str, exits)) or 'none'}; "
                "give them in order"
            )
        check_schedule(max(exits), max(exits), depth=self.depth)
        if self.gate is not None and real_number("gate", self.gate, 0, "give a probability") > 1:
            raise InvalidInputError(f"gate must lie in [0, 1]; got {self.gate}; give a probability")

    @property
    def exits(self) -> tuple[int, ...]:
        """The exit layers, increasing."""
        return _each(self.exit_layer)

    @property
    def guesses(self) -> tuple[int, ...]:
        """Guesses started at each exit."""
        k = _each(self.k)
        return k * len(self.exits) if _is_one(self.k) else k


def _is_one(value: Any) -> bool:
    return isinstance(value, str) or not getattr(value, "shape", hasattr(value, "__len__"))


def _each(value: Any) -> tuple[int, ...]:
    """Whole numbers as `int`; other values unchanged, for the checks to reject."""
    values = (value,) if _is_one(value) else tuple(value)
    return tuple(_as_whole(x) for x in values)


def _as_whole(value: Any) -> Any:
    try:
        return value if isinstance(value, (bool, str)) or int(value) != value else int(value)
    except (TypeError, ValueError, OverflowError):
        return value
