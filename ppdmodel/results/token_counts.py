"""Counts by prompt for gates, two exits, self-speculation and prompt lookup.

They are sufficient statistics: on any resample of the prompts these methods give the same results
as on the recorded tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from .prompt_lookup import LOOKED_UP, NGRAMS, lookup_rounds

if TYPE_CHECKING:
    from .._types import Bools, Ints
    from .measurement import Guesses, Measurement

#: drafted tokens per round of self-speculation
DRAFTED = tuple(range(1, 9))
#: guesses behind a gate, and at each of two exits
GATED_K, PAIR_K = (1, 2, 3, 5, 8), (1, 2, 3, 5)
GATES = tuple(round(0.1 * n, 1) for n in range(1, 10))
#: gates of self-speculation
DRAFT_GATES = GATES[::2]
#: most exits that are paired, spaced evenly over the second half of the layers: the number of pairs
#: grows with the square
MAX_PAIRED_EXITS = 16
#: arrays of a `TokenCounts` in the order of a file; the later ones are optional
ARRAYS = (
    "rounds", "passed", "right", "first", "both",
    "shared", "gated_rounds", "gated_drafts", "lookups",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """Counts of a measurement by prompt; exits of gates and pairs lie in the second half.

    Attributes:
        layers: decoder layers d.
        tokens: generated tokens, [prompts].
        drafted: tokens drafted per round of self-speculation.
        gates: top probabilities from which a gate is open.
        gated_k: guesses behind a gate; of self-speculation the most tokens drafted per round.
        pair_k: guesses at each of two exits.
        pair_exits: exits that are paired, ascending.
        rounds: of self-speculation, [prompts, layers 1...d-1, drafted].
        passed: tokens at which a gate is open, [prompts, exits, gates].
        right: those of them whose rank is in a class of `gated_k`, [prompts, exits, gates, k]: the
            first class is up to the first k, each other from the k before it.
        first: tokens in each class of `pair_k`, [prompts, pair_exits, k].
        both: tokens in a class at the earlier of two exits and one at the later,
            [prompts, pairs, k, k].
        shared: guesses in a class of the earlier exit that stand in one of the later, same shape;
            None where guesses were not recorded.
        gated_rounds: of self-speculation that drafts while the gate is open, [prompts, layers
            1...d-1, draft_gates, gated_k]; None in files of older versions, as all below.
        gated_drafts: tokens that these rounds draft, same shape.
        draft_gates: top probabilities from which the gate of self-speculation is open.
        ngrams, looked_up: longest n-grams and drafted tokens of prompt lookup; empty without.
        lookups: its rounds, see `lookup_rounds`.
        with_contexts: whether prompts too were searched, or only generated text.
    """

    layers: int
    tokens: Ints
    drafted: tuple[int, ...]
    gates: tuple[float, ...]
    gated_k: tuple[int, ...]
    pair_k: tuple[int, ...]
    pair_exits: tuple[int, ...]
    rounds: Ints
    passed: Ints
    right: Ints
    first: Ints
    both: Ints
    shared: Ints | None
    draft_gates: tuple[float, ...] = ()
    gated_rounds: Ints | None = None
    gated_drafts: Ints | None = None
    ngrams: tuple[int, ...] = ()
    looked_up: tuple[int, ...] = ()
    lookups: Ints | None = None
    with_contexts: bool = False

    @classmethod
    def of(cls, measurement: Measurement, guesses: Guesses | None = None) -> TokenCounts:
        """Count a measurement, and the guesses of the same tokens.

        Raises:
            InvalidInputError: the guesses are of other tokens.
        """
        if guesses is not None:
            check_guesses(measurement, guesses)
        passed, right = _gates(measurement)
        exits = paired(measurement.layers)
        first, both, shared = _pairs(measurement, guesses, exits)
        gated_rounds, gated_drafts = gated_rounds_of(measurement)
        return cls(
            layers=measurement.layers,
            tokens=measurement.tokens_by_prompt(),
            drafted=DRAFTED,
            gates=GATES,
            gated_k=GATED_K,
            pair_k=PAIR_K,
            pair_exits=exits,
            rounds=rounds_of(measurement)[:, :-1],
            passed=passed,
            right=right,
            first=first,
            both=both,
            shared=shared,
            draft_gates=DRAFT_GATES,
            gated_rounds=gated_rounds[:, :-1],
            gated_drafts=gated_drafts[:, :-1],
            ngrams=NGRAMS,
            looked_up=LOOKED_UP,
            lookups=lookup_rounds(measurement),
            with_contexts=measurement.context_ids is not None,
        )

    @classmethod
    def joined(cls, parts: Sequence[TokenCounts]) -> TokenCounts:
        """Concatenate several measurements of one model."""
        joint: dict[str, Any] = {}
        for name in ("tokens", *ARRAYS):
            each = [getattr(part, name) for part in parts]
            joint[name] = None if any(one is None for one in each) else np.concatenate(each)
        return replace(parts[0], **joint, with_contexts=all(one.with_contexts for one in parts))

    def only(self, prompts: Sequence[int]) -> TokenCounts:
        """Select some of the prompts."""
        arrays = {name: getattr(self, name) for name in ("tokens", *ARRAYS)}
        kept: dict[str, Any] = {
            name: None if array is None else array[list(prompts)] for name, array in arrays.items()
        }
        return replace(self, **kept)

    @property
    def gated_exits(self) -> Ints:
        """Exits of the gates: all in the second half of the layers."""
        return np.arange(second_half(self.layers), self.layers)

    @property
    def pairs(self) -> Ints:
        """The places in `pair_exits` of the earlier and the later exit, [pairs, 2]."""
        return pairs_of(len(self.pair_exits))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array, as the other attributes determine it."""
        n, exits, k = len(self.tokens), len(self.pair_exits), len(self.pair_k)
        gates = (n, self.layers - second_half(self.layers), len(self.gates))
        pairs = (n, exits * (exits - 1) // 2, k, k)
        drafts = (n, self.layers - 1, len(self.draft_gates), len(self.gated_k))
        lookups = (n, len(self.ngrams), len(self.looked_up), max(self.looked_up, default=0) + 1)
        return {
            "rounds": (n, self.layers - 1, len(self.drafted)),
            "passed": gates,
            "right": (*gates, len(self.gated_k)),
            "first": (n, exits, k),
            "both": pairs,
            "shared": pairs,
            "gated_rounds": drafts,
            "gated_drafts": drafts,
            "lookups": lookups,
        }


def second_half(layers: int) -> int:
    """The first exit e with 2e >= d: no process passes a second exit before verification."""
    return -(-layers // 2)


def paired(layers: int) -> tuple[int, ...]:
    """Exits that are paired: all in the second half, or an evenly spaced subset."""
    first, n = second_half(layers), layers - second_half(layers)
    places = np.linspace(first, layers - 1, min(n, MAX_PAIRED_EXITS)).round().astype(int)
    return tuple(sorted(set(places.tolist())))


def pairs_of(exits: int) -> Ints:
    """Places of the earlier and the later of two exits, in order, [pairs, 2]."""
    return np.stack(np.triu_indices(exits, 1), axis=1)


def up_to(classes: Ints) -> Ints:
    """Cumulative counts up to each two k, from counts in their classes, [..., k, k]."""
    found: Ints = classes.cumsum(axis=-2).cumsum(axis=-1)
    return found


def check_guesses(measurement: Measurement, guesses: Guesses) -> None:
    """Refuse guesses that are not of the measured tokens.

    Raises:
        InvalidInputError: their numbers differ, or the true tokens disagree with the ranks.
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


def rounds_of(measurement: Measurement, drafted: Sequence[int] = DRAFTED) -> Ints:
    """Rounds that self-speculation takes for the recorded text, [prompts, layers, drafted].

    A round drafts so many tokens at an exit and verifies them with the whole model, which adds a
    token of its own. A draft is right where the exit ranked the true token first; the first layers
    of an accepted draft are the model's own, so the record is exact. A text's last round may be cut
    short by its end.
    """
    return _rounds(measurement, drafted, np.full(measurement.rank.shape, True))[0]


def gated_rounds_of(measurement: Measurement) -> tuple[Ints, Ints]:
    """Rounds of self-speculation that drafts while a gate is open, and the tokens drafted.

    A round drafts until the exit's top probability is below the gate, or it has drafted the most;
    what it has drafted is verified. Behind a wrong draft the probabilities were not recorded: they
    are taken to be those of the true text at the same places.

    Returns:
        Two arrays [prompts, layers, `DRAFT_GATES`, `GATED_K`].
    """
    found = [_rounds(measurement, GATED_K, measurement.top_prob >= gate) for gate in DRAFT_GATES]
    rounds, drafts = (np.stack(each, axis=2) for each in zip(*found, strict=True))
    return rounds, drafts


def _rounds(measurement: Measurement, drafted: Sequence[int], open_: Bools) -> tuple[Ints, Ints]:
    """Rounds, and tokens that they draft where an exit is open [tokens, layers].

    Both [prompts, layers, drafted].
    """
    starts, layers = measurement.starts(), measurement.layers
    right, left = _runs(measurement, measurement.rank == 1)
    drafts, _ = _runs(measurement, open_)
    drafts = np.where(drafts == left, max(drafted), drafts)  # as if it went on
    made = np.minimum(drafts[:, :, None], np.array(drafted, dtype=np.int32))
    step = np.minimum(right[:, :, None], made).ravel() + np.int32(1)
    made, each = made.ravel(), layers * len(drafted)
    cell = np.arange((len(starts) - 1) * each)  # of every text, layer and number of drafts
    place = np.repeat(starts[:-1], each) * each + cell % each
    end = np.repeat(starts[1:], each) * each
    found = np.zeros((2, len(cell)), dtype=np.int64)
    while len(cell):  # those whose text is not made yet
        found[0, cell] += 1
        found[1, cell] += made[place]
        place = place + step[place].astype(np.int64) * each
        going = place < end
        cell, place, end = cell[going], place[going], end[going]
    shape = (len(starts) - 1, layers, len(drafted))
    totals = np.zeros((2, len(measurement.prompt_ids), *shape[1:]), dtype=np.int64)
    for total, counts in zip(totals, found, strict=True):
        np.add.at(total, measurement.prompt_index[starts[:-1]], counts.reshape(shape))
    return totals[0], totals[1]


def _runs(measurement: Measurement, flags: Bools) -> tuple[Ints, Ints]:
    """Flags [tokens, layers] in a row from every token on, within its text; and tokens left in it.

    The second is [tokens, 1].
    """
    tokens, starts = measurement.n_tokens, measurement.starts()
    places = np.arange(tokens, dtype=np.int32)[:, None]
    unset = np.where(flags, np.int32(tokens), places)
    following = np.minimum.accumulate(unset[::-1], axis=0)[::-1]  # the next one that is not set
    left = np.repeat(starts[1:], np.diff(starts))[:, None] - places
    return np.minimum(following - places, left), left


def _by_prompt(measurement: Measurement, cell: Ints, cells: int, rows: Ints | None = None) -> Ints:
    """How often each cell occurs, [prompts, cells]; a cell beyond the last is none."""
    owner = measurement.prompt_index if rows is None else measurement.prompt_index[rows]
    flat = owner.astype(np.int64) * (cells + 1) + np.minimum(cell, cells)
    prompts = len(measurement.prompt_ids)
    counts = np.bincount(flat, minlength=prompts * (cells + 1)).reshape(prompts, cells + 1)
    return counts[:, :cells]


def _gates(measurement: Measurement) -> tuple[Ints, Ints]:
    """Tokens at which each gate of each exit is open, and those by class of rank."""
    n_gates, n_k = len(GATES), len(GATED_K)
    passed, right = [], []
    for e in range(second_half(measurement.layers), measurement.layers):
        confidence = measurement.top_prob[:, e - 1]
        # the number of open gates: these are the first ones
        open_ = (confidence[:, None] >= np.array(GATES)).sum(axis=1)
        rank_class = np.searchsorted(GATED_K, measurement.rank[:, e - 1])
        cell = open_ * (n_k + 1) + rank_class
        counts = _by_prompt(measurement, cell, (n_gates + 1) * (n_k + 1))
        counts = counts.reshape(-1, n_gates + 1, n_k + 1)
        at_least = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
        passed.append(at_least.sum(axis=2))
        right.append(at_least[:, :, :n_k])
    return np.stack(passed, axis=1), np.stack(right, axis=1)


def _pairs(
    measurement: Measurement, guesses: Guesses | None, exits: tuple[int, ...]
) -> tuple[Ints, Ints, Ints | None]:
    """Tokens by class of rank at each exit and each pair, and guesses shared by pairs."""
    n_k, prompts = len(PAIR_K), len(measurement.prompt_ids)
    classes = [np.searchsorted(PAIR_K, measurement.rank[:, e - 1]) for e in exits]
    first = np.stack([_by_prompt(measurement, cell, n_k) for cell in classes], axis=1)
    pairs = pairs_of(len(exits))
    both = np.zeros((prompts, len(pairs), n_k, n_k), dtype=np.int64)
    shared = None if guesses is None else np.zeros_like(both)
    for number, (i, j) in enumerate(pairs):
        cell = classes[i] * (n_k + 1) + classes[j]
        counts = _by_prompt(measurement, cell, (n_k + 1) ** 2).reshape(prompts, n_k + 1, n_k + 1)
        both[:, number] = counts[:, :n_k, :n_k]
        if guesses is not None and shared is not None:
            shared[:, number] = _shared(measurement, guesses, exits[i], exits[j])
    return first, both, shared


def _shared(measurement: Measurement, guesses: Guesses, early: int, late: int) -> Ints:
    """Guesses common to both exits, [prompts, k, k] by their places."""
    n_k, most = len(PAIR_K), max(PAIR_K)
    ids_1, ids_2 = (guesses.ids[:, e - 1, :most] for e in (early, late))
    row, i, j = np.nonzero(ids_1[:, :, None] == ids_2[:, None, :])
    place_class = np.searchsorted(PAIR_K, np.arange(1, most + 1))
    cell = place_class[i] * n_k + place_class[j]
    return _by_prompt(measurement, cell, n_k * n_k, row).reshape(-1, n_k, n_k)
