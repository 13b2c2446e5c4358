"""Attention that begins at the first key which a mask shows, against attention to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ppdmodel.measure.decoder import attention
from ppdmodel.measure.decoder.attention import groups, without_padding

KEYS, HEADS, KV_HEADS, SIZE = 40, 6, 2, 8
LAYER = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True)


def given_step(starts: Sequence[int], queries: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and mask of a batch whose rows begin at these places."""
    torch.manual_seed(0)
    rows = len(starts)
    query = torch.randn(rows, HEADS, queries, SIZE)
    key, value = torch.randn(2, rows, KV_HEADS, KEYS, SIZE)
    mask = torch.arange(KEYS) >= torch.tensor(starts)[:, None]
    return query, key, value, mask[:, None, None].expand(rows, 1, queries, KEYS)


def attend(*step: Any, **options: Any) -> Tensor:
    """As a model's layer calls it."""
    out: Tensor = AttentionInterface()["sdpa"](LAYER, *step, dropout=0.0, scaling=0.3, **options)[0]
    return out


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Rows and keys of each call of torch's attention."""
    calls: list[tuple[int, ...]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, *more: Any, **options: Any) -> Tensor:
        calls.append((len(key), key.shape[2]))
        return real(query, key, *more, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(attention, "MIN_KEYS_SAVED", 8)
    return calls


@pytest.mark.parametrize(
    ("starts", "calls"),
    [
        ([30, 30, 28, 12, 0], [(3, 12), (1, 28), (1, 40)]),
        ([10, 10], [(2, 30)]),
        ([0, 0, 30], [(2, 40), (1, 10)]),
    ],
)
def test_a_step_reads_no_padding(
    seen: list[tuple[int, ...]], starts: list[int], calls: list[tuple[int, ...]]
) -> None:
    step = given_step(starts)
    expected = attend(*step)
    seen.clear()
    with without_padding():
        found = attend(*step)
        again = attend(*step)  # the next layer: the same mask
    assert seen == calls * 2
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found, again)


def test_a_changed_mask_is_looked_at_again(seen: list[tuple[int, ...]]) -> None:
    with without_padding():
        attend(*given_step([30, 0]))
        attend(*given_step([0, 20]))
    assert seen == [(1, 10), (1, 40), (1, 40), (1, 20)]


def test_what_is_no_step_with_a_plain_mask_is_read_whole(seen: list[tuple[int, ...]]) -> None:
    query, key, value, mask = given_step([30, 0])
    longer = given_step([30, 0], queries=3)
    bias = torch.zeros(2, HEADS // 3, 3, KEYS)
    with without_padding():
        attend(query, key, value, None)
        attend(query, key, value, torch.where(mask, 0.0, -torch.inf))
        attend(*longer)
        attend(query, key, value, mask.expand(2, HEADS, 1, KEYS)[:, :1].expand(2, 1, 1, KEYS)[:1])
        attend(query, key, value, mask, position_bias=bias[:, :, :1].expand(2, 2, 1, KEYS)[:, :1])
    assert seen == [(2, KEYS)] * 5


def test_transformers_has_its_own_back_whatever_happens() -> None:
    with without_padding():
        assert AttentionInterface()["sdpa"] is not sdpa_attention_forward
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward
    with pytest.raises(ZeroDivisionError), without_padding():
        raise ZeroDivisionError
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.integers(1, 2000))
def test_groups_hold_every_row_and_hide_none_of_its_places(starts: list[int], worth: int) -> None:
    found = groups(starts, worth)
    assert [row for rows, _ in found for row in range(len(starts))[rows]] == list(
        range(len(starts))
    )
    assert all(first == min(starts[rows]) for rows, first in found)
    left_out = sum((first - min(starts)) * len(starts[rows]) for rows, first in found)
    assert left_out >= (len(found) - 1) * worth


def test_a_split_that_skips_just_enough_is_made() -> None:
    assert groups([0, 5], 5) == [(slice(0, 1), 0), (slice(1, 2), 5)]
    assert groups([0, 5], 6) == [(slice(0, 2), 0)]


def test_each_row_is_its_own_group_where_any_key_counts() -> None:
    starts = [9, 7, 7, 3, 0]
    assert groups(starts, 1) == [
        (slice(0, 1), 9),
        (slice(1, 3), 7),
        (slice(3, 4), 3),
        (slice(4, 5), 0),
    ]
