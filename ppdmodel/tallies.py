"""What recorded tokens say of a method: counts by prompt, from which any resample follows.

A family is one method over all its settings: for weights of the prompts it gives the latency and
the compute of every setting, as ratios to plain decoding in layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from . import formulas
from .errors import InvalidInputError

if TYPE_CHECKING:
    from .results import Floats, Guesses, Ints, Measurement

#: drafted tokens per round of self-speculation
DRAFTED = tuple(range(1, 9))
#: guesses behind a gate, and at each of two exits
GATED_K, PAIR_K = (1, 2, 3, 5, 8), (1, 2, 3, 5)
GATES = tuple(round(0.1 * n, 1) for n in range(1, 10))

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


def check_guesses(measurement: Measurement, guesses: Guesses) -> None:
    """Refuse guesses that are not of the measured tokens.

    Raises:
        InvalidInputError: their numbers differ, or the true tokens are not where they ranked.
    """
    rank, ids = measurement.rank, guesses.ids
    if ids.shape[:2] != rank.shape:
        raise InvalidInputError(
            f"the guesses must be of the measured tokens; got {ids.shape[:2]} tokens and layers, "
            f"not {rank.shape}; measure again"
        )
    row, layer = np.nonzero(rank <= ids.shape[2])
    found = ids[row, layer, rank[row, layer] - 1] == measurement.token_id[row]
    if len(found) and found.mean() < 0.99:  # equal logits may stand in either order
        raise InvalidInputError(
            f"the guesses must be of the measured tokens; got {1 - found.mean():.0%} that are not "
            "where the tokens ranked; use the guesses of this very measurement"
        )


def by_prompt(measurement: Measurement, flags: np.ndarray) -> Ints:
    """Sums of a quantity of every token, [tokens, ...], by prompt: [prompts, ...]."""
    sums = np.zeros((len(measurement.prompt_ids), *flags.shape[1:]), dtype=np.int64)
    np.add.at(sums, measurement.prompt_index, flags.astype(np.int64))
    return sums


def rounds_of(measurement: Measurement, drafted: Sequence[int] = DRAFTED) -> Ints:
    """Rounds that self-speculation takes for the recorded text, [prompts, layers, drafted].

    A round drafts so many tokens at an exit and verifies them with the whole model, which adds a
    token of its own. A draft is right where the exit ranked the true token first; the first layers
    of an accepted draft are the model's own, so the record is exact. A text's last round may be cut
    short by its end.
    """
    most = np.array(drafted)
    found = np.zeros((len(measurement.prompt_ids), measurement.layers, len(most)), dtype=np.int64)
    for start, end in pairwise(measurement.starts().tolist()):
        hits = measurement.rank[start:end] == 1
        runs = np.zeros((len(hits) + 1, measurement.layers), dtype=np.int64)
        for row in reversed(range(len(hits))):
            runs[row] = np.where(hits[row], runs[row + 1] + 1, 0)
        place = np.zeros(found.shape[1:], dtype=np.int64)
        rounds = np.zeros_like(place)
        columns = np.arange(measurement.layers)[:, None]
        while (going := place < len(hits)).any():
            accepted = np.minimum(runs[np.minimum(place, len(hits)), columns], most)
            rounds += going
            place = np.where(going, place + accepted + 1, place)
        found[measurement.prompt_index[start]] += rounds
    return found


def self_speculation(measurement: Measurement) -> Family:
    """The model's own first layers draft, the rest verifies; drafted layers are not run again."""
    layers, tokens = measurement.layers, measurement.tokens_by_prompt()
    flat = rounds_of(measurement)[:, :-1].reshape(len(tokens), -1)
    exits, drafted = np.meshgrid(np.arange(1, layers), np.array(DRAFTED), indexing="ij")
    exit_layer, gamma = exits.ravel(), drafted.ravel()
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


def gated(measurement: Measurement, link_time: float = 0.0) -> Family:
    """PPD with one exit in the second half, only where its top probability passes a gate.

    Guesses that wait for a message are started as if their exit lay so much later.
    """
    layers, tokens = measurement.layers, measurement.tokens_by_prompt()
    ks, gates = np.array(GATED_K), np.array(GATES)
    first = -(-layers // 2)  # before it a latency needs more than counts
    passing = measurement.top_prob[:, first - 1 : -1, None] >= gates
    passed = by_prompt(measurement, passing)  # [prompts, exits, gates]
    rank = measurement.rank[:, first - 1 : -1, None]
    right = np.stack([by_prompt(measurement, passing & (rank <= k)) for k in ks], -1)
    e, g, j = (axis.ravel() for axis in np.indices(right.shape[1:]))
    right = right.reshape(len(tokens), -1)
    exit_layer, k = e + first, ks[j]
    started = np.minimum(exit_layer + link_time, layers)

    def evaluate(weights: Ints, at: Ints) -> tuple[Floats, Floats]:
        n = (weights @ tokens)[:, None]
        open_ = weights @ passed[:, e[at], g[at]]
        p = (weights @ right[:, at]) / np.maximum(open_, 1)
        share = open_ / n
        latency = formulas.gated_latency(p, layers, started[at], share)
        compute = formulas.gated_compute(p, layers, started[at], share, k[at])
        return latency / layers, compute / layers

    return Family(
        "PPD, gated",
        [f"exit {x}, k = {y}, gate {GATES[z]:g}" for x, y, z in zip(exit_layer, k, g, strict=True)],
        1 + k,
        evaluate,
        "starts guesses only where the exit is confident",
    )


def two_exits(
    measurement: Measurement, guesses: Guesses | None, link_time: float = 0.0
) -> Family | None:
    """PPD with two exits in the second half: the later one starts what it guesses anew.

    Messages count as in `gated`; exits whose guesses would come after the verdict are left out.
    """
    layers, tokens = measurement.layers, measurement.tokens_by_prompt()
    first = -(-layers // 2)
    settings, counts = [], []
    k_pairs = [(a, b) for a in PAIR_K for b in PAIR_K]
    for early in range(first, layers - 1):
        for late in range(early + 1, math.ceil(layers - link_time)):
            counts.append(_pair_counts(measurement, guesses, early, late, k_pairs))
            settings += [(early, late, a, b) for a, b in k_pairs]
    if not counts:
        return None
    q_early, q_late, new = (np.concatenate(part, axis=1) for part in zip(*counts, strict=True))
    table = np.array(settings)
    e_1, e_2, k_1 = table[:, 0], table[:, 1], table[:, 2]

    def evaluate(weights: Ints, at: Ints) -> tuple[Floats, Floats]:
        n = (weights @ tokens)[:, None]
        rates = [(weights @ counted[:, at]) / n for counted in (q_early, q_late)]
        started = [k_1[at], (weights @ new[:, at]) / n]
        exits = [e_1[at] + link_time, e_2[at] + link_time]
        latency = formulas.multi_exit_latency(rates, layers, exits)
        compute = formulas.multi_exit_compute(rates, layers, exits, started)
        return np.asarray(latency) / layers, np.asarray(compute) / layers

    return Family(
        "PPD, two exits",
        [f"exits {a}, {b}, k = {x}, {y}" for a, b, x, y in settings],
        1 + table[:, 2] + table[:, 3],
        evaluate,
        ""
        if guesses is not None
        else "compute is an upper bound: the record has no guesses, so none is known to repeat",
    )


def _pair_counts(
    measurement: Measurement,
    guesses: Guesses | None,
    early: int,
    late: int,
    k_pairs: Sequence[tuple[int, int]],
) -> tuple[Ints, Ints, Ints]:
    """Of two exits and each pair of k: first hits at each, and guesses started at the later."""
    rank_1, rank_2 = measurement.rank[:, early - 1], measurement.rank[:, late - 1]
    at_early = np.stack([rank_1 <= a for a, _ in k_pairs], 1)
    at_late = np.stack([(rank_1 > a) & (rank_2 <= b) for a, b in k_pairs], 1)
    new = np.tile(np.array([b for _, b in k_pairs]), (len(rank_1), 1))
    if guesses is not None:
        most = max(PAIR_K)
        ids_1 = guesses.ids[:, early - 1, :most, None]
        same = ids_1 == guesses.ids[:, late - 1, None, :most]
        overlap = same.cumsum(1).cumsum(2)
        new = new - np.stack([overlap[:, a - 1, b - 1] for a, b in k_pairs], 1)
    return tuple(by_prompt(measurement, x) for x in (at_early, at_late, new))  # type: ignore[return-value]
