"""What a model calls after its last layer, against Transformers' own modules and outputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig

from ppdmodel.measure.decoder.head_path import PROBE_TOKENS, trace_head_path
from tests.support.families import FAMILIES

NAMES = ("llama", "gpt2", "opt-projected", "gemma2", "gptj", "phi")


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name in NAMES], ids=lambda family: family.name
)
def test_the_path_is_the_familys_own_modules(family: Any, tmp_path: Path) -> None:
    """Dropout is no step of the path; scales and soft caps are in the logits."""
    model = AutoModelForCausalLM.from_pretrained(family.write(tmp_path / "m")).eval().float()
    path = trace_head_path(model)
    assert path.fault == ""
    assert path.layers is family.decoder_layers(model)
    *before, head = [model.get_submodule(name) for name in (*family.end, *family.head)]
    assert path.head is head
    assert [id(module) for module in path.tail] == [id(module) for module in before]
    with torch.no_grad():
        assert_close(family.read(model, path.last_hidden), path.logits, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@torch.no_grad()
def test_the_probe_is_one_pass_of_the_model_over_its_vocabulary(llama: Any) -> None:
    path = trace_head_path(llama)
    ids = [31 * n % llama.config.vocab_size for n in range(1, PROBE_TOKENS + 1)]
    assert len(set(ids)) == PROBE_TOKENS
    out = llama(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    assert_close(path.logits, out.logits[0])
    assert path.last_hidden.shape == (PROBE_TOKENS, 32)
    assert_close(llama.model.norm(path.last_hidden), out.hidden_states[-1][0])


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_watching_leaves_no_hook_even_where_the_model_fails(llama: Any) -> None:
    before = hooks(llama)
    trace_head_path(llama)
    assert hooks(llama) == before
    broken = Decoder(fails=True)
    with pytest.raises(ZeroDivisionError):
        trace_head_path(broken)
    assert hooks(broken) == 0


class Decoder(nn.Module):
    """Two linear layers and a head, in the shapes that a test asks for."""

    def __init__(self, **changes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.changes = changes
        self.config = LlamaConfig(num_hidden_layers=2, vocab_size=20, hidden_size=32)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.decoys = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.norm, self.dropout, self.act = nn.LayerNorm(8), nn.Dropout(), nn.Tanh()
        self.wrapped: nn.Module = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, use_cache: bool = True, **_: Any) -> Any:
        assert not use_cache, "a probe needs none"
        states, layers = self.embed(input_ids), list(self.layers)
        if "fails" in self.changes:
            raise ZeroDivisionError
        if "backwards" in self.changes:
            layers.reverse()
        if "twice" in self.changes:
            layers.append(layers[-1])
        if "skips" in self.changes:
            del layers[0]
        for layer in layers:
            states = layer(states)
        states = self.wrapped(self.dropout(self.norm(states)))
        if "headless" in self.changes:
            return SimpleNamespace(logits=states @ self.head.weight.T)
        logits = self.head(states)
        return SimpleNamespace(logits=self.act(logits) if "act" in self.changes else logits)


def test_only_outermost_modules_are_steps_and_lists_that_do_not_run_are_passed_over() -> None:
    model = Decoder().eval()
    path = trace_head_path(model)
    assert path.layers is model.layers
    assert [id(module) for module in path.tail] == [id(model.norm), id(model.wrapped)]
    assert path.head is model.head
    with torch.no_grad():
        assert_close(model.head(model.wrapped(model.norm(path.last_hidden))), path.logits)


@pytest.mark.parametrize("change", ["backwards", "twice", "skips"])
def test_layers_must_run_once_and_in_order(change: str) -> None:
    path = trace_head_path(Decoder(**{change: True}).eval())
    assert path.fault == "no list of 2 layers that run one after another"
    assert not path.tail


def test_there_must_be_as_many_layers_as_the_configuration_says() -> None:
    model = Decoder().eval()
    model.config.num_hidden_layers = 3
    assert trace_head_path(model).fault == "no list of 3 layers that run one after another"
    known = trace_head_path(model, model.layers)
    assert known.fault == ""
    assert known.head is model.head


def test_a_last_step_without_a_weight_is_no_head() -> None:
    path = trace_head_path(Decoder(act=True).eval())
    assert path.fault == "no head after the last layer"
    model = Decoder(headless=True).eval()
    model.wrapped = nn.Tanh()
    assert trace_head_path(model).fault == "no head after the last layer"


def test_a_list_that_the_caller_knows_must_be_the_one_that_runs() -> None:
    model = Decoder().eval()
    assert trace_head_path(model, model.decoys).fault
