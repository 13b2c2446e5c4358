"""Forward passes of a batch of texts, with the KV cache that grows by each.

The cache is preallocated and compacted in place when rows leave. Contexts are prefilled in groups
of similar length, and a common prefix only once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .attention import without_padding
from .exit import Exit, on_layers
from .kernels import drop_pages, give_back_memory, lazy_zeros
from .lengths import alone_beyond

#: prefill groups: largest ratio of longest to shortest context, and most tokens in a group of
#: several contexts
GROUP_SPREAD, GROUP_TOKENS = 1.2, 512
#: tokens, over all texts of a batch, that a common prefix must save to be prefilled once
MIN_SHARED_TOKENS = 8


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
