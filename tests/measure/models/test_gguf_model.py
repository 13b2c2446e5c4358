"""Fields and tensors of GGUF files: used as Transformers' own models use them, or named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import LlamaForCausalLM

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate
from tests.support.gguf_files import CONTEXT, HEADS, THETA, WIDTH, write_gguf

Change = Callable[[GGUFWriter], object]
ROTATED = WIDTH // HEADS
IDS = torch.arange(1, 121)[None]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path / "cache"))


def loaded(path: Path) -> Any:
    return load_model(locate(str(path))).model


def field(name: str, value: float | str | bool) -> Change:
    def add(writer: GGUFWriter) -> None:
        adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
        adders.get(type(value), writer.add_float32)(f"llama.{name}", value)

    return add


def tensor(name: str, values: Any) -> Change:
    return lambda writer: writer.add_tensor(name, np.array(values, np.float32))


def both(*changes: Change) -> Change:
    return lambda writer: [change(writer) for change in changes]


def llama3_divisors(factor: float, low: float, high: float, original: int) -> list[float]:
    """By the definition of Llama 3.1: long waves are stretched, short ones are not."""
    found = []
    for i in range(ROTATED // 2):
        wave = 2 * math.pi * THETA ** (2 * i / ROTATED)
        share = min(max((original / wave - low) / (high - low), 0), 1)
        found.append(1 / ((1 - share) / factor + share))
    return found


LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
DIVISORS = tensor("rope_freqs.weight", llama3_divisors(8.0, 1.0, 4.0, 64))
SCALED = {
    "divisors": (DIVISORS, {"rope_type": "llama3", **LLAMA3}),
    "linear": (
        both(field("rope.scaling.type", "linear"), field("rope.scaling.factor", 4.0)),
        LINEAR,
    ),
    "a factor without a type": (field("rope.scaling.factor", 4.0), LINEAR),
    "divisors and a factor": (
        both(field("rope.scaling.factor", 2.0), tensor("rope_freqs.weight", [2.0] * 4)),
        LINEAR,
    ),
    "yarn": (
        both(
            field("rope.scaling.type", "yarn"),
            field("rope.scaling.factor", 4.0),
            field("rope.scaling.original_context_length", 64),
            field("rope.scaling.yarn_beta_fast", 16.0),
        ),
        YARN | {"beta_fast": 16.0},
    ),
}


@pytest.mark.parametrize(("change", "rope"), SCALED.values(), ids=SCALED)
def test_scaling_of_positions_is_that_of_transformers(
    tmp_path: Path, change: Change, rope: dict[str, Any]
) -> None:
    """Right from the file, and from its conversion; and not the model without the scaling."""
    path = write_gguf(tmp_path / "m.gguf", change)
    ours = [loaded(path), loaded(path)]
    config = type(ours[0].config).from_dict(ours[0].config.to_dict())
    logits = []
    for parameters in (rope, {"rope_type": "default"}):
        config.rope_parameters = {**parameters, "rope_theta": THETA}
        theirs = LlamaForCausalLM(config).eval()
        theirs.load_state_dict(ours[0].state_dict())
        with torch.no_grad():
            logits.append(theirs(IDS).logits)
    with torch.no_grad():
        for model in ours:
            torch.testing.assert_close(model(IDS).logits, logits[0], rtol=1e-4, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 0.5


def test_fields_and_tensors_that_say_nothing_pass(tmp_path: Path) -> None:
    plain = loaded(write_gguf(tmp_path / "plain.gguf"))
    neutral = both(
        field("rope.scaling.type", "none"),
        field("rope.scaling.factor", 4.0),
        field("rope.scaling.original_context_length", 64),
        field("rope.scaling.finetuned", True),
        field("rope.scaling.attn_factor", 1.0),
        field("logit_scale", 1.0),
        field("final_logit_softcapping", 0.0),
        field("expert_count", 0),
        field("attention.causal", True),
        field("attention.scale", ROTATED**-0.5),
        field("attention.key_length", ROTATED),
        field("attention.sliding_window", CONTEXT),
        tensor("rope_freqs.weight", [1.0] * (ROTATED // 2)),
        tensor("blk.0.attn_q.bias", [0.0] * WIDTH),
        lambda writer: writer.add_uint32("general.something", 7),
    )
    model = loaded(write_gguf(tmp_path / "neutral.gguf", neutral))
    assert model.config.rope_parameters == plain.config.rope_parameters
    for name, weight in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


NAMED = {
    "llama.logit_scale": field("logit_scale", 2.0),
    "llama.residual_scale": field("residual_scale", 0.5),
    "llama.attention.scale": field("attention.scale", 0.9),
    "llama.attention.causal": field("attention.causal", False),
    "llama.attention.clamp_kqv": field("attention.clamp_kqv", 3.0),
    "llama.attention.sliding_window": field("attention.sliding_window", 16),
    "llama.attention.key_length": field("attention.key_length", 16),
    "llama.final_logit_softcapping": field("final_logit_softcapping", 3.0),
    "llama.expert_count": field("expert_count", 4),
    "llama.rope.scale_linear": field("rope.scale_linear", 2.0),
    "llama.rope.scaling.type": field("rope.scaling.type", "longrope"),
    "llama.rope.scaling.attn_factor": field("rope.scaling.attn_factor", 2.0),
    "llama.rope.scaling.yarn_log_multiplier": both(
        field("rope.scaling.type", "yarn"),
        field("rope.scaling.factor", 4.0),
        field("rope.scaling.yarn_log_multiplier", 0.1),
    ),
    "llama.attention.sliding_window_pattern": lambda writer: writer.add_array(
        "llama.attention.sliding_window_pattern", [True, False]
    ),
    "rope_freqs.weight": tensor("rope_freqs.weight", [1.0, 2.0, 3.0]),
    "rope_factors_long.weight": tensor("rope_factors_long.weight", [1.0] * 4),
    "blk.0.attn_q.bias": tensor("blk.0.attn_q.bias", [0.1] * WIDTH),
    "blk.1.attn_q_norm.weight": tensor("blk.1.attn_q_norm.weight", [1.0] * ROTATED),
    "blk.0.attn_q.scale": tensor("blk.0.attn_q.scale", [2.0]),
    "output.bias": tensor("output.bias", [1.0] * 258),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_the_model_leaves_out_is_named(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", NAMED[name])
    with pytest.raises(InvalidInputError) as caught:
        loaded(path)
    assert f"of a GGUF file must be used; got {path}, whose {name} " in str(caught.value)
    assert not list((tmp_path / "cache").glob("converted/*"))


def test_a_tensor_of_another_size_is_named_before_anything_is_made_of_it(tmp_path: Path) -> None:
    """A feed-forward block of two gigabytes is stated, and 64 rows of it are there."""
    path = write_gguf(tmp_path / "m.gguf")
    stated = b"llama.feed_forward_length" + (4).to_bytes(4, "little")
    data = path.read_bytes().replace(
        stated + (64).to_bytes(4, "little"), stated + (2**24).to_bytes(4, "little")
    )
    path.write_bytes(data)
    words = r"whose blk\.0\.ffn_gate\.weight has 2048 weights instead of 536870912; get the file"
    with pytest.raises(InvalidInputError, match=words):
        loaded(path)


def test_divisors_and_yarn_together_are_refused(tmp_path: Path) -> None:
    yarn = both(field("rope.scaling.type", "yarn"), field("rope.scaling.factor", 4.0), DIVISORS)
    with pytest.raises(InvalidInputError, match=r"whose rope_freqs\.weight has no place in"):
        loaded(write_gguf(tmp_path / "m.gguf", yarn))


def test_the_file_that_is_given_is_read_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers prefers a file of this name in the current folder."""
    write_gguf(tmp_path / "m.gguf", tensor("output.bias", [1.0] * 258))
    (tmp_path / "sub").mkdir()
    path = write_gguf(tmp_path / "sub" / "m.gguf", DIVISORS)
    monkeypatch.chdir(tmp_path)
    model = loaded(Path("sub") / "m.gguf")
    assert model.config.rope_parameters["rope_type"] == "longrope"
    assert locate("sub/m.gguf").weights_sha256 == locate(str(path)).weights_sha256
