"""Exits against the model's own final norm and head, and models whose exit is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.decoder.exit import (
    _REGISTERED,
    AffineMap,
    Exit,
    _gap,
    logit_exit,
    on_layers,
    register_exit,
)
from ppdmodel.measure.decoder.head_path import HeadPath
from tests.support.families import FAMILIES, layer_outputs, slow_logits

IDS = [5, 17, 230, 4, 4, 99]


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@torch.no_grad()
def test_the_logit_exit_is_the_models_own_norm_and_head(llama: Any) -> None:
    """At every layer; after the last one they are the logits of the model's own forward pass."""
    exit_ = logit_exit(llama)
    assert (exit_.kind, exit_.scale, exit_.softcap) == ("logit", 1.0, None)
    assert exit_.vocabulary == llama.config.vocab_size
    assert exit_.bias is None
    out = llama(torch.tensor([IDS]), output_hidden_states=True, use_cache=False)
    states = out.hidden_states[1:-1]  # the last one of the list went through the norm already
    assert len(exit_.decoder_layers) == len(states) + 1 == 5
    for layer, state in enumerate(states, start=1):
        expected = llama.lm_head(llama.model.norm(state[0]))
        assert_close(exit_.logits(state[0], layer), expected)
    seen: list[Tensor] = []
    handle = llama.model.layers[-1].register_forward_hook(
        lambda _module, _inputs, output: seen.append(
            output if isinstance(output, Tensor) else output[0]
        )
    )
    own = llama(torch.tensor([IDS]), use_cache=False).logits[0]
    handle.remove()
    assert_close(exit_.logits(seen[0][0]), own)


NAMES = ("gemma2", "granite", "cohere", "hyperclovax", "gpt2", "gptj")


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name in NAMES], ids=lambda family: family.name
)
def test_scales_and_soft_caps_and_biases_are_those_of_the_family(
    family: Any, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(family.write(tmp_path / "m")).eval().float()
    exit_ = logit_exit(model)
    expected = slow_logits(family, model, IDS)
    outputs, own = layer_outputs(family, model, IDS)
    with torch.no_grad():
        for output, logits in zip(outputs, expected, strict=True):
            assert_close(exit_.logits(output), logits, rtol=1e-4, atol=1e-4)
        assert_close(exit_.logits(outputs[-1]), own, rtol=1e-4, atol=1e-4)


def test_a_scale_that_the_configuration_names_is_taken_exactly(tmp_path: Path) -> None:
    family = next(f for f in FAMILIES if f.name == "granite")
    model = AutoModelForCausalLM.from_pretrained(family.write(tmp_path / "m")).eval().float()
    assert logit_exit(model).scale == 1 / model.config.logits_scaling


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_logits_are_scaled_before_they_are_capped(scale: float) -> None:
    head = nn.Linear(2, 3)
    exit_ = Exit(nn.ModuleList(), (), head, scale=scale, softcap=3.0)
    states = torch.tensor([[4.0, -1.0], [0.25, 30.0]])
    with torch.no_grad():
        products = (states @ head.weight.T + head.bias).numpy()
        assert_close(exit_.logits(states), torch.from_numpy(3.0 * np.tanh(products * scale / 3.0)))


def test_a_trained_map_reads_the_state_over_its_root_mean_square() -> None:
    torch.manual_seed(0)
    states, weight, bias = torch.randn(4, 6) * 3, torch.randn(5, 6), torch.randn(5)
    x = states.double().numpy()
    unit = x / np.sqrt((x**2).mean(axis=1, keepdims=True))
    expected = torch.from_numpy(unit @ weight.double().numpy().T + bias.double().numpy())
    assert_close(AffineMap(weight, bias)(states), expected.float())
    in_half = AffineMap(weight, bias)(states.bfloat16())
    assert in_half.dtype == torch.bfloat16, "the correction has the type of the states"
    assert_close(in_half.double(), expected, rtol=0.05, atol=0.1)


def test_a_trained_map_is_added_to_the_heads_input_at_its_layer_alone() -> None:
    torch.manual_seed(0)
    norm, head, states = nn.LayerNorm(4), nn.Linear(4, 7), torch.randn(3, 4)
    map_ = AffineMap(torch.randn(4, 4), torch.randn(4))
    exit_ = Exit(nn.ModuleList(), (norm,), head, maps={2: map_}, kind="trained")
    with torch.no_grad():
        plain = head(norm(states))
        assert_close(exit_.logits(states, 2), head(norm(states) + map_(states)))
        assert not torch.allclose(exit_.logits(states, 2), plain)
        for layer in (None, 0, 1, 3):
            assert_close(exit_.logits(states, layer), plain)


@pytest.mark.parametrize("fails", [False, True])
def test_layers_hand_over_the_last_position_for_a_while_only(llama: Any, fails: bool) -> None:
    exit_ = logit_exit(llama)
    seen: dict[int, Tensor] = {}
    ids = torch.tensor([IDS, IDS[::-1]])
    with torch.no_grad():
        expected = llama(ids, output_hidden_states=True).hidden_states[1:-1]
        try:
            with on_layers(exit_, seen.__setitem__):
                llama(ids)
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert fails
        assert list(seen) == [0, 1, 2, 3, 4]
        for index, states in enumerate(expected):
            assert_close(seen[index], states[:, -1])
        seen.clear()
        llama(ids)
    assert not seen


def test_a_layer_may_return_more_than_its_states() -> None:
    class Layer(nn.Module):
        def forward(self, states: Tensor) -> tuple[Tensor, None]:
            return states + 1, None

    exit_ = Exit(nn.ModuleList([Layer()]), (), nn.Identity())
    seen: dict[int, Tensor] = {}
    with on_layers(exit_, seen.__setitem__):
        exit_.decoder_layers[0](torch.arange(6.0).view(1, 3, 2))
    assert seen[0].tolist() == [[5, 6]]


@pytest.mark.parametrize("error", [1e-3, 1.0, float("nan")])
def test_a_registered_exit_must_make_the_models_logits_too(llama: Any, error: float) -> None:
    """The path that someone writes down is held against the model as the observed one is."""
    wrong = nn.Linear(32, llama.config.vocab_size, bias=False)
    wrong.weight = nn.Parameter(llama.lm_head.weight.detach() * (1 + error))

    @register_exit("LlamaForCausalLM")
    def bad(model: Any) -> Exit:
        return Exit(model.model.layers, (model.model.norm,), wrong)

    try:
        with pytest.raises(InvalidInputError, match=r"the last exit was .* of the largest logit"):
            logit_exit(llama)
    finally:
        _REGISTERED.pop("LlamaForCausalLM")
    assert logit_exit(llama).head is llama.lm_head


def test_a_registered_head_of_another_vocabulary_is_refused(llama: Any) -> None:
    @register_exit("LlamaForCausalLM")
    def bad(model: Any) -> Exit:
        return Exit(model.model.layers, (model.model.norm,), nn.Linear(32, 9))

    try:
        with pytest.raises(InvalidInputError, match="the last exit was inf of the largest logit"):
            logit_exit(llama)
    finally:
        _REGISTERED.pop("LlamaForCausalLM")


def test_an_exit_that_does_not_make_the_models_logits_is_refused(tiny_model: Path) -> None:
    class Bent(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + out.logits.square()
            return out

    config = LlamaConfig.from_pretrained(tiny_model)
    with pytest.raises(InvalidInputError) as caught:
        logit_exit(Bent(config).eval())
    words = str(caught.value)
    assert "the exit at the last layer must make the model's own logits; got Bent" in words
    assert "@ppdmodel.measure.register_exit('Bent')" in words


def test_a_model_that_hides_logits_of_its_head_is_refused(tiny_model: Path) -> None:
    class Cut(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            out = super().forward(*args, **kwargs)
            out.logits = out.logits[..., :-1]
            return out

    with pytest.raises(InvalidInputError, match="the last exit was inf of the largest logit"):
        logit_exit(Cut(LlamaConfig.from_pretrained(tiny_model)).eval())


def test_scales_are_found_without_being_told(tiny_model: Path) -> None:
    class Scaled(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            out = super().forward(*args, **kwargs)
            out.logits = out.logits / 3
            return out

    exit_ = logit_exit(Scaled(LlamaConfig.from_pretrained(tiny_model)).eval())
    assert exit_.scale == pytest.approx(1 / 3, rel=1e-5)


def test_a_model_of_unknown_build_is_refused_until_it_is_registered() -> None:
    model = _Odd()
    with pytest.raises(InvalidInputError, match="got _Odd: no list of 2 layers that run one after"):
        logit_exit(model)

    @register_exit("_Odd")
    def odd(model: Any) -> Exit:
        return Exit(nn.ModuleList([model.first, model.second]), (model.norm,), model.head)

    try:
        exit_ = logit_exit(model)
    finally:
        _REGISTERED.pop("_Odd")
    states = torch.randn(3, 8)
    assert torch.equal(exit_.logits(states), model.head(model.norm(states)))
    assert odd(model).head is model.head, "what is registered can be called as before"


class _Odd(nn.Module):
    """A decoder whose layers are in no list."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = LlamaConfig(num_hidden_layers=2, vocab_size=20, hidden_size=32)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.first, self.second, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        states = self.second(self.first(self.embed(input_ids)))
        return SimpleNamespace(logits=self.head(self.norm(states)))


@torch.no_grad()
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_gap_is_relative_to_the_largest_logit(size: float) -> None:
    head, hidden = nn.Linear(4, 9, bias=False), torch.randn(1, 4)
    own = head(hidden) * size
    exit_ = Exit(nn.ModuleList(), (), head, scale=size)
    off = HeadPath(nn.ModuleList(), (), head, hidden, own + 0.01 * own.abs().max())
    assert _gap(exit_, off) == pytest.approx(0.01, rel=0.03)
