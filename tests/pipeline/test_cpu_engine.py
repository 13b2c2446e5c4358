"""On a CPU a guess is computed as the token alone, bit by bit, through all layers and the head."""

from __future__ import annotations

import pytest
import torch

from ppdmodel.pipeline.cpu_engine import CpuEngine
from ppdmodel.pipeline.engine import read_tokens
from ppdmodel.pipeline.kv_cache import KVCache
from ppdmodel.pipeline.shared_engine import SharedEngine
from tests.pipeline.conftest import LAYERS, Texts


@pytest.mark.parametrize("rows", [1, 2, 5])
@torch.inference_mode()
def test_guesses_in_a_batch_have_the_bits_of_each_alone(
    engine: SharedEngine, texts: Texts, rows: int
) -> None:
    opened = engine.open()
    assert isinstance(opened, CpuEngine)
    ids = torch.tensor(texts[1])
    caches = [KVCache(torch.zeros(engine.shape.cache(40))) for _ in range(2)]
    one, together = (read_tokens(opened, ids, 0, cache)[-1:] for cache in caches)
    assert torch.equal(one, together)
    guesses, own = torch.arange(3, 3 + rows), torch.zeros(engine.shape.guesses(rows))
    x = opened.embed(guesses)
    for index in range(LAYERS):
        x = opened.layer(index, x, len(ids), caches[0], own)
    for row, guess in enumerate(guesses):
        alone = opened.embed(guess[None])
        for index in range(LAYERS):
            alone = opened.advance(index, alone, len(ids), caches[1])
        assert torch.equal(x[row], alone[0])
        assert torch.equal(opened.logits(x)[row], opened.logits(alone)[0])
        written = caches[1].tensor[:, :, :, len(ids)]
        assert torch.equal(own[:, :, row], written), "keys and values"


@torch.inference_mode()
def test_a_text_read_at_once_has_the_bits_of_one_read_token_by_token(
    engine: SharedEngine, texts: Texts
) -> None:
    opened, ids = engine.open(), torch.tensor(texts[2])
    whole, single = (KVCache(torch.zeros(engine.shape.cache(40))) for _ in range(2))
    states = read_tokens(opened, ids, 0, whole)
    for place in range(len(ids)):
        one = read_tokens(opened, ids[place : place + 1], place, single)
        assert torch.equal(one[0], states[place])
    assert torch.equal(whole.tensor, single.tensor)
