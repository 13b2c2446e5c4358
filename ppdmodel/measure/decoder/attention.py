"""Attention that skips the padding of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

#: Transformers' default attention, with boolean masks [batch, 1, queries, keys]
NAME = "sdpa"
#: fewest keys, over all rows of a group, that a split must save
MIN_KEYS_SAVED = 512


@contextmanager
def without_padding() -> Iterator[None]:
    """Context in which attention starts at the first unmasked key of each row.

    It applies on a CPU to steps of one token per row. Adjacent rows that start at about the same
    key share a call, so a batch is best ordered by length. Skipped keys have weight 0: the result
    is the same up to rounding.
    """
    from transformers import AttentionInterface  # slow import, deferred until a model is loaded

    whole = AttentionInterface()[NAME]
    AttentionInterface.register(NAME, _Shortened(whole))
    try:
        yield
    finally:
        AttentionInterface.register(NAME, whole)


class _Shortened:
    """Attention in groups of rows, which all layers of a step share, as they share the mask."""

    def __init__(self, whole: Callable[..., tuple[Tensor, None]]) -> None:
        self.whole = whole
        self.mask: Tensor | None = None
        self.groups: list[tuple[slice, int]] = []

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if attention_mask is None or not _is_step(query, key, attention_mask, options):
            return self.whole(module, query, key, value, attention_mask, **options)
        if attention_mask is not self.mask:
            self.mask = attention_mask
            starts = attention_mask.flatten(1).byte().argmax(1).tolist()
            self.groups = groups(starts, MIN_KEYS_SAVED)
        parts = [
            self.whole(
                module,
                query[rows],
                key[rows, :, start:],
                value[rows, :, start:],
                attention_mask[rows, :, :, start:],
                **options,
            )[0]
            for rows, start in self.groups
        ]
        return torch.cat(parts), None


def _is_step(query: Tensor, key: Tensor, mask: Tensor, options: dict[str, Any]) -> bool:
    """Whether keys may be skipped by rows: a one-token step on a CPU with a boolean mask."""
    return (
        query.device.type == "cpu"
        and query.shape[2] == 1
        and mask.dtype == torch.bool
        and mask.shape == (len(query), 1, 1, key.shape[2])
        and options.get("position_bias") is None
        and options.get("cache") is None
    )


def groups(starts: Sequence[int], worth: int) -> list[tuple[slice, int]]:
    """Split rows by their first keys into groups, each with the smallest first key of its rows.

    The split that skips most keys is made, and both parts are split again, while a split skips at
    least `worth` keys.

    >>> groups([9, 8, 9, 0], worth=3)
    [(slice(0, 3, None), 8), (slice(3, 4, None), 0)]
    """
    found: list[tuple[slice, int]] = []
    waiting = [(0, list(starts))]
    while waiting:
        begin, part = waiting.pop()
        first, size = min(part), len(part)
        before, after = list(accumulate(part, min)), list(accumulate(part[::-1], min))[::-1]
        saved, cut = max(
            ((before[cut - 1] - first) * cut + (after[cut] - first) * (size - cut), cut)
            for cut in range(size)
        )
        if saved < worth:
            found.append((slice(begin, begin + size), first))
        else:
            waiting += [(begin + cut, part[cut:]), (begin, part[:cut])]
    return found
