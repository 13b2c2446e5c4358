"""The threshold rule over several exits, as an optimal-stopping problem.

The objective is a sum over the candidates of a token, so each is a stopping problem of its own.
Backward induction on recorded tokens gives a threshold at each exit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from ..formulas import start_worth

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.measurement import Guesses, Measurement

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
            new = mine >= 0
            for before in ids[:j]:
                new &= ~(mine[:, :, None] == before[:, None, :]).any(axis=2)
            row, slot = np.nonzero(new)
            one = np.full((len(row), len(ids)), np.nan)
            name = mine[row, slot]
            one[:, j] = logits[self.exits[j]][row, slot]
            for i in range(j + 1, len(ids)):
                same = ids[i][row] == name[:, None]
                there = np.where(same, logits[self.exits[i]][row], -np.inf)
                one[:, i] = there.max(axis=1)
            rows.append(row)
            found.append(one)
            true.append(name == measurement.token_id[row])
        self.row, self.logits = np.concatenate(rows), np.concatenate(found)
        self.true = np.concatenate(true)

    def probabilities(self, fitted: Mapping[int, tuple[float, float]]) -> Floats:
        """Calibrated probabilities [candidates, exits]; NaN before a candidate is first seen."""
        scale, shift = np.array([fitted[e] for e in self.exits]).T
        found: Floats = expit(scale * self.logits + shift)
        return found

    def thresholds(self, price: float, q: Floats, prompts: np.ndarray) -> tuple[float, ...]:
        """The probability threshold of each exit, by backward induction on some prompts.

        From the last exit to the first, the threshold is the one with the largest gain on those
        prompts, where candidates below it continue to the later exits.
        """
        inside = prompts[self.owner[self.row]]
        q, true = q[inside], self.true[inside].astype(float)
        waited = np.zeros(len(q))
        found = []
        for j in reversed(range(len(self.exits))):
            seen = np.flatnonzero(q[:, j] > 0)  # NaN compares false
            order = seen[np.argsort(-q[seen, j], kind="stable")]
            worth = np.asarray(start_worth(true, self.layers, self.exits[j] + self.delay, price))
            gained = np.concatenate([[0.0], np.cumsum((worth - waited)[order])])
            least = _least(q[order, j], gained)
            found.append(least)
            starts = order[q[order, j] >= least]
            waited[starts] = worth[starts]
        return tuple(reversed(found))

    def started(self, q: Floats, thresholds: tuple[float, ...]) -> tuple[Ints, Ints]:
        """Started and matched guesses, [exits, prompts], each at the first exit that starts it."""
        passes = q >= np.array(thresholds)
        at = np.where(passes.any(axis=1), passes.argmax(axis=1), -1)
        prompts, owner = len(self.tokens), self.owner[self.row]
        found = np.zeros((2, len(self.exits), prompts), dtype=np.int64)
        for j in range(len(self.exits)):
            here = at == j
            found[0, j] = np.bincount(owner[here], minlength=prompts)
            found[1, j] = np.bincount(owner[here & self.true], minlength=prompts)
        return found[0], found[1]


def _least(q: Floats, gained: Floats) -> float:
    """The threshold on decreasing q with the largest gain; infinite if no gain is positive.

    Candidates of equal probability start together.
    """
    ends = np.flatnonzero(np.append(q[1:] < q[:-1], True)) if len(q) else np.array([], dtype=int)
    if not len(ends) or gained[ends + 1].max() <= 0:
        return np.inf
    return float(q[ends[gained[ends + 1].argmax()]])
