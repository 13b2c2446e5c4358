"""Threshold policies and fixed settings on recorded guesses, as search spaces.

A guess starts when its exit has been read, so reading delays it; and a token is verified when the
head, a reading of the last layer, is done. Theory page 7 has both, from page 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logit

from .. import formulas
from ..errors import InvalidInputError
from ..fitting.guess_reliability import NEAREST, Fits, Guessed
from ..results.token_counts import TokenCounts
from .methods import Pairs
from .optimal_stopping import StoppingProblem
from .selection import Rule

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.measurement import Guesses, Measurement
    from ..results.timing import Timing


@dataclass(frozen=True)
class Reading:
    """What reading an exit costs, and what the model's own head costs, in layer executions."""

    exit_cost: float = 0.0
    head_cost: float = 0.0

    @classmethod
    def of_timing(cls, timing: Timing) -> Reading:
        """The median over exit layers and k, each over a layer of its own time as in (10.5)."""
        ratios = [
            read.value / layer.value
            for terms in timing.by_k.values()
            for read, layer in zip(terms["exit_time_s"], terms["busy_layer_time_s"], strict=True)
        ]
        head = timing.terms["head_time_s"].value / timing.terms["layer_time_s"].value
        return cls(float(np.median(ratios)), head)

    @property
    def delay(self) -> float:
        """How much later an exit seems to lie: its guesses wait, and so does the verdict."""
        return self.exit_cost - self.head_cost

    def exits(self, layers: int) -> range:
        """Exits that no promoted process has passed, and whose guesses come before the verdict.

        Raises:
            InvalidInputError: there are none.
        """
        first = int(np.ceil((layers + max(-self.delay, 0)) / 2))
        last = int(np.ceil(layers - max(self.delay, 0))) - 1
        if first > last:
            raise InvalidInputError(
                f"reading an exit must leave time for its guesses; got {self.exit_cost:g} layer "
                f"executions, {self.delay:g} more than the head's, of {layers} layers; give less"
            )
        return range(first, last + 1)


@dataclass(frozen=True)
class PolicySettings:
    """Policies that read the same number of exits, a search space; counts are by prompt.

    Attributes:
        tokens: of each prompt, [prompts].
        layers: decoder layers d.
        reading: what reading costs.
        exits: at each exit that is read, its layer, [settings]; none is plain decoding.
        started: the guesses that are started there, [prompts, settings].
        right: the tokens whose true guess is started there first, [prompts, settings].
        k: guesses started for every token, [settings], of fixed settings.
    """

    tokens: Ints
    layers: int
    reading: Reading
    exits: Sequence[Ints]
    started: Sequence[Ints]
    right: Sequence[Ints]
    k: Sequence[Ints] = ()

    @property
    def size(self) -> int:
        """Number of settings."""
        return len(self.exits[0]) if self.exits else 1

    def evaluate(self, weights: Ints, at: Ints) -> tuple[Floats, Floats]:
        """Latency and compute over plain decoding's, [rows, settings].

        The head counts as so many layers more, an exit lies later by its reading, and each reading
        is executed.
        """
        if not self.exits:
            return np.ones((len(weights), len(at))), np.ones((len(weights), len(at)))
        n = (weights @ self.tokens)[:, None]
        rates = [(weights @ right[:, at]) / n for right in self.right]
        started = [(weights @ counts[:, at]) / n for counts in self.started]
        whole, read = self.layers + self.reading.head_cost, self.reading.exit_cost
        late = [exit_layer[at] + read for exit_layer in self.exits]
        latency = np.asarray(formulas.multi_exit_latency(rates, whole, late))
        compute = np.asarray(formulas.multi_exit_compute(rates, whole, late, started))
        return latency / whole, (compute + len(late) * read) / whole


class Policies(Guessed):
    """The guesses of the exits in the second half of the layers, and policies that start them."""

    def __init__(
        self, measurement: Measurement, guesses: Guesses, reading: Reading | None = None
    ) -> None:
        self.layers, self.reading = measurement.layers, reading or Reading()
        super().__init__([(measurement, guesses)], self.reading.exits(self.layers))
        self.stopping = StoppingProblem(measurement, guesses, self.logits, self.reading.delay)
        pairs = Pairs.of(TokenCounts.of(measurement, guesses))
        inside = np.isin(pairs.early, self.exits) & np.isin(pairs.late, self.exits)
        self.pairs = pairs.only(inside)

    def by_threshold(self, price: float, fitted: Fits) -> PolicySettings:
        """At each exit the threshold rule: as q falls with the guess, it starts the first few."""
        least = logit(np.clip(formulas.threshold(price), NEAREST, 1 - NEAREST))
        started = {
            e: (scale * self.logits[e] + shift >= least).sum(axis=1)
            for e, (scale, shift) in fitted.items()
        }
        return self._at_one_exit(started.items())

    def fixed(self) -> PolicySettings:
        """Every exit, and every k at it."""
        ks = range(1, self.most + 1)
        every = ((e, np.full(len(self.owner), k)) for e in self.exits for k in ks)
        return self._at_one_exit(every, k=(np.tile(ks, len(self.exits)),))

    def two_fixed(self) -> PolicySettings:
        """Every two exits, with every k at each; only those that were paired."""
        pairs = self.pairs
        started = (self.tokens[:, None] * pairs.k_early, pairs.new)
        right, k = (pairs.q_early, pairs.q_late), (pairs.k_early, pairs.k_late)
        return self._settings((pairs.early, pairs.late), started, right, k)

    def several(
        self, price: float, fitted: Fits, prompts: np.ndarray
    ) -> tuple[PolicySettings, tuple[float, ...]]:
        """The rule over several exits, and its thresholds, solved on some prompts.

        Where reading costs something, exits are left unread one after another as long as that
        lowers the objective on those prompts; their thresholds are infinite.
        """
        q, weights = self.stopping.probabilities(fitted), prompts[None].astype(np.int64)
        read = [*range(q.shape[1])]

        def objective(read: list[int]) -> float:
            policy, _ = self._reading_some(price, q, prompts, read)
            ratios = policy.evaluate(weights, np.array([0]))
            return float(Rule(price=price).objective(*ratios)[0, 0])

        if self.reading.exit_cost:
            read = _eliminated(read, objective)
        return self._reading_some(price, q, prompts, read)

    def _reading_some(
        self, price: float, q: Floats, prompts: np.ndarray, read: list[int]
    ) -> tuple[PolicySettings, tuple[float, ...]]:
        seen = np.full_like(q, np.nan)
        seen[:, read] = q[:, read]
        thresholds = self.stopping.thresholds(price, seen, prompts)
        started, right = (
            [x[j][:, None] for j in read] for x in self.stopping.started(seen, thresholds)
        )
        exits = [np.array([self.stopping.exits[j]]) for j in read]
        return self._settings(exits, started, right), thresholds

    def _at_one_exit(
        self, started: Iterable[tuple[int, Ints]], k: Sequence[Ints] = ()
    ) -> PolicySettings:
        """Policies at one exit each, from the guesses that they start for each token."""
        exits, counts = zip(*started, strict=True)
        right = [self.rank[e] <= each for e, each in zip(exits, counts, strict=True)]
        by_prompt = [np.stack([*map(self._by_prompt, each)], axis=1) for each in (counts, right)]
        return self._settings((np.array(exits),), by_prompt[:1], by_prompt[1:], k)

    def _by_prompt(self, values: Ints) -> Ints:
        return np.bincount(self.owner, weights=values, minlength=len(self.tokens)).astype(np.int64)

    def _settings(
        self,
        exits: Sequence[Ints],
        started: Sequence[Ints],
        right: Sequence[Ints],
        k: Sequence[Ints] = (),
    ) -> PolicySettings:
        return PolicySettings(self.tokens, self.layers, self.reading, exits, started, right, k)


def _eliminated(kept: list[int], objective: Callable[[list[int]], float]) -> list[int]:
    """Backward elimination: leave out one after another as long as that lowers the objective."""
    least = objective(kept)
    while kept:
        every = ([j for j in kept if j != out] for out in kept)
        value, fewer = min(((objective(some), some) for some in every), key=itemgetter(0))
        if value >= least:
            break
        least, kept = value, fewer
    return kept
