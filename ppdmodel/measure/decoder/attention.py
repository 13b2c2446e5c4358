"""Attention that does not read the padding of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

#: what Transformers takes by default; its masks are flags, [batch, 1, queries, keys]
NAME = "sdpa"
#: keys, over all rows of a group, that a cut must save to be worth a call of its own
MIN_KEYS_SAVED = 512


@contextmanager
def without_padding() -> Iterator[None]:
    """Have attention begin at the first key that a row's mask shows, for a while.

    It does so on a CPU, where a step has one token per row. Rows that lie together and begin at
    about the same place are read together, so a batch is best ordered by length. What is left out
    has weight 0: the result is the same but for rounding.
    """
    from transformers import AttentionInterface  # slow: not before a model is there

    whole = AttentionInterface()[NAME]
    AttentionInterface.register(NAME, _Shortened(whole))
    try:
        yield
    finally:
        AttentionInterface.register(NAME, whole)


class _Shortened:
    """Attention in groups of rows; the layers of a step share a mask, and so its groups."""

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
            self.groups = groups(attention_mask[:, 0, 0].byte().argmax(-1).tolist(), MIN_KEYS_SAVED)
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
        return parts[0] if len(parts) == 1 else torch.cat(parts), None


def _is_step(query: Tensor, key: Tensor, mask: Tensor, options: dict[str, Any]) -> bool:
    """Whether keys may be left out by rows: a step of one token on a CPU, with a mask of flags."""
    return (
        query.device.type == "cpu"
        and query.shape[2] == 1
        and mask.dtype == torch.bool
        and mask.shape == (len(query), 1, 1, key.shape[2])
        and options.get("position_bias") is None
        and options.get("cache") is None
    )


def groups(starts: Sequence[int], worth: int) -> list[tuple[slice, int]]:
    """Cut rows that begin at these places into groups, each with the first place of its rows.

    The cut that leaves out most places is made, and both parts are cut again, while it leaves out
    at least `worth`.

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
            (
                ((before[cut - 1] - first) * cut + (after[cut] - first) * (size - cut), cut)
                for cut in range(1, size)
            ),
            default=(0, 0),
        )
        if saved < worth:
            found.append((slice(begin, begin + size), first))
        else:
            waiting += [(begin + cut, part[cut:]), (begin, part[:cut])]
    return found
