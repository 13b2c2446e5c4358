"""Generation of text by the model, with the hidden states behind each token.

Finished texts are removed from a batch, and the states are yielded in chunks: memory for them does
not grow with the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ...progress import OnProgress, Progress, no_report, part_of
from .exit import Exit
from .forward import Alone, Batch, forget_lengths
from .kernels import fast_linears, give_back_memory
from .lengths import alone_beyond
from .sampling import Sampling, TokenPosition, choose

#: share of a batch that must have finished before the batch is compacted
ENDED_SHARE = 0.125
#: tokens of a chunk
CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Context:
    """The token ids to continue, and the conversation they belong to."""

    prompt_id: str
    turn: int
    ids: Sequence[int]


@dataclass(frozen=True)
class Chunk:
    """Some generated tokens, ordered by step, with each layer's states.

    `row` [n] counts the contexts of the batch, `position` [n] the tokens of a row; `hidden` has
    shape [layers, n, width], `noise` [n, vocabulary] or is None for greedy text, and `top_token`
    [n] is the token with the largest logit, which is `token_id` unless it was sampled.
    """

    row: list[int]
    position: list[int]
    token_id: Tensor
    top_token: Tensor
    hidden: Tensor
    noise: Tensor | None


def companies(lengths: Sequence[int], room: int, limit: int | None) -> list[list[int]]:
    """Rows that are decoded together: all, but those by themselves that may outgrow the limit.

    Args:
        lengths: tokens of each text so far.
        room: most tokens to come.
        limit: from `alone_beyond`.

    >>> companies([5, 30, 7, 28], room=4, limit=31)
    [[0, 2, 3], [1]]
    """
    alone = [row for row, length in enumerate(lengths) if outgrows(length, room, limit)]
    together = [row for row in range(len(lengths)) if row not in alone]
    return [rows for rows in (together, *([row] for row in alone)) if rows]


def outgrows(length: int, room: int, limit: int | None) -> bool:
    """Whether a text may outgrow a limit on the tokens that are read: the last one is not.

    >>> outgrows(28, room=4, limit=31)
    False
    """
    return limit is not None and length + room - 1 > limit


def _rows(whole: Tensor, places: Tensor) -> Tensor:
    """The rows at some places, in order; the tensor itself if these are all rows."""
    return whole if len(places) == len(whole) else whole[places.to(whole.device)]


class _Buffer:
    """The tokens since the last chunk, each layer's states written in place."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers, self.capacity, self.fill = layers, capacity, 0
        self.hidden: Tensor | None = None
        self.steps: list[tuple[list[int], list[int], Tensor, Tensor, Tensor | None]] = []

    def keep(self, states: Sequence[Tensor], places: Tensor) -> None:
        """Copy the rows at some places of each layer's states [rows, width]."""
        if self.hidden is None:
            first, *_ = states
            self.hidden = first.new_empty(self.layers, self.capacity, *first.shape[1:])
        end = self.fill + len(places)
        for layer, state in enumerate(states):
            self.hidden[layer, self.fill : end] = _rows(state, places)
        self.fill = end

    def take(self) -> Chunk:
        assert self.hidden is not None
        row, position, token_id, top_token, noise = zip(*self.steps, strict=True)
        drawn = [of_step for of_step in noise if of_step is not None]
        chunk = Chunk(
            row=list(chain(*row)),
            position=list(chain(*position)),
            token_id=torch.cat(token_id),
            top_token=torch.cat(top_token),
            hidden=self.hidden[:, : self.fill],
            noise=torch.cat(drawn) if drawn else None,
        )
        self.steps, self.fill = [], 0
        return chunk


@torch.inference_mode()
def generate(
    model: Any,
    exit_: Exit,
    contexts: Sequence[Context],
    max_new_tokens: int,
    end_ids: frozenset[int],
    *,
    sampling: Sampling | None = None,
    drops_rows: bool = True,
    chunk_tokens: int = CHUNK_TOKENS,
    on_progress: OnProgress = no_report,
) -> Iterator[Chunk]:
    """Decode a batch of tokenized contexts, padded on the left, end tokens included.

    Texts that may reach a length from which on a batch would be another text than each by itself
    (`alone_beyond`) are decoded alone, after the others.

    A chunk must be consumed before the next is requested: the memory of its states is reused.

    Args:
        model: a decoder with a language-model head.
        exit_: its layers, from `logit_exit`.
        contexts: token ids of each text so far; none empty.
        max_new_tokens: tokens to generate for each, unless it ends earlier.
        end_ids: a text stops after one of these.
        sampling: how tokens are sampled; None is greedy.
        drops_rows: whether finished texts may leave the batch; some caches do not support it.
        chunk_tokens: tokens per chunk, except the last; at least those of one step.
        on_progress: called after each step with the tokens so far and the share of the steps.
    """
    limit = alone_beyond(model.config)
    lengths = [len(context.ids) for context in contexts]
    done = tokens = 0
    for rows in companies(lengths, max_new_tokens, limit):
        kind = Alone if outgrows(lengths[rows[0]], max_new_tokens, limit) else Batch
        given = [contexts[row] for row in rows]
        forget_lengths(model)
        batch = kind(model, exit_, [context.ids for context in given], max_new_tokens)
        before, done = done / len(contexts), done + len(rows)
        report = part_of(on_progress, before, done / len(contexts), tokens)
        for chunk in _decoded(
            batch, given, max_new_tokens, end_ids, sampling, drops_rows, chunk_tokens, report
        ):
            tokens += len(chunk.row)
            yield replace(chunk, row=[rows[row] for row in chunk.row])


def _decoded(
    batch: Batch,
    contexts: Sequence[Context],
    max_new_tokens: int,
    end_ids: frozenset[int],
    sampling: Sampling | None,
    drops_rows: bool,
    chunk_tokens: int,
    on_progress: OnProgress,
) -> Iterator[Chunk]:
    """Decode the contexts of one batch."""
    model, exit_ = batch.model, batch.exit
    buffer = _Buffer(len(exit_.decoder_layers), max(chunk_tokens, len(contexts)))
    tokens = 0
    active = list(range(len(contexts)))  # places in the batch whose text has not ended
    for step in range(max_new_tokens):
        if buffer.fill + len(active) > buffer.capacity:
            give_back_memory()  # freed by the steps and by the chunk's consumer
            yield buffer.take()
            give_back_memory()
        places = torch.tensor(active)
        with fast_linears(model):
            logits, states = batch.step()
        if step == 0:  # prefill used most memory
            give_back_memory()
        buffer.keep(states, places)
        rows = [batch.rows[place] for place in active]
        live = _rows(logits, places)
        where = [TokenPosition(contexts[row].prompt_id, contexts[row].turn, step) for row in rows]
        chosen, noise = choose(live, where, sampling)
        top = live.argmax(1) if sampling else chosen
        buffer.steps.append((rows, [step] * len(rows), chosen, top, noise))
        del logits, states, live, noise  # free the memory before the next step
        tokens += len(active)
        on_progress(Progress("decoding", tokens, (step + 1) / max_new_tokens))
        ended = [token in end_ids for token in chosen.tolist()]
        following = torch.zeros(len(batch.rows), dtype=torch.long)
        following[places] = chosen.cpu()
        active = [place for place, over in zip(active, ended, strict=True) if not over]
        if not active:
            break
        batch.append(following)
        if drops_rows and len(active) <= (1 - ENDED_SHARE) * len(batch.rows):
            batch.keep(active)
            active = list(range(len(active)))
    yield buffer.take()
