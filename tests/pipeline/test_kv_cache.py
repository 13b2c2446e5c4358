"""Keys and values that units hand to each other through shared memory."""

from __future__ import annotations

import torch

from ppdmodel.pipeline.kv_cache import KVCache


def test_a_cache_copies_each_row_once() -> None:
    shared = torch.arange(2 * 2 * 1 * 5 * 3.0).reshape(2, 2, 1, 5, 3)
    cache = KVCache(torch.full_like(shared, -1.0), shared)
    assert torch.equal(cache.before(1, 3), shared[1, :, :, :3])
    assert (cache.tensor[0] == -1).all(), "the other layer was not asked for"
    shared[1, :, :, :3] = 7  # never happens: a row is final once it was read
    assert not (cache.before(1, 4)[:, :, :3] == 7).any()
    cache.write(1, 4, torch.full((1, 2, 1, 1, 3), 9.0))
    assert (shared[1, :, :, 4] == 9).all()
    assert cache.present == [0, 5]
    cache.reset(mirrored=False)
    cache.write(0, 0, torch.full((2, 2, 1, 1, 3), -5.0))
    assert not (shared == -5).any(), "a text that one unit makes alone"
    assert cache.present == [0, 0]


def test_a_prompt_is_mirrored() -> None:
    shared = torch.zeros(2, 2, 1, 5, 3)
    cache = KVCache(torch.rand(2, 2, 1, 5, 3), shared)
    cache.write(0, 0, torch.rand(2, 2, 1, 3, 3))
    assert torch.equal(shared[:, :, :, :3], cache.tensor[:, :, :, :3])
    assert not shared[:, :, :, 3:].any()
    assert cache.present == [3, 3]
    cache.before(0, 5)
    assert not cache.tensor[0, :, :, 3:].any(), "the rows after the prompt come from shared memory"
    alone = KVCache(torch.rand(2, 2, 1, 5, 3), shared)
    alone.reset(mirrored=False)
    alone.write(0, 0, torch.rand(2, 2, 1, 5, 3))
    assert not shared[:, :, :, 3:].any()


def test_memory_that_all_share_needs_no_copies() -> None:
    tensor = torch.zeros(2, 2, 1, 5, 3)
    cache, other = KVCache(tensor), KVCache(tensor)
    rows = torch.rand(1, 2, 1, 1, 3)
    cache.write(1, 2, rows)
    assert torch.equal(other.before(1, 3)[:, :, 2:], rows[0])
    assert not other.before(0, 3).any()
    assert other.before(1, 2).shape == (2, 1, 2, 3)
