"""What changes with a text's length: read from configurations, and right in every batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from ppdmodel.measure.decoder.generate import Context, companies, generate
from ppdmodel.measure.decoder.lengths import alone_beyond, changes, context
from ppdmodel.measure.decoder.verify import probe_lengths, verified
from ppdmodel.measure.models.loading import threads
from tests.support.families import BASE, FULL, SLIDING

LIMIT = 24
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0, 5.0, 9.0, 20.0],
    "original_max_position_embeddings": LIMIT,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
YARN = {**DYNAMIC, "rope_type": "yarn", "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LONG = {"rope_parameters": LONGROPE, "original_max_position_embeddings": LIMIT}
MSCALE = {"short_mscale": 1.0, "long_mscale": 1.2}
NESTED = {"head_dim": 8, "layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 512}
TUNED = {
    "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
    "no_rope_layers": [1, 0, 1], "layer_types": ["chunked_attention", FULL, "chunked_attention"],
    "attn_scale": 0.5,
}  # fmt: skip
#: model type, its configuration, and the longest text that may share a batch
KINDS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "a cache made again at the limit": ("phi3", LONG, LIMIT),
    "a scale of its own": (
        "phimoe",
        {
            **LONG,
            "rope_parameters": LONGROPE | MSCALE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        LIMIT,
    ),
    "a cache of both factors": ("llama", LONG, LIMIT),
    "factors of some layers": (
        "gemma3_text",
        {**NESTED, "rope_parameters": {SLIDING: PLAIN, FULL: LONGROPE}},
        LIMIT,
    ),
    "a base that grows": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 20}, 20),
    "a temperature by place": (
        "llama4_text",
        {**TUNED, "attn_temperature_tuning": True, "floor_scale": 16, "attention_chunk_size": 9},
        15,
    ),
    "a temperature by position": (
        "ministral3",
        {
            "head_dim": 8,
            "rope_parameters": YARN
            | {"llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 16},
        },
        None,
    ),
    "attention to a choice of keys": ("doge", {"keep_window_size": 20}, 20),
    "a window": ("mistral", {"sliding_window": 20}, None),
    "a window of some layers": ("gemma3_text", {**NESTED, "sliding_window": 20}, None),
    "chunks": (
        "llama4_text",
        {**TUNED, "attn_temperature_tuning": False, "attention_chunk_size": 20},
        None,
    ),
}
#: texts that reach none of the lengths, one of them, and all
LENGTHS, TOKENS = (7, 20, 31), 6


def model_of(kind: str, more: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**BASE, "num_key_value_heads": 2, **more})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn(weight.shape))
    return model


def alone(model: Any, ids: list[int]) -> list[int]:
    """The tokens of Transformers' generate, by a model that has read nothing long before."""
    model(torch.tensor([[5]]), use_cache=False)
    given = torch.tensor([ids])
    how = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    made = model.generate(given, attention_mask=torch.ones_like(given), generation_config=how)
    found: list[int] = made[0, len(ids) :].tolist()
    return found


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_texts_of_any_length_are_those_of_generate_in_any_batch(name: str) -> None:
    kind, more, limit = KINDS[name]
    model = model_of(kind, more)
    assert alone_beyond(model.config) == limit
    with threads(1):
        decoder = verified(model)
        torch.manual_seed(1)
        texts = [torch.randint(1, 257, (n,)).tolist() for n in LENGTHS]
        right = [alone(model, ids) for ids in texts]
        for order in ([0, 1, 2], [2, 0]):
            made: dict[int, list[int]] = {row: [] for row in order}
            given = [Context(str(row), 0, texts[row]) for row in order]
            for chunk in generate(
                model, decoder.exit, given, TOKENS, frozenset(), drops_rows=decoder.drops_rows
            ):
                for row, position, token in zip(
                    chunk.row, chunk.position, chunk.token_id.tolist(), strict=True
                ):
                    assert position == len(made[order[row]])
                    made[order[row]].append(token)
            assert made == {row: right[row] for row in order}


def test_only_texts_that_may_outgrow_the_limit_are_alone() -> None:
    assert companies([3, 9, 4], room=1000, limit=None) == [[0, 1, 2]]
    assert companies([17, 16], room=9, limit=24) == [[1], [0]], "the last token is not read"
    assert companies([17, 30], room=9, limit=24) == [[0], [1]]


def config_of(kind: str, **more: Any) -> Any:
    return AutoConfig.for_model(kind, **{**BASE, **more})


@pytest.mark.parametrize(
    ("rope", "stated", "tokens"),
    [
        (DYNAMIC, 32, 128),
        ({**DYNAMIC, "rope_type": "linear"}, 32, 128),
        (YARN, 64, 256),
        (YARN, 300, 300),
        ({**YARN, "original_max_position_embeddings": 32}, 32, 128),
        (LONGROPE, 256, 256),
        (PLAIN, 32, 32),
    ],
)
def test_a_context_is_as_long_as_the_scaling_says(
    rope: dict[str, Any], stated: int, tokens: int
) -> None:
    config = config_of("llama", rope_parameters=dict(rope), max_position_embeddings=stated)
    assert context(config) == tokens


def test_the_context_of_layers_that_differ_is_the_shortest() -> None:
    ropes = {SLIDING: PLAIN, FULL: {**DYNAMIC, "rope_type": "linear"}}
    assert context(config_of("gemma3_text", **NESTED, rope_parameters=ropes)) == 256
    assert context(config_of("gpt2", max_position_embeddings=40)) == 40
    assert context(AutoConfig.for_model("bloom")) is None


def test_windows_that_are_not_used_change_nothing() -> None:
    assert changes(config_of("qwen2", sliding_window=20)) == []
    (used,) = changes(config_of("qwen2", sliding_window=20, use_sliding_window=True))
    assert (used.what, used.beyond, used.by_place) == ("a sliding window of 20 tokens", 20, False)
    assert changes(config_of("llama")) == []


def test_the_probe_outgrows_short_windows_and_no_limit() -> None:
    assert probe_lengths(config_of("llama")) == [13, 5, 9]
    assert probe_lengths(config_of("mistral", sliding_window=20)) == [33, 5, 29]
    assert probe_lengths(config_of("mistral", sliding_window=4096)) == [13, 5, 9]
    short = config_of("llama", rope_parameters=DYNAMIC, max_position_embeddings=10)
    assert probe_lengths(short) == [8, 5, 8], "three steps read 10 tokens"
    assert verified(AutoModelForCausalLM.from_config(short).eval()).drops_rows
