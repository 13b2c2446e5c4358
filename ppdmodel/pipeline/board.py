"""The shared memory through which units communicate; there is no coordinator.

Every array has a place for each generated token, so that its index is a sequence number. Process i
makes generated token i; process 0 reads the prompt. A message is published after its payload, with
a memory fence between: a reader that sees the message sees the payload.
"""

from __future__ import annotations

import os
import threading

import numpy as np
import torch

from .shared_memory import SharedTensors

#: in `row`: no guess was right, so the process starts from layer 0 on the unit that verified
NO_MATCH = -1
#: in `n_guesses`: the unit has not read that exit
UNREAD = -1


def new_board(tokens: int, units: int, k: int, width: int, dtype: torch.dtype) -> SharedTensors:
    """Shared memory for a `Board`, which each process opens.

    Args:
        tokens: most new tokens of a text.
        units: how many.
        k: most guesses.
        width: of a hidden state.
        dtype: of a hidden state.
    """
    whole = torch.int64
    return SharedTensors(
        {
            "stop": ((1,), whole),
            "abandoned": ((1,), whole),
            "progress": ((tokens,), whole),
            "verdict": ((tokens,), whole),
            "verdict_ns": ((tokens,), whole),
            "owner": ((tokens + 1,), whole),
            "row": ((tokens + 1,), whole),
            "guessed": ((units,), whole),
            "n_guesses": ((units, tokens), whole),
            "guesses": ((units, tokens, k), whole),
            "exit_state": ((tokens, width), dtype),
        }
    )


_LOCK = threading.Lock()
_LOCK.acquire()


def fence() -> None:
    """Memory fence: other processes see what was written before it before what comes after.

    A lock's release keeps earlier writes before it, its acquisition later ones after it. x86 needs
    no more than that the compiler keeps the order of the program.
    """
    _LOCK.release()
    _LOCK.acquire()


class TextEndedError(Exception):
    """The text has ended."""


class Board:
    """One process's view of the shared arrays.

    Attributes:
        stop: [1], not 0 when the text has ended.
        abandoned: [1], not 0 when nobody waits for the text any more.
        progress: [tokens], layers that the verified process of a token has run.
        verdict: [tokens], the token's id plus 1; 0 while it is unknown.
        verdict_ns: [tokens], when it became known, on the monotonic clock.
        owner: [tokens + 1], the unit of a token's verified process; valid with the verdict before.
        row: likewise, which of that unit's guesses it was, or `NO_MATCH`.
        guessed: [units], the last token whose guesses a unit has published, -1 for none.
        guesses: [units, tokens, k], of which `n_guesses` [units, tokens] are valid; those that came
            after the verdict too.
        exit_state: [tokens, width], the input of the exit; valid once progress has reached it.
    """

    stop: np.ndarray
    abandoned: np.ndarray
    progress: np.ndarray
    verdict: np.ndarray
    verdict_ns: np.ndarray
    owner: np.ndarray
    row: np.ndarray
    guessed: np.ndarray
    n_guesses: np.ndarray
    guesses: np.ndarray

    def __init__(self, memory: SharedTensors) -> None:
        for name in type(self).__annotations__:
            setattr(self, name, memory.tensor(name).numpy())
        self.exit_state = memory.tensor("exit_state")

    def clear(self) -> None:
        """Reset for another text; all units must be idle."""
        for name in ("stop", "abandoned", "progress", "verdict", "owner", "row"):
            getattr(self, name).fill(0)
        self.n_guesses.fill(UNREAD)
        self.guessed.fill(-1)
        fence()

    def publish_guesses(self, unit: int, token: int, guesses: np.ndarray) -> None:
        """Publish the token ids that a unit's rows guess for the position after `token`."""
        self.guesses[unit, token, : len(guesses)] = guesses
        self.n_guesses[unit, token] = len(guesses)
        fence()
        self.guessed[unit] = token

    def find_match(self, token: int, true_id: int, verifier: int) -> tuple[int, int]:
        """The unit and row whose published guess is `true_id`, else `verifier` and `NO_MATCH`."""
        for unit in range(len(self.guessed)):
            if unit == verifier or self.guessed[unit] != token:
                continue
            fence()
            published = self.guesses[unit, token, : self.n_guesses[unit, token]].tolist()
            if true_id in published:
                return unit, published.index(true_id)
        return verifier, NO_MATCH

    def guessed_right(self, tokens: int) -> np.ndarray:
        """Whether a guess of each of the first tokens is its id, in time or not, [tokens]."""
        places = np.arange(self.guesses.shape[2])
        valid = places < self.n_guesses[:, :tokens, None]
        right = valid & (self.guesses[:, :tokens] == self.verdict[:tokens, None] - 1)
        found: np.ndarray = right.any((0, 2))
        return found

    def publish_verdict(self, token: int, true_id: int, owner: int, row: int, now_ns: int) -> None:
        """Publish a token's id, and which process goes on as the verified one."""
        self.owner[token + 1], self.row[token + 1] = owner, row
        self.verdict_ns[token] = now_ns
        fence()
        self.verdict[token] = true_id + 1


def yield_cpu() -> None:
    """Let another process run on this core, if one is ready."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
