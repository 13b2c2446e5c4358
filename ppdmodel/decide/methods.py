"""What recorded tokens say of a method: its latency and compute on any resample of the prompts.

A family is one method over all its settings: for weights of the prompts it gives the latency and
the compute of every setting, as ratios to plain decoding in layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import formulas

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.token_counts import TokenCounts

#: weights [resamples, prompts], places of settings -> latency and compute, [resamples, places]
Evaluate = Callable[["Ints", "Ints"], "tuple[Floats, Floats]"]


@dataclass(frozen=True)
class Family:
    """One method with all its settings.

    Attributes:
        name: the method.
        settings: each setting in words.
        units: processes that each setting holds at once, [settings].
        evaluate: weights [resamples, prompts] and the places of some settings -> their latency and
            compute, [resamples, places].
        note: what to know of the numbers.
    """

    name: str
    settings: Sequence[str]
    units: Ints
    evaluate: Evaluate
    note: str = ""


def self_speculation(recorded: TokenCounts) -> Family:
    """The model's own first layers draft, the rest verifies; drafted layers are not run again."""
    layers, tokens = recorded.layers, recorded.tokens
    flat = recorded.rounds.reshape(len(tokens), -1)
    axes = np.meshgrid(np.arange(1, layers), np.array(recorded.drafted), indexing="ij")
    exit_layer, gamma = (axis.ravel() for axis in axes)
    one_round = formulas.self_speculative_latency(0, layers, exit_layer, gamma) / layers
    of_round = formulas.self_speculative_compute(0, layers, exit_layer, gamma, reuse=1) / layers

    def evaluate(weights: Ints, at: Ints) -> tuple[Floats, Floats]:
        per_token = (weights @ flat[:, at]) / (weights @ tokens)[:, None]
        return per_token * one_round[at], per_token * of_round[at]

    return Family(
        "self-speculation",
        [f"exit {e}, {g} drafted" for e, g in zip(exit_layer, gamma, strict=True)],
        np.ones(len(gamma), dtype=np.int64),
        evaluate,
        "drafts follow one another on one unit; a pass over several tokens counts as one in time",
    )


def gated(recorded: TokenCounts, link_time: float = 0.0) -> Family:
    """PPD with one exit in the second half, only where its top probability passes a gate.

    Guesses that wait for a message are started as if their exit lay so much later.
    """
    layers, tokens, passed = recorded.layers, recorded.tokens, recorded.passed
    right = recorded.right.cumsum(axis=3)
    e, g, j = (axis.ravel() for axis in np.indices(right.shape[1:]))
    right = right.reshape(len(tokens), -1)
    exit_layer, k = recorded.gated_exits[e], np.array(recorded.gated_k)[j]
    started = np.minimum(exit_layer + link_time, layers)

    def evaluate(weights: Ints, at: Ints) -> tuple[Floats, Floats]:
        n = (weights @ tokens)[:, None]
        open_ = weights @ passed[:, e[at], g[at]]
        p = (weights @ right[:, at]) / np.maximum(open_, 1)
        share = open_ / n
        latency = formulas.gated_latency(p, layers, started[at], share)
        compute = formulas.gated_compute(p, layers, started[at], share, k[at])
        return latency / layers, compute / layers

    words = zip(exit_layer, k, g, strict=True)
    return Family(
        "PPD, gated",
        [f"exit {x}, k = {y}, gate {recorded.gates[z]:g}" for x, y, z in words],
        1 + k,
        evaluate,
        "starts guesses only where the exit is confident",
    )


@dataclass(frozen=True)
class Pairs:
    """Every two exits and numbers of guesses at them, counted; arrays [settings] or by prompt.

    `early` and `late` are the exits; `q_early` and `q_late` the tokens that each is the first to
    hold; `new` the guesses that the later one starts.
    """

    early: Ints
    late: Ints
    k_early: Ints
    k_late: Ints
    q_early: Ints
    q_late: Ints
    new: Ints

    @classmethod
    def of(cls, recorded: TokenCounts) -> Pairs:
        """All of them; a guess that both exits make starts once, where guesses were recorded."""
        n, ks, pairs = len(recorded.tokens), np.array(recorded.pair_k), recorded.pairs
        shape = (n, len(pairs), len(ks), len(ks))
        held = recorded.first.cumsum(axis=2)  # [prompts, exits, k]
        both = recorded.both.cumsum(axis=2).cumsum(axis=3)
        q_early = np.broadcast_to(held[:, pairs[:, 0], :, None], shape)
        q_late = held[:, pairs[:, 1], None, :] - both
        new = np.broadcast_to(recorded.tokens[:, None, None, None] * ks, shape)
        if recorded.shared is not None:
            new = new - recorded.shared.cumsum(axis=2).cumsum(axis=3)
        number, a, b = (axis.ravel() for axis in np.indices(shape[1:]))
        exits = np.array(recorded.pair_exits, dtype=np.int64)[pairs[number]]
        flat = (counts.reshape(n, -1) for counts in (q_early, q_late, new))
        return cls(exits[:, 0], exits[:, 1], ks[a], ks[b], *flat)

    def only(self, keep: np.ndarray) -> Pairs:
        """Some of the settings."""
        return Pairs(*(getattr(self, name)[..., keep] for name in self.__dataclass_fields__))

    def words(self) -> list[str]:
        """Each setting in words."""
        columns = (self.early, self.late, self.k_early, self.k_late)
        return [f"exits {a}, {b}, k = {x}, {y}" for a, b, x, y in zip(*columns, strict=True)]


def two_exits(recorded: TokenCounts, link_time: float = 0.0) -> Family | None:
    """PPD with two exits in the second half: the later one starts what it guesses anew.

    Messages count as in `gated`; exits whose guesses would come after the verdict are left out.
    """
    layers, tokens = recorded.layers, recorded.tokens
    found = Pairs.of(recorded)
    found = found.only(found.late + link_time < layers)
    if not len(found.early):
        return None

    def evaluate(weights: Ints, at: Ints) -> tuple[Floats, Floats]:
        n, some = (weights @ tokens)[:, None], found.only(at)
        rates = [(weights @ counted) / n for counted in (some.q_early, some.q_late)]
        started = [some.k_early, (weights @ some.new) / n]
        exits = [some.early + link_time, some.late + link_time]
        latency = formulas.multi_exit_latency(rates, layers, exits)
        compute = formulas.multi_exit_compute(rates, layers, exits, started)
        return np.asarray(latency) / layers, np.asarray(compute) / layers

    return Family(
        "PPD, two exits",
        found.words(),
        1 + found.k_early + found.k_late,
        evaluate,
        ""
        if recorded.shared is not None
        else "compute is an upper bound: the record has no guesses, so none is known to repeat",
    )
