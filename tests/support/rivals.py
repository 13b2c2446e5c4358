"""Step-by-step simulations of other decoding methods, without closed forms: tokens and costs.

A step is a round or a cycle. Times are in layer times of the target, work in layer executions;
alpha is the probability that a drafted token is right, given that those before it were.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Ledger:
    """One entry per step."""

    tokens: list[int] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    rejections: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    total: int = 0

    def add(self, tokens: int, time: float, work: float, rejections: int = 0) -> None:
        self.tokens.append(tokens)
        self.time.append(time)
        self.work.append(work)
        self.rejections.append(rejections)
        self.steps.append(1)
        self.total += tokens

    def ratio(
        self, of: str, per: str = "tokens", warm_up: int = 50, batches: int = 40
    ) -> tuple[float, float]:
        """The one total over the other, and its standard error from batches of steps."""
        sums = []
        for name in (of, per):
            steps = np.array(getattr(self, name)[warm_up:], dtype=float)
            each = len(steps) // batches
            sums.append(steps[: each * batches].reshape(batches, each).sum(axis=1))
        above, below = sums
        ratio = above.sum() / below.sum()
        spread = (above - ratio * below).std(ddof=1) / batches**0.5
        return float(ratio), float(spread / below.mean())


def speculation(
    alpha: float,
    layers: int,
    gamma: int,
    draft_time: float,
    draft_compute: float,
    *,
    tokens: int,
    seed: int,
) -> Ledger:
    """Rounds of gamma drafted tokens, verified in one pass that yields one more token."""
    rng, ledger = random.Random(seed), Ledger()
    while ledger.total < tokens:
        time = work = 0.0
        for _ in range(gamma):
            time += draft_time * layers
            work += draft_compute * layers
        for _ in range(gamma + 1):
            work += layers
        time += layers
        accepted = 0
        while accepted < gamma and rng.random() < alpha:
            accepted += 1
        ledger.add(accepted + 1, time, work, accepted < gamma)
    return ledger


def self_speculation(
    alpha: float, layers: int, exit_layer: int, gamma: int, *, reuse: bool, tokens: int, seed: int
) -> Ledger:
    """Rounds drafted by the first layers, layer by layer.

    Position 0 is the last verified token and position j the j-th drafted one, which is read off
    position j - 1 at the exit.
    """
    rng, ledger = random.Random(seed), Ledger()
    while ledger.total < tokens:
        ran = [0] * (gamma + 1)
        time = work = 0
        for position in range(gamma):
            for _ in range(exit_layer):
                ran[position] += 1
                work += 1
                time += 1
        if not reuse:
            ran = [0] * (gamma + 1)
        for layer in range(layers):
            due = [position for position, done in enumerate(ran) if done == layer]
            for position in due:
                ran[position] += 1
                work += 1
            time += bool(due)
        assert ran == [layers] * (gamma + 1)
        accepted = 0
        while accepted < gamma and rng.random() < alpha:
            accepted += 1
        ledger.add(accepted + 1, time, work, accepted < gamma)
    return ledger


def tree_speculation(
    parents: Sequence[int],
    ranks: Sequence[int],
    rank_acceptance: Sequence[float],
    layers: int,
    draft_time: float,
    draft_compute: float,
    *,
    tokens: int,
    seed: int,
) -> Ledger:
    """Rounds that draft the same tree level by level; at each node at most one guess is right."""
    rng, ledger = random.Random(seed), Ledger()
    children: list[dict[int, int]] = [{} for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent][ranks[node]] = node
    choices = range(len(rank_acceptance) + 1)
    weights = [1 - sum(rank_acceptance), *rank_acceptance]
    while ledger.total < tokens:
        time = work = 0.0
        level = [0]
        while level:
            work += layers * len(level)
            growing = [node for node in level if children[node]]
            work += draft_compute * layers * len(growing)
            time += draft_time * layers if growing else 0
            level = [child for node in growing for child in children[node].values()]
        time += layers
        node, gained = 0, 1
        while True:
            right = rng.choices(choices, weights)[0]
            if right not in children[node]:
                break
            node, gained = children[node][right], gained + 1
        ledger.add(gained, time, work)
    return ledger


def parallel_drafting(
    alpha: float,
    layers: int,
    gamma: int,
    draft_time: float,
    draft_compute: float,
    *,
    tokens: int,
    seed: int,
) -> Ledger:
    """Cycles of PEARL: the draft makes gamma tokens while the target makes one pass.

    `pending` holds the drafted tokens not verified yet: whether each is right.
    """
    rng, ledger = random.Random(seed), Ledger()
    pending: list[bool] = []
    verifies = 1
    while ledger.total < tokens:
        draft_runs = work = 0.0
        for _ in range(gamma):
            pending.append(rng.random() < alpha)
            draft_runs += draft_time * layers
            work += draft_compute * layers
        accepted = 0
        for position in range(verifies):
            work += layers
            if accepted == position and pending[position]:
                accepted += 1
        rejected = accepted < verifies
        ledger.add(accepted + rejected, max(layers, draft_runs), work, rejected)
        pending = [] if rejected else pending[accepted:]
        verifies = 1 if rejected else gamma
    return ledger


@dataclass
class InFlight:
    """A token in the pipeline: whether it is right, and what has run on it."""

    right: bool
    stages: int = 0
    work: float = 0.0


def pipelined_speculation(
    alpha: float, layers: int, stages: int, draft_layers: float, *, tokens: int, seed: int
) -> Ledger:
    """Cycles of a pipeline: all tokens in it advance one stage and one drafted token joins."""
    rng, ledger = random.Random(seed), Ledger()
    flight = [InFlight(True)]
    while ledger.total < tokens:
        for process in flight:
            if process.stages == 0:
                process.work += draft_layers
            process.work += layers / stages
            process.stages += 1
        flight.append(InFlight(rng.random() < alpha))
        ended: list[InFlight] = []
        verified = flight[0].stages == stages
        if verified:
            ended.append(flight.pop(0))
        flushed = verified and not flight[0].right
        if flushed:
            ended += flight
            flight = [InFlight(True)]
        work = sum(process.work for process in ended)
        ledger.add(int(verified), layers / stages + draft_layers, work, int(flushed))
    return ledger


def check_costs(ledger: Ledger, latency: float, compute: float) -> None:
    """The simulated costs per token lie within 4 standard errors, of below 1 %."""
    for name, value in (("time", latency), ("work", compute)):
        mean, error = ledger.ratio(name)
        assert error < 0.01 * mean, name
        assert abs(mean - value) <= 4 * error + 1e-9 * value, (name, mean, value, error)
