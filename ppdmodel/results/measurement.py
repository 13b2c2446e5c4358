"""A measurement: the true token's rank at every exit layer, for every generated token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError, visible

if TYPE_CHECKING:
    from .._types import Floats, Ints


#: rank of a true token that an exit with a shortlist does not score; 0 in a file
NO_RANK = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Measurement:
    """The true token's rank at every exit layer, for every generated token.

    Arrays have one row per generated token, in the order of prompts, turns and positions, and the
    types of the file; `rank`, `coupled_rank` and `top_prob` have one column per exit layer 1...d.
    A rank is 1 + the number of larger logits, over the whole vocabulary. Exits with a shortlist
    rank its tokens alone; another token is never guessed below the last layer, and has `NO_RANK`.

    Attributes:
        prompt_index: index of the token's prompt in `prompt_ids`.
        turn: the user message that it answers, from 0.
        position: its place in that answer, from 0.
        rank: its rank among the exit's logits.
        top_prob: the exit's largest probability.
        coupled_rank: of a sampled token, its rank after the noise that sampled it was added to the
            exit's logits; None for greedy text.
        ties: tokens that the last exit does not rank first though the model did, with the margin.
        near_ties: greedy tokens with a margin that rounding elsewhere may reverse.
        repeated: texts of which Transformers' `generate` made tokens again, the text by itself:
            how many were compared, and how many differ at near ties.
        prompt_numbers: place of each prompt in the whole list, also in a shard.
        context_ids: token ids that the model read before each text, in the order of `starts()`: its
            prompt with the chat template, and earlier turns; None in files of older versions.
    """

    provenance: Mapping[str, Any]
    prompt_ids: tuple[str, ...]
    categories: tuple[str, ...]
    prompt_index: Ints
    turn: Ints
    position: Ints
    token_id: Ints
    rank: Ints
    top_prob: Floats
    complete: bool
    ties: tuple[Mapping[str, Any], ...] = ()
    near_ties: tuple[Mapping[str, Any], ...] = ()
    repeated: tuple[Mapping[str, Any], ...] = ()
    coupled_rank: Ints | None = None
    prompt_numbers: tuple[int, ...] | None = None
    context_ids: tuple[Ints, ...] | None = None

    @property
    def layers(self) -> int:
        """Decoder layers d of the measured model."""
        return int(self.rank.shape[1])

    @property
    def n_tokens(self) -> int:
        """Generated tokens, over all prompts."""
        return int(self.rank.shape[0])

    @property
    def recorded_k(self) -> int | None:
        """Largest number of guesses that an exit can make; None if it is not on record."""
        most = self.provenance.get("k_max")
        return most if isinstance(most, int) else None

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens that the model's own head scores; None if it is not on record."""
        size = self.provenance.get("vocabulary", self.recorded_k)
        return size if isinstance(size, int) else None

    @property
    def has_shortlist(self) -> bool:
        """Whether exits below the last layer score a part of the vocabulary only."""
        most, vocabulary = self.recorded_k, self.vocabulary
        return most is not None and vocabulary is not None and most < vocabulary

    def coupled(self) -> Measurement:
        """The same tokens with the coupled ranks instead of the plain ones.

        Raises:
            InvalidInputError: the text is greedy, which has no noise to couple.
        """
        if self.coupled_rank is None:
            raise InvalidInputError(
                "coupled guesses need sampled text; got a greedy measurement; "
                "measure with --temperature"
            )
        about = {**self.provenance, "ranks": "coupled"}
        return replace(self, rank=self.coupled_rank, coupled_rank=None, provenance=about)

    def starts(self) -> Ints:
        """Row of the first token of each generated text, with the number of rows at the end."""
        return np.append(np.flatnonzero(self.position == 0), self.n_tokens)

    def tokens_by_prompt(self) -> Ints:
        """Generated tokens of each prompt, shape [prompts]."""
        return np.bincount(self.prompt_index, minlength=len(self.prompt_ids))

    def hits_by_prompt_at(self, exit_layer: int, k: int) -> Ints:
        """Tokens of each prompt that ranked k or better at one exit layer, shape [prompts]."""
        hit = self.prompt_index[self.rank[:, exit_layer - 1] <= k]
        return np.bincount(hit, minlength=len(self.prompt_ids))

    def hits_by_prompt(self, k_max: int) -> Ints:
        """Tokens of each prompt that ranked k or better, shape [prompts, layers, k_max]."""
        shape = (len(self.prompt_ids), self.layers, k_max)
        row, layer = np.nonzero(self.rank <= k_max)
        cell = (self.prompt_index[row], layer, self.rank[row, layer] - 1)
        flat = np.ravel_multi_index(cell, shape)
        counts = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
        return np.cumsum(counts, axis=2)


@dataclass(frozen=True, eq=False)
class Guesses:
    """The first guesses of every exit for every generated token, as `guesses.parquet` holds them.

    Rows are those of the measurement beside it; `ids` and `probs` have shape [tokens, layers, 8],
    the likeliest first. Probabilities are stored in two bytes, exact to 0.05%.
    """

    prompt_ids: tuple[str, ...]
    prompt_index: Ints
    turn: Ints
    position: Ints
    vocabulary: int
    ids: Ints
    probs: Floats


def shortlist_of(about: Mapping[str, Any]) -> int | None:
    """Number of tokens that exits score, from provenance; None if all."""
    exits = about.get("exits")
    listed = exits.get("shortlist") if isinstance(exits, Mapping) else None
    return listed if isinstance(listed, int) else None


def titled(model: str, about: Mapping[str, Any]) -> str:
    """A model, with its kind of exits and of text where not the defaults, from provenance."""
    parts = [visible(model)]
    if about.get("exit_kind") == "trained":
        parts.append("trained exits")
    listed = shortlist_of(about)
    if listed:
        parts.append(f"a shortlist of {listed} tokens")
    if about.get("decoding") == "sampled":
        temperature = about.get("temperature")
        known = isinstance(temperature, (int, float))
        parts.append(f"sampled at temperature {temperature:g}" if known else "sampled")
    if about.get("ranks") == "coupled":
        parts.append("coupled guesses")
    if about.get("ngrams"):
        parts.append("a guess by prompt lookup")
    return ", ".join(parts)
