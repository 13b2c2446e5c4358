"""What the units tell each other: numbers in shared memory, written once and then announced.

Process i makes generated token i; process 0 is the reading of the prompt. Everything that belongs
to an announcement is written before it, and a fence lies between: a reader that sees the number
sees the rest.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from .shared_memory import Shared, zeros

#: in `row`: the verified process starts from layer 0, at the unit that gave the verdict
AFRESH = -1


@dataclass(frozen=True)
class Size:
    """What a board must hold: tokens of a text, units, guesses of a unit, width of a state."""

    tokens: int
    units: int
    k: int
    width: int
    dtype: torch.dtype


def new_board(size: Size) -> Shared:
    """Shared memory for a board; `Board` gives it its meaning."""
    whole, tokens = torch.int64, size.tokens
    return zeros(
        {
            "stop": ((1,), whole),
            "progress": ((tokens,), whole),
            "verdict": ((tokens,), whole),
            "verdict_ns": ((tokens,), whole),
            "owner": ((tokens + 1,), whole),
            "row": ((tokens + 1,), whole),
            "guessed": ((size.units,), whole),
            "n_guesses": ((size.units, tokens), whole),
            "guesses": ((size.units, tokens, size.k), whole),
            "exit_state": ((tokens, size.width), size.dtype),
        }
    )


class Board:
    """A board in this process.

    Attributes:
        stop: [1], not 0 when the text has ended.
        progress: [tokens], layers that the verified process of a token has run.
        verdict: [tokens], the token's id plus 1; 0 while it is unknown.
        verdict_ns: [tokens], when it was given, on the monotonic clock.
        owner: [tokens + 1], the unit of a token's verified process; known from the verdict before.
        row: likewise, which of that unit's guesses it was, or `AFRESH`.
        guessed: [units], the last token whose guesses a unit has published, -1 for none.
        guesses: [units, tokens, k], of which `n_guesses` [units, tokens] are valid.
        exit_state: [tokens, width], what the exit reads; valid once progress has reached it.
    """

    stop: np.ndarray
    progress: np.ndarray
    verdict: np.ndarray
    verdict_ns: np.ndarray
    owner: np.ndarray
    row: np.ndarray
    guessed: np.ndarray
    n_guesses: np.ndarray
    guesses: np.ndarray

    def __init__(self, memory: Shared) -> None:
        for name in ("stop", "progress", "verdict", "verdict_ns", "owner", "row"):
            setattr(self, name, memory.tensor(name).numpy())
        for name in ("guessed", "n_guesses", "guesses"):
            setattr(self, name, memory.tensor(name).numpy())
        self.exit_state = memory.tensor("exit_state")
        self._lock = threading.Lock()
        self._lock.acquire()

    def clear(self) -> None:
        """Make ready for another text; no unit may be at work."""
        for array in (self.stop, self.progress, self.verdict, self.owner, self.row):
            array.fill(0)
        self.guessed.fill(-1)
        self.fence()

    def fence(self) -> None:
        """Order memory: what was written before is seen before what is written after.

        What stands before a lock's release stays before it, what stands after its taking after it.
        An x86 needs no more than that the program's order is kept.
        """
        self._lock.release()
        self._lock.acquire()

    def publish_guesses(self, unit: int, token: int, guesses: np.ndarray) -> None:
        """Say which tokens a unit's rows start from, for the place after `token`."""
        self.guesses[unit, token, : len(guesses)] = guesses
        self.n_guesses[unit, token] = len(guesses)
        self.fence()
        self.guessed[unit] = token

    def row_of(self, token: int, true_id: int, me: int) -> tuple[int, int]:
        """The unit and row that guessed the true token in time, or this unit and `AFRESH`."""
        for unit in range(len(self.guessed)):
            if unit == me or self.guessed[unit] != token:
                continue
            self.fence()
            mine = self.guesses[unit, token, : self.n_guesses[unit, token]]
            found = np.flatnonzero(mine == true_id)
            if len(found):
                return unit, int(found[0])
        return me, AFRESH

    def give_verdict(self, token: int, true_id: int, owner: int, row: int, now_ns: int) -> None:
        """Announce a token, and which process goes on."""
        self.owner[token + 1], self.row[token + 1] = owner, row
        self.verdict_ns[token] = now_ns
        self.fence()
        self.verdict[token] = true_id + 1
