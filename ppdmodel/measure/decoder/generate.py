"""Generation of text by the model, with the hidden states behind each token.

A batch is decoded with a preallocated KV cache, finished texts are removed from it, and the states
are yielded in chunks: memory does not grow with the text.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..progress import OnProgress, Progress, no_report, part_of
from .attention import without_padding
from .exit import Exit, on_layers
from .kernels import drop_pages, fast_linears, give_back_memory, lazy_zeros
from .lengths import alone_beyond
from .sampling import Sampling, TokenPosition, choose

#: share of a batch that must have finished before the batch is compacted
ENDED_SHARE = 0.125
#: prefill groups: largest ratio of longest to shortest context, and most tokens in a group of
#: several contexts
GROUP_SPREAD, GROUP_TOKENS = 1.2, 512
#: tokens of a chunk
CHUNK_TOKENS = 512
#: tokens, over all texts of a batch, that a common prefix must save to be prefilled once
MIN_SHARED_TOKENS = 8


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


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Preallocated keys and values of a layer, so that a step copies only its own."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_more: Any
    ) -> tuple[Tensor, Tensor]:
        """Append [batch, heads, n, size] and return all keys and values."""
        n = key_states.shape[2]
        self._take(key_states, value_states, len(key_states))
        self.all_keys[:, :, self.used : self.used + n] = key_states
        self.all_values[:, :, self.used : self.used + n] = value_states
        return self._show(self.used + n)

    def adopt(self, rows: Sequence[int], batch: int, end: int, other: GrowingLayer) -> None:
        """Copy some rows of another cache, or one row for all, up to place `end`."""
        if other.used == 0:  # a layer that shares another one's keys
            return
        self._take(other.keys, other.values, batch)
        index = torch.tensor(rows, device=other.keys.device)
        self.all_keys[index, :, end - other.used : end] = other.keys
        self.all_values[index, :, end - other.used : end] = other.values
        self._show(max(end, self.used))

    def _take(self, keys: Tensor, values: Tensor, batch: int) -> None:
        if self.used:
            return
        self.dtype, self.device = keys.dtype, keys.device
        self.all_keys, self.all_values = (
            lazy_zeros((batch, like.shape[1], self.room, like.shape[-1]), like)
            for like in (keys, values)
        )
        self.is_initialized = True

    def _show(self, used: int) -> tuple[Tensor, Tensor]:
        self.used = used
        self.keys, self.values = self.all_keys[:, :, :used], self.all_values[:, :, :used]
        return self.keys, self.values

    def keep(self, rows: Sequence[int], starts: Sequence[int]) -> None:
        """Keep only some rows of the batch, in order; row starts are in `starts`.

        Rows are compacted in place: nothing before a row's start is ever read.
        """
        if self.used == 0:
            return
        for to, (row, start) in enumerate(zip(rows, starts, strict=True)):
            if to != row:
                for kept in (self.all_keys, self.all_values):
                    kept[to, :, start : self.used] = kept[row, :, start : self.used]
        for kept in (self.all_keys, self.all_values):
            drop_pages(kept[len(rows) :])
        self.all_keys, self.all_values = self.all_keys[: len(rows)], self.all_values[: len(rows)]
        self._show(self.used)


def growing_cache(config: Any, room: int) -> DynamicCache:
    """A model's cache, with memory for `room` tokens preallocated in the plain layers."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class Batch:
    """The rows still being decoded, shortest context first: their next inputs, and their cache."""

    def __init__(self, model: Any, exit_: Exit, given: Sequence[Sequence[int]], room: int) -> None:
        """Begin with token ids of each text, and room for as many more of each."""
        self.model, self.exit = model, exit_
        device = model.get_input_embeddings().weight.device
        self.rows = sorted(range(len(given)), key=lambda row: len(given[row]))
        texts = [given[row] for row in self.rows]
        self.width = width = len(texts[-1])
        self.starts = [width - len(text) for text in texts]
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, (text, start) in enumerate(zip(texts, self.starts, strict=True)):
            ids[place, start:] = torch.tensor(text)
            mask[place, start:] = 1
        self.ids, self.mask = ids.to(device), mask.to(device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.cache = growing_cache(model.config, width + room)
        self.is_new = True
        accepts = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepts
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
        self.shared = shared_prefix(texts) if self.takes_positions else 0

    def step(self) -> tuple[Tensor, list[Tensor]]:
        """Logits [rows, vocabulary] of the next token, and each layer's states [rows, width]."""
        is_new, self.is_new = self.is_new, False
        layers = self.cache.layers
        if is_new and layers and all(isinstance(layer, GrowingLayer) for layer in layers):
            return self._by_length()
        return self._run(self.ids, self.positions, self.mask, self.cache)

    def _run(
        self, ids: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache
    ) -> tuple[Tensor, list[Tensor]]:
        states: dict[int, Tensor] = {}
        options = {"position_ids": positions} if self.takes_positions else {}
        with on_layers(self.exit, states.__setitem__), without_padding():
            logits: Tensor = self.model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **self.options,
                **options,
            ).logits[:, -1]
        return logits, list(states.values())

    def _by_length(self) -> tuple[Tensor, list[Tensor]]:
        """Prefill the contexts in groups of similar length, so that there is little padding.

        A common prefix is prefilled once and stored before each group's padding: the place of keys
        in the cache does not matter, as position ids and the mask are explicit.
        """
        batch, shared = len(self.rows), self.shared
        beginning = growing_cache(self.model.config, shared)
        if shared:
            first = slice(-1, None), slice(shared)  # the longest has no padding
            self._run(self.ids[first], self.positions[first], self.mask[first], beginning)
        parts = []
        for rows in grouped([self.width - start - shared for start in self.starts]):
            start = min(self.starts[row] for row in rows)
            cache = growing_cache(self.model.config, self.width - start)
            for theirs, begun in zip(cache.layers, beginning.layers, strict=True):
                theirs.adopt(range(len(rows)), len(rows), shared, begun)
            own = slice(start + shared, None)
            positions = self.positions[rows, own]
            mask = self.mask[rows, own] * (positions >= shared)
            mask = torch.cat([mask.new_ones(len(rows), shared), mask], dim=1)
            parts.append((rows, *self._run(self.ids[rows, own], positions, mask, cache)))
            for mine, theirs, begun in zip(
                self.cache.layers, cache.layers, beginning.layers, strict=True
            ):
                mine.adopt(rows, batch, self.width, theirs)
                for row in rows:
                    mine.adopt([row], batch, self.starts[row] + shared, begun)
            del cache
            give_back_memory()
        order = torch.tensor([row for rows, _, _ in parts for row in rows]).argsort()

        def whole(pieces: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(pieces))[order.to(pieces[0].device)]

        layers = zip(*(states for _, _, states in parts), strict=True)
        return whole([logits for _, logits, _ in parts]), [whole(layer) for layer in layers]

    def append(self, chosen: Tensor) -> None:
        """Append each row's next token."""
        self.ids = chosen[:, None].to(self.mask.device)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(chosen), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1

    def keep(self, kept: Sequence[int]) -> None:
        """Keep only the rows of the batch at the given places, in ascending order."""
        index = torch.tensor(kept, device=self.mask.device)
        self.rows = [self.rows[place] for place in kept]
        self.starts = [self.starts[place] for place in kept]
        self.ids, self.mask = self.ids[index], self.mask[index]
        self.positions = self.positions[index]
        for layer in self.cache.layers:
            if isinstance(layer, GrowingLayer):
                layer.keep(kept, self.starts)
            else:
                layer.batch_select_indices(index)


class Alone(Batch):
    """One text by itself, with the inputs that Transformers' `generate` would give its model.

    Some models begin a new cache at a length that their `prepare_inputs_for_generation` knows.
    """

    def __init__(self, model: Any, exit_: Exit, given: Sequence[Sequence[int]], room: int) -> None:
        """Begin with the token ids of one text, and room for as many more."""
        super().__init__(model, exit_, given, room)
        self.text, self.most = self.ids, self.width + room

    def step(self) -> tuple[Tensor, list[Tensor]]:
        """Logits [1, vocabulary] of the next token, and each layer's states [1, width]."""
        prepared = self.model.prepare_inputs_for_generation(
            self.text,
            past_key_values=self.cache,
            attention_mask=self.mask,
            next_sequence_length=self.ids.shape[1],
            use_cache=True,
        )
        if prepared.get("past_key_values") is not self.cache:
            self.cache = growing_cache(self.model.config, self.most)
            self.ids, self.positions = self.text, self.mask.cumsum(1) - 1
        return self._run(self.ids, self.positions, self.mask, self.cache)

    def append(self, chosen: Tensor) -> None:
        """Append the next token."""
        super().append(chosen)
        self.text = torch.cat([self.text, self.ids], dim=1)


@torch.inference_mode()
def forget_lengths(model: Any) -> None:
    """Let a model forget the lengths that it has read, by reading one token.

    Dynamically scaled rotary embeddings keep the scale of the longest text until a short one comes.
    """
    if alone_beyond(model.config) is not None:
        device = model.get_input_embeddings().weight.device
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)


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


def shared_prefix(texts: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix, shorter than every text; 0 where it saves little.

    >>> shared_prefix([[7, 8, 9], [7, 8, 5, 6]] * 3)
    2
    """
    whole = [list(text) for text in texts]
    least, most, room = min(whole), max(whole), min(map(len, whole)) - 1
    shared = next((n for n in range(room) if least[n] != most[n]), room)
    return shared if shared * (len(texts) - 1) >= MIN_SHARED_TOKENS else 0


def grouped(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in groups whose lengths differ by at most a fifth, shortest first.

    A group of several has at most `GROUP_TOKENS` tokens.

    >>> grouped([50, 90, 52, 100])
    [[0, 2], [1, 3]]
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        last = groups[-1] if groups else []
        fits = (len(last) + 1) * lengths[row] <= GROUP_TOKENS
        if last and fits and lengths[row] <= GROUP_SPREAD * lengths[last[0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


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
