"""Weights that a model would leave out are named; what it never uses or is neutral passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.models import weights
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import ADAPTER_FILE, INDEX_FILE, WEIGHTS_FILE, locate
from tests.support.families import Family

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], object]
LAYER = "model.layers.0"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Tensors:
    """What the tiny model loads as."""
    return state(tiny_model)


def damage(folder: Path, change: Change) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def state(folder: Path) -> Tensors:
    found: Tensors = load_model(locate(str(folder))).model.state_dict()
    return found


def refused(folder: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        load_model(locate(str(folder)))
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_same(folder: Path, expected: Tensors) -> None:
    found = state(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- tensors without a place

LEFT_OUT = {
    "lm_head.bias": [0.1] * 257,
    f"{LAYER}.self_attn.q_proj.bias": [0.1] * 32,
    f"{LAYER}.self_attn.q_norm.weight": [1.0] * 8,
    f"{LAYER}.mlp.up_proj.weight_scale": [2.0],
    f"{LAYER}.self_attn.k_scale": [2.0],
    f"{LAYER}.post_feedforward_layernorm.weight": [1.0] * 32,
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": [0.1] * 8,
    "score.weight": [0.1] * 32,
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_tensor_without_a_place_is_named(folder: Path, name: str) -> None:
    damage(folder, lambda tensors: tensors.update({name: torch.tensor(LEFT_OUT[name])}))
    assert (
        f"must be used; got no place in a llama model of this configuration for {name} and 0"
        in (refused(folder))
    )


PASSES = {
    "mtp.layers.0.input_layernorm.weight": torch.ones(32),
    "model.mtp_layers.0.eh_proj.weight": torch.ones(32, 64),
    f"{LAYER}.self_attn.rotary_emb.inv_freq": torch.ones(4),
    f"{LAYER}.self_attn.rotary_emb.cos_cached": torch.ones(4),
    f"{LAYER}.self_attn.masked_bias": torch.tensor(-1e4),
    f"{LAYER}.self_attn.q_proj.bias": torch.zeros(32),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_a_model_never_uses_or_is_neutral_passes(
    folder: Path, plain: Tensors, name: str
) -> None:
    damage(folder, lambda tensors: tensors.update({name: PASSES[name]}))
    assert_same(folder, plain)


@pytest.mark.parametrize(
    ("family", "model_type", "named"),
    [
        ("llama", "mistral", f"{LAYER}.self_attn.k_proj.bias"),
        ("qwen2", "llama", f"{LAYER}.self_attn.k_proj.bias"),
        ("qwen3", "llama", f"{LAYER}.self_attn.k_norm.weight"),
        ("olmo2", "llama", "model.layers.0.input_layernorm.weight"),
    ],
)
def test_weights_of_another_build_are_named(
    tmp_path: Path, family: str, model_type: str, named: str
) -> None:
    options: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
    if family == "llama":
        options["attention_bias"] = True
    folder = Family(family, family, options).write(tmp_path / "model")
    configure(folder, model_type=model_type, architectures=None)
    assert f" for {named} and " in refused(folder)


def causal_masks(tensors: Tensors, name: str, kind: torch.dtype) -> None:
    for n in range(3):
        mask = torch.ones(256, 256).tril()[None, None].to(kind)
        tensors[f"transformer.h.{n}.{name}.bias"] = mask
        tensors[f"transformer.h.{n}.{name}.masked_bias"] = torch.tensor(-1e4)


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [("gpt2", "attn", torch.uint8), ("gptj", "attn", torch.float32)],
)
def test_tables_that_older_files_hold_pass(
    tmp_path: Path, family: str, name: str, kind: torch.dtype
) -> None:
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
    folder = Family(family, family, sizes | {"rotary_dim": 4}).write(tmp_path / "model")
    before = state(folder)
    damage(folder, lambda tensors: causal_masks(tensors, name, kind))
    assert_same(folder, before)


def test_one_place_is_filled_once(folder: Path) -> None:
    damage(folder, lambda tensors: tensors.update({"norm.weight": torch.ones(32)}))
    assert "must have one place each; got model.norm.weight and norm.weight for" in refused(folder)


# ---------------------------------------------------------------- layers for further tokens


@pytest.fixture(scope="module")
def extra_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three layers whose file holds a fourth, which predicts a further token."""
    options: dict[str, Any] = {
        "head_dim": 8, "num_key_value_heads": 2, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 2, "n_group": 1,
        "topk_group": 1,
    }  # fmt: skip
    family = Family("glm4-moe", "glm4_moe", options)
    folder = family.write(tmp_path_factory.mktemp("extra") / "model")

    def extend(tensors: Tensors) -> None:
        last = {k: v.clone() for k, v in tensors.items() if ".layers.2." in k}
        tensors |= {key.replace(".layers.2.", ".layers.3."): value for key, value in last.items()}
        for name, shape in (("eh_proj", (32, 64)), ("enorm", (32,)), ("hnorm", (32,))):
            tensors[f"model.layers.3.{name}.weight"] = torch.ones(shape)

    shutil.copytree(folder, folder.with_name("plain"))
    damage(folder, extend)
    configure(folder, num_nextn_predict_layers=1)
    return folder


def test_layers_that_predict_further_tokens_pass(extra_layers: Path) -> None:
    assert_same(extra_layers, state(extra_layers.with_name("plain")))


@pytest.mark.parametrize("change", ["not counted", "not joined", "a layer too few"])
def test_other_further_layers_are_named(extra_layers: Path, tmp_path: Path, change: str) -> None:
    """A layer of the model itself is none of them, whatever the configuration counts."""
    folder = shutil.copytree(extra_layers, tmp_path / "model")
    if change == "not counted":
        configure(folder, num_nextn_predict_layers=0)
    elif change == "not joined":
        damage(folder, lambda tensors: tensors.pop("model.layers.3.eh_proj.weight"))
    else:
        configure(folder, num_hidden_layers=2, num_nextn_predict_layers=2)
    n = 2 if change == "a layer too few" else 3
    assert f"got none for model.layers.{n}." in refused(folder)


def test_a_further_layer_is_like_the_first_whatever_is_numbered_in_it() -> None:
    """Experts have numbers too: those of the first layer, and of one in it, say what is known."""
    layer = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2)])
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})
    known = sorted(model.state_dict())
    assert known == ["layers.0.0.weight", "layers.0.1.bias", "layers.0.1.weight"]
    further = [name.replace("layers.0.", "layers.1.") for name in known]
    assert weights.layers_beyond(model, [*further, "layers.1.scale", "layers.0.0.bias"]) == further


# ---------------------------------------------------------------- scales and types


def in_eight_bits(tensors: Tensors, suffix: str, kind: torch.dtype = torch.float8_e4m3fn) -> None:
    for key in [key for key in tensors if "proj" in key]:
        scale = tensors[key].abs().max() / (127 if kind == torch.int8 else 448)
        tensors[key] = (tensors[key] / scale).to(kind)
        if suffix:
            tensors[key + suffix] = scale.reshape(1, 1)


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def test_weights_are_multiplied_by_scales_that_transformers_applies(folder: Path) -> None:
    damage(folder, lambda tensors: in_eight_bits(tensors, "_scale_inv"))
    stored = load_file(folder / WEIGHTS_FILE)
    configure(folder, quantization_config=FP8)
    for key, weight in state(folder).items():
        scale = stored.get(f"{key}_scale_inv", torch.ones(()))
        if key in stored:  # the head is tied
            torch.testing.assert_close(weight, stored[key].float() * scale, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale", ""])
def test_eight_bits_without_a_method_are_named(
    folder: Path, kind: torch.dtype, suffix: str
) -> None:
    damage(folder, lambda tensors: in_eight_bits(tensors, suffix, kind))
    error = refused(folder)
    assert "or have a quantization_config in config.json; got model.layers.0.mlp.down_proj" in error
    assert "of type F8_E4M3" in error or "of type I8" in error


@pytest.mark.parametrize(
    "stated", [{"quant_method": "modelopt"}, {"quant_method": "made-up"}, {"bits": 4}, {}]
)
def test_a_method_that_nothing_undoes_is_named(folder: Path, stated: dict[str, Any]) -> None:
    damage(folder, lambda tensors: in_eight_bits(tensors, "_scale"))
    configure(folder, quantization_config=stated)
    method = stated.get("quant_method")
    assert f"got quant_method {method!r} of the quantization_config" in refused(folder)


def test_a_scale_that_is_missing_is_named(folder: Path) -> None:
    lost = f"{LAYER}.mlp.up_proj.weight"
    damage(folder, lambda tensors: in_eight_bits(tensors, "_scale_inv"))
    damage(folder, lambda tensors: tensors.pop(f"{lost}_scale_inv"))
    configure(folder, quantization_config=FP8)
    assert f"must have their scales; got none for {lost} and 0 more" in refused(folder)


@pytest.mark.parametrize("suffix", ["_scale", ".input_scale"])
def test_scales_that_the_method_does_not_read_are_named(folder: Path, suffix: str) -> None:
    damage(folder, lambda tensors: in_eight_bits(tensors, "_scale_inv"))
    more = {f"{LAYER}.mlp.up_proj.weight{suffix}": torch.full((1, 1), 2.0)}
    damage(folder, lambda tensors: tensors.update(more))
    configure(folder, quantization_config=FP8)
    assert f"for {next(iter(more))} and 0 more" in refused(folder)


def test_integers_are_no_weights(folder: Path) -> None:
    name = "model.norm.weight"
    damage(folder, lambda tensors: tensors.update({name: torch.ones(32, dtype=torch.int32)}))
    assert f"got {name} of type I32" in refused(folder)


# ---------------------------------------------------------------- files of a folder


def shard(folder: Path) -> tuple[Path, Path]:
    """Split the weights into two files with an index."""
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    names = [folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = len(tensors) // 2
    keys = list(tensors)[:half], list(tensors)[half:]
    places: dict[str, str] = {}
    for path, mine in zip(names, keys, strict=True):
        save_file({key: tensors[key] for key in mine}, path, {"format": "pt"})
        places |= dict.fromkeys(mine, path.name)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return names[0], names[1]


def test_shards_are_one_model(folder: Path, plain: Tensors) -> None:
    shard(folder)
    assert len(locate(str(folder)).weights_sha256) == 2
    assert_same(folder, plain)


def test_two_shards_must_not_hold_one_tensor(folder: Path) -> None:
    first, second = shard(folder)
    more = load_file(first) | {"model.norm.weight": torch.ones(32)}
    save_file(more, first, {"format": "pt"})
    assert f"got model.norm.weight in {first.name} and in {second}; get" in refused(folder)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    "name",
    ["adapter_model.safetensors", "adapters.safetensors", "model-00003-of-00003.safetensors"],
)
def test_weights_that_are_not_loaded_are_named_and_not_counted(
    folder: Path, name: str, sharded: bool
) -> None:
    if sharded:
        shard(folder)
    before = locate(str(folder)).weights_sha256
    save_file({"a.lora_A.weight": torch.ones(4, 32)}, folder / name)
    assert locate(str(folder)).weights_sha256 == before
    assert f"must hold the weights of one model; got {folder / name}, which is not" in (
        refused(folder)
    )


@pytest.mark.parametrize("weights_file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_must_be_merged(folder: Path, weights_file: str) -> None:
    (folder / ADAPTER_FILE).write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
    save_file({"a.lora_A.weight": torch.ones(4, 32)}, folder / weights_file)
    assert f"must be merged with its base model; got {folder / ADAPTER_FILE}" in refused(folder)
    (folder / WEIGHTS_FILE).unlink()
    assert f"must be merged with its base model; got {folder / ADAPTER_FILE}" in refused(folder)


def test_the_same_weights_in_the_format_of_mistral_are_not_counted(
    folder: Path, tiny_model: Path, plain: Tensors
) -> None:
    shutil.copy(folder / WEIGHTS_FILE, folder / "consolidated.safetensors")
    assert locate(str(folder)).weights_sha256 == locate(str(tiny_model)).weights_sha256
    assert_same(folder, plain)
    (folder / WEIGHTS_FILE).unlink()
    assert "consolidated.safetensors without them; get the model again" in refused(folder)


def test_a_configuration_must_not_name_another_file(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS_FILE, folder / "consolidated.safetensors")
    configure(folder, transformers_weights="consolidated.safetensors")
    assert "must be model.safetensors; got 'consolidated.safetensors'; rename" in refused(folder)
