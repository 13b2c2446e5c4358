"""An engine gives its model's logits, in every part; what it cannot run is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from ppdmodel.measure.decoder.exit import AffineMap, logit_exit
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline.engine import read_tokens
from ppdmodel.pipeline.kv_cache import KVCache
from ppdmodel.pipeline.shared_engine import shared_engine

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
MODELS = [
    (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    (Qwen2Config, {}),
    (Qwen3Config, {"head_dim": 8}),
    (MistralConfig, {"sliding_window": None, "tie_word_embeddings": True}),
]


def model_of(config: Callable[..., Any], **changes: Any) -> Any:
    """A random model whose biases and norms do something."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config(**SIZES, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    return model


@pytest.mark.parametrize(("config", "changes"), MODELS)
@torch.inference_mode()
def test_logits_of_every_layer_and_batch(
    loaded: LoadedModel, config: Callable[..., Any], changes: dict[str, Any]
) -> None:
    """Three guesses for one position: each as the model reads the text that ends in it."""
    model = model_of(config, **changes)
    shared = shared_engine(replace(loaded, model=model), logit_exit(model), 32)
    engine = shared.open()
    assert engine.shape.layers == 3
    prompt, guesses = torch.tensor([5, 17, 3, 80, 41]), torch.tensor([9, 17, 60])
    cache = KVCache(torch.zeros(engine.shape.cache(8)))
    x = read_tokens(engine, prompt, 0, cache)[-1:]
    expected = model(prompt[None]).logits[0, -1:]
    torch.testing.assert_close(engine.logits(x), expected, rtol=1e-4, atol=1e-5)
    own = torch.zeros(engine.shape.guesses(3))
    texts = torch.cat([prompt.expand(3, -1), guesses[:, None]], 1)
    reference = model(texts, output_hidden_states=True, use_cache=True)
    x = engine.embed(guesses)
    for index in range(3):
        x = engine.layer(index, x, 5, cache, own)
        exit_logits = model.lm_head(model.model.norm(x))
        torch.testing.assert_close(engine.logits(x, index + 1), exit_logits, rtol=1e-4, atol=1e-5)
        if index < 2:  # Transformers' last hidden state is normed
            wanted = reference.hidden_states[index + 1][:, -1]
            torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(engine.logits(x), reference.logits[:, -1], rtol=1e-4, atol=1e-4)
    for index in range(3):
        kept = reference.past_key_values.layers[index]
        for n, wanted in enumerate((kept.keys, kept.values)):
            torch.testing.assert_close(own[index, n], wanted[:, :, 5], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                cache.tensor[index, n, :, :5], wanted[0, :, :5], rtol=1e-4, atol=1e-4
            )


@torch.inference_mode()
def test_trained_exits(loaded: LoadedModel) -> None:
    model = model_of(LlamaConfig)
    trained = AffineMap(torch.randn(32, 32), torch.randn(32))
    exit_ = logit_exit(model)
    exit_ = replace(exit_, maps={3: trained, 2: trained})
    engine = shared_engine(replace(loaded, model=model), exit_, 32).open()
    assert engine.maps.keys() == {2, 3}
    x = torch.randn(2, 32)
    normed = model.model.norm(x)
    scaled = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    wanted = model.lm_head(normed + scaled @ trained.weight.t() + trained.bias)
    torch.testing.assert_close(engine.logits(x, 2), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(engine.logits(x, 1), model.lm_head(normed), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(engine.logits(x), model.lm_head(normed), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_exits_with_a_shortlist_score_its_tokens_alone(loaded: LoadedModel) -> None:
    model = model_of(LlamaConfig)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(96))
    ids, trained = torch.tensor([3, 17, 60, 95]), AffineMap(torch.randn(32, 32), torch.randn(32))
    exit_ = replace(logit_exit(model), shortlist=ids, maps={2: trained})
    engine = shared_engine(replace(loaded, model=model), exit_, 32).open()
    assert engine.exit_ids is not None
    assert torch.equal(engine.exit_ids, ids)
    x = torch.randn(2, 32)
    for layer in (1, 2):
        wanted = exit_.logits(x, layer)[:, ids]
        torch.testing.assert_close(engine.logits(x, layer), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(engine.logits(x), exit_.logits(x), rtol=1e-4, atol=1e-4)
