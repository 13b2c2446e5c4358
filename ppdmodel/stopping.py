"""The threshold rule over several exits: start a guess now, or wait for a better look at it.

What starting is worth adds up over the candidates of a token, so each is a stopping problem of its
own. It is solved backwards on recorded tokens: what waiting brought there, averaged over candidates
of about the same probability, is what waiting is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

if TYPE_CHECKING:
    from .results import Floats, Guesses, Ints, Measurement

#: exits of the policy, evenly over the second half of the layers
EXITS = 5
#: candidates of about equal probability, in groups of equally many
GROUPS = 25


class Candidates:
    """Every guess that any of some exits makes, once per token, with its logits at all of them."""

    def __init__(self, measurement: Measurement, guesses: Guesses, logits: Mapping[int, Floats]):
        d = measurement.layers
        first, last = -(-d // 2), d - 1
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
        """From which probability to start at each exit, solved on some prompts."""
        inside = prompts[self.owner[self.row]]
        q, true = q[inside], self.true[inside]
        waited = np.zeros(len(q))
        found = []
        for j in reversed(range(len(self.exits))):
            length = self.layers - self.exits[j]
            seen = q[:, j] > 0  # NaN is not
            worth = length * ((price + 1) * q[seen, j] - 1)
            least = _crossing(
                q[seen, j], worth - np.maximum(_smoothed(q[seen, j], waited[seen]), 0)
            )
            found.append(least)
            starts = np.flatnonzero(seen)[q[seen, j] >= least]
            waited[starts] = length * ((price + 1) * true[starts] - 1)
        return tuple(reversed(found))

    def started(self, q: Floats, thresholds: tuple[float, ...]) -> tuple[Ints, Ints]:
        """Guesses started and right ones, [exits, prompts], each at the first exit that lets it."""
        passes = q >= np.array(thresholds)
        at = np.where(passes.any(axis=1), passes.argmax(axis=1), -1)
        prompts, owner = len(self.tokens), self.owner[self.row]
        found = np.zeros((2, len(self.exits), prompts), dtype=np.int64)
        for j in range(len(self.exits)):
            here = at == j
            found[0, j] = np.bincount(owner[here], minlength=prompts)
            found[1, j] = np.bincount(owner[here & self.true], minlength=prompts)
        return found[0], found[1]


def _smoothed(q: Floats, values: Floats) -> Floats:
    """The mean of values over candidates of about the same probability."""
    order = np.argsort(q, kind="stable")
    result = np.empty(len(q))
    for group in np.array_split(order, min(GROUPS, max(len(order), 1))):
        if len(group):
            result[group] = values[group].mean()
    return result


def _crossing(q: Floats, gain: Floats) -> float:
    """The least probability from which on starting is better than waiting; infinite if none."""
    order = np.argsort(q, kind="stable")
    worse = np.flatnonzero(gain[order] < 0)
    place = 0 if not len(worse) else int(worse[-1]) + 1
    return float(q[order[place]]) if place < len(order) else np.inf
