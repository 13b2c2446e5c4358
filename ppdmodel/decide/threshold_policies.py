"""Threshold policies and fixed settings on recorded guesses, as search spaces.

Reading an exit delays its guesses, and the LM head delays the verification. Theory pages 7 and 10
derive both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

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

#: from here on a guess is certain: clipped ones beside it take as much away
CERTAIN = 1 - 10 * NEAREST


@dataclass(frozen=True)
class Reading:
    """Costs of reading an exit and of the LM head, in layer executions."""

    exit_cost: float = 0.0
    head_cost: float = 0.0

    @classmethod
    def of_timing(cls, timing: Timing) -> Reading:
        """Ratios to the layer time as in (10.5); of an exit, the median over exit layers and k."""
        ratios = [
            read.value / layer.value
            for terms in timing.by_k.values()
            for read, layer in zip(terms["exit_time_s"], terms["busy_layer_time_s"], strict=True)
        ]
        head = timing.terms["head_time_s"].value / timing.terms["layer_time_s"].value
        return cls(float(np.median(ratios)), head)

    @property
    def delay(self) -> float:
        """Effective shift of an exit, in layers: the exit's delay minus the head's."""
        return self.exit_cost - self.head_cost

    def exits(self, layers: int) -> range:
        """Exits that no promoted process has passed, with guesses before the verification.

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
    """Search space of policies that read the same number of exits.

    Attributes:
        tokens: of each prompt, [prompts].
        layers: decoder layers d.
        reading: costs of reading an exit and of the head.
        exits: for each exit that is read, its layer, [settings]; none is plain decoding.
        started: guesses that are started there, [prompts, settings].
        right: matched guesses that are started there, [prompts, settings].
        k: guesses per token of fixed settings, [settings].
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
        return max(map(len, self.exits), default=1)

    def evaluate(self, weights: Ints | Floats, at: Ints) -> tuple[Floats, Floats]:
        """Latency and compute over plain decoding's, [rows, settings].

        The head adds to the layers, reading moves each exit later, and each reading adds to the
        compute.
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
    """Policies on the recorded guesses of the exits in the second half of the layers."""

    def __init__(
        self, measurement: Measurement, guesses: Guesses, reading: Reading | None = None
    ) -> None:
        self.layers, self.reading = measurement.layers, reading or Reading()
        super().__init__([(measurement, guesses)], self.reading.exits(self.layers))
        self.stopping = StoppingProblem(measurement, guesses, self.logits, self.reading.delay)
        pairs = Pairs.of(TokenCounts.of(measurement, guesses))
        inside = np.isin(pairs.early, self.exits) & np.isin(pairs.late, self.exits)
        self.pairs = pairs.only(inside)
        self._settings = partial(PolicySettings, self.tokens, self.layers, self.reading)

    def by_threshold(self, price: float, fitted: Fits) -> PolicySettings:
        """The threshold rule at each exit: it starts the guesses at or above the threshold."""
        least = np.clip(formulas.threshold(price), NEAREST, CERTAIN)
        started = ((e, self.probabilities(e, *fit) >= least) for e, fit in fitted.items())
        return self._at_one_exit((e, each.sum(axis=1)) for e, each in started)

    def fixed(self) -> PolicySettings:
        """Every exit with every k."""
        ks = range(1, self.most + 1)
        every = ((e, np.full(len(self.owner), k)) for e in self.exits for k in ks)
        return self._at_one_exit(every, k=(np.tile(ks, len(self.exits)),))

    def two_fixed(self) -> PolicySettings:
        """Every recorded pair of exits, with every k at each."""
        pairs = self.pairs
        started = (self.tokens[:, None] * pairs.k_early, pairs.new)
        right, k = (pairs.q_early, pairs.q_late), (pairs.k_early, pairs.k_late)
        return self._settings((pairs.early, pairs.late), started, right, k)

    def several(
        self, price: float, fitted: Fits, prompts: np.ndarray
    ) -> tuple[PolicySettings, tuple[float, ...]]:
        """The rule over several exits and its thresholds, fitted on some prompts.

        Where reading has a cost, backward elimination removes exits while that lowers the objective
        on those prompts; the thresholds of removed exits are infinite.
        """
        q, weights = self.stopping.probabilities(fitted), prompts[None].astype(np.int64)
        training, read = self.stopping.training(q, prompts), [*range(q.shape[1])]

        def reading(read: list[int]) -> tuple[PolicySettings, tuple[float, ...]]:
            least = training.thresholds(price, read)
            return self._starting(q, least, read), least

        def objective(read: list[int]) -> float:
            ratios = reading(read)[0].evaluate(weights, np.arange(1))
            return float(Rule(price=price).objective(*ratios).item())

        return reading(_eliminated(read, objective) if self.reading.exit_cost else read)

    def _starting(
        self, q: Floats, thresholds: tuple[float, ...], read: Sequence[int]
    ) -> PolicySettings:
        """The policy that starts guesses at the thresholds of the exits that are read."""
        started, right = (
            [x[j][:, None] for j in read] for x in self.stopping.started(q, thresholds)
        )
        exits = [np.array([self.stopping.exits[j]]) for j in read]
        return self._settings(exits, started, right)

    def _at_one_exit(
        self, started: Iterable[tuple[int, Ints]], k: Sequence[Ints] = ()
    ) -> PolicySettings:
        """Policies at one exit each, from the numbers of guesses started for each token."""
        exits, counts = zip(*started, strict=True)
        right = [self.rank[e] <= each for e, each in zip(exits, counts, strict=True)]
        summed, matched = (
            np.stack([*map(self._by_prompt, each)], axis=1) for each in (counts, right)
        )
        return self._settings((np.array(exits),), (summed,), (matched,), k)

    def _by_prompt(self, values: Ints) -> Ints:
        return np.bincount(self.owner, weights=values, minlength=len(self.tokens)).astype(np.int64)


def _eliminated(kept: list[int], objective: Callable[[list[int]], float]) -> list[int]:
    """Backward elimination: remove one element at a time while that lowers the objective."""
    least = objective(kept)
    while kept:
        every = ([j for j in kept if j != out] for out in kept)
        value, fewer = min(((objective(some), some) for some in every), key=itemgetter(0))
        if value >= least:
            break
        least, kept = value, fewer
    return kept
