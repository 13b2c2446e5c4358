"""The threshold rule over several exits, as an optimal-stopping problem.

The objective is a sum over the candidates of a token, so each is a stopping problem of its own.
Backward induction on recorded tokens gives a threshold at each exit.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from ..formulas import start_worth

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.measurement import Guesses, Measurement

#: probabilities of a guess that is known to be wrong, and of one that is right
CERTAIN = np.array([0.0, 1.0])
#: exits of the policy, spaced evenly over the exits that have logits
EXITS = 5


class StoppingProblem:
    """All distinct guesses of each token at several exits, with their logits at each exit.

    Starting a guess stops; at the next exit its probability is better known but it saves less.
    """

    def __init__(
        self,
        measurement: Measurement,
        guesses: Guesses,
        logits: Mapping[int, Floats],
        delay: float = 0.0,
    ) -> None:
        """Collect the guesses of some of the exits that have logits; `delay` moves exits later."""
        d, self.delay = measurement.layers, delay
        first, last = min(logits), max(logits)
        places = np.linspace(first, last, EXITS + 1)[:-1] if last - first >= EXITS else [*logits]
        self.exits = tuple(sorted({int(place) for place in places}))
        self.layers, self.owner = d, measurement.prompt_index
        self.tokens = measurement.tokens_by_prompt()
        ids = [guesses.ids[:, e - 1] for e in self.exits]
        rows, found, true = [], [], []
        for j, mine in enumerate(ids):
            new = mine >= 0  # -1 is no guess
            for before in ids[:j]:
                new &= ~(mine[:, :, None] == before[:, None, :]).any(axis=2)
            row, slot = np.nonzero(new)
            one = np.full((len(row), len(ids)), np.nan)
            name = mine[row, slot]
            for i in range(j, len(ids)):
                same = ids[i][row] == name[:, None]
                there = np.where(same, logits[self.exits[i]][row], -np.inf)
                one[:, i] = there.max(axis=1)
            rows.append(row)
            found.append(one)
            true.append(name == measurement.token_id[row])
        self.row, self.logits = np.concatenate(rows), np.concatenate(found)
        self.true = np.concatenate(true)

    def probabilities(self, fitted: Mapping[int, tuple[float, float]]) -> Floats:
        """Calibrated probabilities [candidates, exits]; NaN before a candidate is first seen.

        Those of one token at one exit add up to at most 1.
        """
        scale, shift = np.array([fitted[e] for e in self.exits]).T
        found: Floats = expit(scale * self.logits + shift)
        size = len(self.owner)
        total = [np.bincount(self.row, np.nan_to_num(q), size)[self.row] for q in found.T]
        return found / np.maximum(np.stack(total, axis=1), 1)

    def training(self, q: Floats, prompts: np.ndarray) -> Training:
        """The candidates of some prompts, sorted for thresholds; `prompts` is a mask of them."""
        inside = prompts[self.owner[self.row]]
        places = [exit_layer + self.delay for exit_layer in self.exits]
        return Training(self.layers, places, q[inside], self.true[inside].astype(np.int64))

    def started(self, q: Floats, thresholds: tuple[float, ...]) -> tuple[Ints, Ints]:
        """Started and matched guesses, [exits, prompts], each at the first exit that starts it."""
        prompts, owner = len(self.tokens), self.owner[self.row]
        started, matched = np.zeros((2, len(self.exits), prompts), dtype=np.int64)
        waiting = np.ones(len(q), dtype=bool)
        for j, threshold in enumerate(thresholds):
            here = waiting & (q[:, j] >= threshold)
            waiting &= ~here
            started[j] = np.bincount(owner[here], minlength=prompts)
            matched[j] = np.bincount(owner[here & self.true], minlength=prompts)
        return started, matched


class Training:
    """Candidates that thresholds are fitted on, sorted by their probability at each exit."""

    def __init__(self, layers: int, exits: Sequence[float], q: Floats, true: Ints) -> None:
        """Sort the candidates; `q` [candidates, exits] is NaN where one is not seen yet."""
        self.layers, self.exits, self.true = layers, exits, true
        self.sorted: list[tuple[Ints, Floats, Ints]] = []
        for column in q.T:
            seen = np.flatnonzero(column > 0)  # NaN compares false
            order = seen[np.argsort(-column[seen], kind="stable")]
            falling = column[order]
            # candidates of equal probability start together: the numbers that can
            ends = np.flatnonzero(falling[1:] < falling[:-1]) + 1
            self.sorted.append((order, falling, np.append(ends, len(order))))

    def thresholds(self, price: float, read: Container[int] | None = None) -> tuple[float, ...]:
        """The probability threshold of each exit, by backward induction.

        From the last exit to the first, the threshold is the one with the largest gain, where
        candidates below it continue to the later exits; infinite where no gain is positive, and at
        exits that are not `read` (None: all are).
        """
        waited = np.zeros(len(self.true))
        found = []
        for j in reversed(range(len(self.exits))):
            order, falling, ends = self.sorted[j]
            least = np.inf
            if len(order) and (read is None or j in read):
                known = np.asarray(start_worth(CERTAIN, self.layers, self.exits[j], price))
                gain = known[self.true[order]] - waited[order]
                gained = np.cumsum(gain)[ends - 1]
                if gained.max() > 0:
                    starts = ends[gained.argmax()]
                    least = float(falling[starts - 1])
                    waited[order[:starts]] = known[self.true[order[:starts]]]
            found.append(least)
        return tuple(reversed(found))
