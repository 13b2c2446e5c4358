"""Policies on recorded guesses: the threshold rule, fixed exits and k, and what each comes to.

A guess is started where its exit has been read, so reading delays it; and the verdict falls when
the head, a reading of the last layer, is done. Theory page 7 has both, from page 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy.special import logit

from .. import formulas
from ..errors import InvalidInputError
from ..fitting.guess_reliability import NEAREST, Fits, Guessed
from ..results.token_counts import TokenCounts
from .methods import Pairs
from .optimal_stopping import Candidates

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
class Sums:
    """What a policy does on each prompt: processes started and right ones, [prompts]."""

    exit_layer: int
    started: Ints
    right: Ints


#: what is done: at one exit, at several, or plain decoding
Done: TypeAlias = "Sums | tuple[Sums, ...] | None"


class Policies(Guessed):
    """Candidates of the exits in the second half of the layers, and policies that start them."""

    def __init__(
        self, measurement: Measurement, guesses: Guesses, reading: Reading | None = None
    ) -> None:
        self.layers, self.reading = measurement.layers, reading or Reading()
        super().__init__([(measurement, guesses)], self.reading.exits(self.layers))
        self.candidates = Candidates(measurement, guesses, self.logits, self.reading.delay)
        pairs = Pairs.of(TokenCounts.of(measurement, guesses))
        inside = np.isin(pairs.early, self.exits) & np.isin(pairs.late, self.exits)
        self.pairs = pairs.only(inside)

    def by_rule(self, price: float, fitted: Fits) -> list[Sums]:
        """The threshold rule at every exit: as q falls with the guess, it starts the first few."""
        found, least = [], logit(np.clip(formulas.threshold(price), NEAREST, 1 - NEAREST))
        for e, (scale, shift) in fitted.items():
            started = (scale * self.logits[e] + shift >= least).sum(axis=1)
            found.append(self._sums(e, started))
        return found

    def fixed(self) -> list[tuple[int, Sums]]:
        """Every exit and k."""
        return [
            (k, self._sums(e, np.full(len(self.owner), k)))
            for e in self.exits
            for k in range(1, self.most + 1)
        ]

    def _sums(self, exit_layer: int, started: Ints) -> Sums:
        right = self.rank[exit_layer] <= started
        return Sums(
            exit_layer,
            np.bincount(self.owner, weights=started, minlength=len(self.tokens)).astype(np.int64),
            np.bincount(self.owner, weights=right, minlength=len(self.tokens)).astype(np.int64),
        )

    def several(
        self, price: float, fitted: Fits, prompts: np.ndarray
    ) -> tuple[tuple[float, ...], tuple[Sums, ...]]:
        """The rule over several exits: its thresholds, solved on some prompts, and what it does.

        Where reading costs something, exits are left unread one after another as long as that
        brings more on those prompts; their thresholds are infinite.
        """
        q = self.candidates.probabilities(fitted)

        def tried(read: list[int]) -> tuple[float, list[int], tuple[float, ...], tuple[Sums, ...]]:
            seen = np.full_like(q, np.nan)
            seen[:, read] = q[:, read]
            thresholds = self.candidates.thresholds(price, seen, prompts)
            started, right = self.candidates.started(seen, thresholds)
            does = tuple(Sums(self.candidates.exits[j], started[j], right[j]) for j in read)
            return self.cost(does, price, prompts), read, thresholds, does

        best = tried([*range(len(self.candidates.exits))])
        while self.reading.exit_cost and best[1]:
            fewer = min((tried([j for j in best[1] if j != out]) for out in best[1]), key=_first)
            if fewer[0] >= best[0]:
                break
            best = fewer
        return best[2:]

    def two_fixed(self, price: float, prompts: np.ndarray) -> Pairs | None:
        """The best two exits, each with a fixed k, on some prompts; None: plain decoding."""
        pairs, weights = self.pairs, prompts.astype(np.int64)
        if not len(pairs.early):
            return None
        n = weights @ self.tokens
        rates = [(weights @ counted) / n for counted in (pairs.q_early, pairs.q_late)]
        started = [pairs.k_early, (weights @ pairs.new) / n]
        latency, compute = self._ratios(rates, [pairs.early, pairs.late], started)
        costs = price * latency + compute
        place = int(np.argmin(costs))
        return pairs.only(np.array([place])) if costs[place] < price + 1 else None

    def of_pair(self, pair: Pairs | None) -> tuple[Sums, Sums] | None:
        """What one setting of two exits does."""
        if pair is None:
            return None
        return (
            Sums(int(pair.early[0]), self.tokens * pair.k_early[0], pair.q_early[:, 0]),
            Sums(int(pair.late[0]), pair.new[:, 0], pair.q_late[:, 0]),
        )

    def ratios(self, policy: Done, weights: Floats) -> tuple[Floats, Floats]:
        """Latency and compute over plain decoding's, for weights [..., prompts]."""
        n = weights @ self.tokens
        parts = policy if isinstance(policy, tuple) else (policy,) if policy else ()
        if not parts:
            return np.ones_like(n, dtype=float), np.ones_like(n, dtype=float)
        rates = [(weights @ part.right) / n for part in parts]
        started = [(weights @ part.started) / n for part in parts]
        return self._ratios(rates, [part.exit_layer for part in parts], started)

    def _ratios(
        self, rates: Sequence[Any], exits: Sequence[Any], started: Sequence[Any]
    ) -> tuple[Floats, Floats]:
        """The head as so many layers more, guesses as if exits lay later, a reading of each."""
        whole, read = self.layers + self.reading.head_cost, self.reading.exit_cost
        late = [e + read for e in exits]
        latency = np.asarray(formulas.multi_exit_latency(rates, whole, late))
        compute = np.asarray(formulas.multi_exit_compute(rates, whole, late, started))
        return latency / whole, (compute + len(late) * read) / whole

    def cost(self, policy: Done, price: float, prompts: np.ndarray) -> float:
        """What a policy makes of price x latency + compute on some prompts."""
        latency, compute = self.ratios(policy, prompts.astype(float))
        return float(price * latency + compute)

    def best(self, policies: Sequence[Sums], price: float, prompts: np.ndarray) -> int | None:
        """Which policy makes price x latency + compute least on some prompts; None: plain."""
        costs = [self.cost(sums, price, prompts) for sums in policies]
        place = int(np.argmin(costs))
        return place if costs[place] < price + 1 else None


def _first(tried: tuple[float, Any, Any, Any]) -> float:
    return tried[0]
