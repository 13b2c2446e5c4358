"""The cache of a batch against Transformers' own, and which contexts are prefilled together."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from ppdmodel.measure.decoder.forward import (
    GROUP_TOKENS,
    MIN_SHARED_TOKENS,
    GrowingLayer,
    grouped,
    shared_prefix,
)


def test_a_growing_cache_keeps_what_transformers_own_keeps() -> None:
    torch.manual_seed(0)
    mine, theirs = GrowingLayer(9), DynamicLayer()
    for n in (4, 1, 1):
        keys, values = torch.randn(3, 2, n, 4), torch.randn(3, 2, n, 6)
        for found, expected in zip(
            mine.update(keys, values), theirs.update(keys, values), strict=True
        ):
            assert torch.equal(found, expected)
    mine.keep([0, 2], [0, 1])
    theirs.batch_select_indices(torch.tensor([0, 2]))
    assert mine.keys.shape == theirs.keys.shape
    assert torch.equal(mine.keys[0], theirs.keys[0])
    assert torch.equal(mine.keys[1, :, 1:], theirs.keys[1, :, 1:])
    assert torch.equal(mine.values[1, :, 1:], theirs.values[1, :, 1:])
    keys, values = torch.randn(2, 2, 1, 4), torch.randn(2, 2, 1, 6)
    kept_keys, kept_values = mine.update(keys, values)
    assert torch.equal(kept_keys[:, :, -1:], keys)
    assert kept_values.shape == theirs.update(keys, values)[1].shape


def test_a_layer_that_shares_anothers_keys_has_none_to_keep() -> None:
    unused = GrowingLayer(9)
    unused.keep([0, 2], [0, 1])
    unused.adopt([0], 1, 3, GrowingLayer(9))
    assert (unused.used, unused.is_initialized) == (0, False)


@given(
    st.lists(st.integers(0, 2), max_size=6),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=9),
)
def test_a_shared_beginning_is_one_and_leaves_each_text_a_token(
    beginning: list[int], ends: list[list[int]]
) -> None:
    texts = [beginning + end for end in ends]
    shared = shared_prefix(texts)
    assert all(text[:shared] == texts[0][:shared] and len(text) > shared for text in texts)
    if len(beginning) * (len(texts) - 1) >= 8:
        assert shared >= len(beginning)


def test_a_beginning_is_read_apart_only_where_that_saves_enough() -> None:
    """All texts but one save it, and each keeps a token of its own."""
    beginning = list(range(MIN_SHARED_TOKENS))
    assert shared_prefix([[*beginning, 90], [*beginning, 91]]) == MIN_SHARED_TOKENS
    assert shared_prefix([[*beginning[1:], 90], [*beginning[1:], 91]]) == 0
    assert shared_prefix([[*beginning, 90]]) == 0
    assert shared_prefix([beginning, beginning, beginning]) == MIN_SHARED_TOKENS - 1


def test_groups_of_a_length_end_at_a_fifth_and_at_their_tokens() -> None:
    assert grouped([10, 12, 13, 5]) == [[3], [0, 1], [2]]
    half = GROUP_TOKENS // 2
    assert grouped([half, half, half]) == [[0, 1], [2]]
    assert grouped([half + 1, half + 1]) == [[0], [1]]
    assert grouped([]) == []
