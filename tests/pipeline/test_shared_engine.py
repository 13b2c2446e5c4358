"""What an engine cannot run is refused, and one on a device or in shards must give the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
)

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import shared_engine as shared_module
from ppdmodel.pipeline.cpu_engine import CpuEngine
from ppdmodel.pipeline.engine import Engine
from ppdmodel.pipeline.shared_engine import PROBE, SharedEngine, probe, shared_engine
from ppdmodel.pipeline.shared_memory import shared_copy
from tests.pipeline.test_engine import SIZES, model_of
from tests.support.far_device import register


def test_another_build_is_refused_in_one_line(loaded: LoadedModel) -> None:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    ).eval()
    with pytest.raises(InvalidInputError, match=r"decoders of Llama's build .*; got GPT2LMHead"):
        shared_engine(replace(loaded, model=model), logit_exit(model), 32)


def test_weights_that_the_engine_reads_wrongly_are_noticed(loaded: LoadedModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(loaded.source.folder).eval()
    exit_ = logit_exit(model)
    wrong = replace(loaded, model=model)
    shared_engine(wrong, exit_, 32)
    model.model.layers[1].self_attn.scaling *= 2  # the engine has one scale for all layers
    with pytest.raises(InvalidInputError, match="of the largest one away"):
        shared_engine(wrong, exit_, 32)


def test_a_window_that_the_engine_does_not_know(loaded: LoadedModel) -> None:
    model = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, sliding_window=16)).eval()
    shared_engine(replace(loaded, model=model), logit_exit(model), 16)
    with pytest.raises(InvalidInputError, match="a sliding window of 16 tokens"):
        shared_engine(replace(loaded, model=model), logit_exit(model), 17)


@pytest.mark.parametrize(
    ("config", "changes", "what"),
    [
        (
            LlamaConfig,
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
             "max_position_embeddings": 16},
            "dynamic scaling beyond 16 tokens",
        ),
        (
            LlamaConfig,
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0,
                                 "short_factor": [1.0] * 4, "long_factor": [9.0] * 4,
                                 "original_max_position_embeddings": 16}},
            "longrope scaling beyond 16 tokens",
        ),
        (
            Ministral3Config,
            {"head_dim": 8,
             "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0,
                                 "original_max_position_embeddings": 16,
                                 "llama_4_scaling_beta": 0.5}},
            "an attention temperature beyond 16 tokens",
        ),
    ],
)  # fmt: skip
def test_what_begins_at_a_length_is_refused_from_there(
    loaded: LoadedModel, config: Callable[..., Any], changes: dict[str, Any], what: str
) -> None:
    model = model_of(config, **changes)
    shared_engine(replace(loaded, model=model), logit_exit(model), 16)
    with pytest.raises(InvalidInputError, match=f"{what}, shorter than the text"):
        shared_engine(replace(loaded, model=model), logit_exit(model), 17)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [3, 12])
def test_rounding_is_told_from_another_build(
    loaded: LoadedModel, dtype: torch.dtype, layers: int
) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": layers, "initializer_range": 0.3}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).eval().to(dtype)
    for name, buffer in model.named_buffers():  # as they are in a model that is loaded
        model.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = (
            buffer.float()
        )
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    mine = replace(loaded, model=model)
    shared = shared_engine(mine, logit_exit(model), 16)
    assert (shared.dtype, shared.open().dtype) == (dtype, torch.float32)
    for name, weight in model.named_parameters():
        assert weight.dtype == dtype
        assert torch.equal(weight, before[name])
    model.model.layers[1].self_attn.scaling *= 1.1
    with pytest.raises(InvalidInputError, match=r"its logits were .* of the largest one away"):
        shared_engine(mine, logit_exit(model), 16)


def test_an_engine_on_a_device_has_its_weights_there(engine: SharedEngine) -> None:
    register()
    opened = engine.open("far:1")
    assert isinstance(opened, Engine)
    assert opened.device == torch.device("far:1")
    for weight in (opened.head_weight, opened.final_norm, *opened.layers[0].values()):
        assert weight.device == torch.device("far:1")
    for name in ("qkv", "out", "gate_up", "down"):
        assert opened.layers[0][name].t().is_contiguous(), "[out, in] in memory, as in torch.nn"
    assert opened.head_weight.t().is_contiguous()
    assert opened.cos.is_contiguous()
    here = engine.open()
    assert isinstance(here, CpuEngine)
    assert here.head.ctypes.data == engine.weights.tensor("head").data_ptr(), "shared, not copied"


def test_logits_that_differ_are_refused(engine: SharedEngine) -> None:
    register()
    logits = engine.probed.tensor("logits")
    rows = {tuple(row) for row in logits.tolist()}
    assert len(rows) == len(logits) == PROBE // 2 + 1, "of different tokens"
    wrong = replace(engine, probed=shared_copy({"logits": logits * 1.01}))
    with pytest.raises(RunFailedError, match=r"far:0 must give the CPU's logits; got 0\.0099"):
        wrong.open("far:0")
    assert isinstance(wrong.open(), CpuEngine), "on the CPU it is what was compared"


@pytest.mark.parametrize(
    ("activation", "finish"),
    [("gelu", {}), ("silu", {"scale": 0.5}), ("silu", {"scale": 2.0}), ("silu", {"softcap": 30.0})],
)
def test_another_activation_and_scaled_logits_are_refused(
    loaded: LoadedModel, activation: str, finish: dict[str, float]
) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, hidden_act=activation)).eval()
    exit_ = replace(logit_exit(model), **finish)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="another activation, or scaled logits"):
        shared_engine(replace(loaded, model=model), exit_, 16)


@torch.inference_mode()
def test_a_head_with_a_bias_is_read_with_it(loaded: LoadedModel) -> None:
    model = model_of(LlamaConfig)
    head = model.lm_head
    model.lm_head = torch.nn.Linear(head.in_features, head.out_features)
    shared = shared_engine(replace(loaded, model=model), logit_exit(model), 16)
    assert torch.equal(shared.weights.tensor("head_bias"), model.lm_head.bias)


def test_without_numba_a_cpu_computes_in_torch(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_module, "find_spec", lambda _: None)
    model = model_of(LlamaConfig)
    shared = shared_engine(replace(loaded, model=model.bfloat16()), logit_exit(model), 16)
    opened = shared.open()
    assert isinstance(opened, Engine)
    assert opened.dtype == torch.float32
    monkeypatch.undo()
    compiled = shared.open()
    assert isinstance(compiled, CpuEngine)
    torch.testing.assert_close(probe(opened), probe(compiled), rtol=1e-4, atol=1e-4)
