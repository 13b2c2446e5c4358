"""Models of a stated shape with random weights: what they are, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from ppdmodel.decide.hardware import models, shape
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import load_exits
from ppdmodel.measure.decoder.verify import verified
from ppdmodel.measure.models.faults import model_without_weights
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import random_weights
from ppdmodel.pipeline.random_weights import available_memory, random_model, random_source
from ppdmodel.pipeline.shared_engine import shared_engine
from ppdmodel.pipeline.timing import any_ids, timing_provenance
from ppdmodel.results.compatibility import RANDOM_WEIGHTS
from tests.support.runs import command, training, write_prompts

TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def written(folder: Path, **changes: Any) -> str:
    """The config.json of a tiny shape; None takes a field out."""
    document = {name: value for name, value in (TINY | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(document))
    return str(folder / "config.json")


def made(folder: Path, dtype: str = "float32", **changes: Any) -> LoadedModel:
    return random_model(random_source(written(folder, **changes)), dtype)


def test_the_same_shape_has_the_same_weights_of_bounded_scale(tmp_path: Path) -> None:
    one, again = (made(tmp_path, attention_bias=True) for _ in range(2))
    weights = dict(one.model.named_parameters())
    assert len(weights) == 3 + 4 * (9 + 4)
    for name, weight in again.model.named_parameters():
        assert torch.equal(weight, weights[name]), name
        if weight.ndim == 2:
            bound = (3 / weight.shape[1]) ** 0.5
            assert 0.95 * bound < weight.abs().max() <= bound, name
            assert float(weight.var() * weight.shape[1]) == pytest.approx(1, rel=0.1)
        else:
            assert (weight == (0 if name.endswith("bias") else 1)).all(), name
    assert not torch.equal(
        weights["model.layers.0.mlp.up_proj.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    )


def test_weights_are_drawn_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(tmp_path).model.state_dict()
    monkeypatch.setattr(random_weights, "DRAWN", 1000)
    for name, weight in made(tmp_path).model.state_dict().items():
        assert torch.equal(weight, whole[name]), name


def test_a_head_that_is_the_embedding_is_one_matrix(tmp_path: Path) -> None:
    model = made(tmp_path, tie_word_embeddings=True).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(name.startswith("lm_head") for name, _ in model.named_parameters()) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_engine_runs_it_in_every_number_format(tmp_path: Path, dtype: str) -> None:
    loaded = made(tmp_path, dtype, num_hidden_layers=12, model_type="qwen3", head_dim=16)
    assert {str(weight.dtype) for weight in loaded.model.parameters()} == {f"torch.{dtype}"}
    assert loaded.layers == 12
    engine = shared_engine(loaded, verified(loaded.model).exit, 20)
    logits = engine.probed.tensor("logits")
    assert logits.isfinite().all()
    assert 0.1 < float(logits.std()) < 10
    engine.close()


def test_it_reads_token_ids_alone_and_says_what_it_is(tmp_path: Path) -> None:
    loaded = made(tmp_path, eos_token_id=2)
    assert loaded.end_ids == frozenset()
    assert loaded.decode([5, 299]) == "5 299"
    assert len(any_ids(loaded)) == 96
    with pytest.raises(InvalidInputError, match=r"a text must have a tokenizer .* give token ids"):
        loaded.encode(["the fox"])
    about = timing_provenance(loaded, None, ("cpu", "cpu"))
    assert about["model"] == f"{tmp_path.name} with random weights"
    assert about["weights_sha256"] == []
    assert about[RANDOM_WEIGHTS]["config"] == TINY | {"eos_token_id": 2}
    other = random_source(written(tmp_path, vocab_size=301)).provenance[RANDOM_WEIGHTS]
    assert other["config_sha256"] != about[RANDOM_WEIGHTS]["config_sha256"]


@pytest.mark.parametrize("name", models())
def test_a_known_shape_has_the_sizes_that_are_listed(name: str) -> None:
    source = random_source(name)
    assert source.random_weights is not None
    model = model_without_weights(AutoConfig.for_model(**source.random_weights["config"]))
    listed = shape(name)
    assert listed.matrices == 3
    weights = sum(weight.numel() for weight in model.parameters())
    norms = (2 * listed.layers + 1) * listed.width
    assert weights == listed.layers * listed.layer_weights + 2 * listed.head_weights + norms


def test_weights_that_do_not_fit_the_memory_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = sum(weight.numel() for weight in made(tmp_path).model.parameters())
    monkeypatch.setattr(random_weights, "available_memory", lambda: 12 * n)
    made(tmp_path)
    monkeypatch.setattr(random_weights, "available_memory", lambda: 12 * n - 1)
    words = r"must fit the memory; got .* in bfloat16, which need .* GB free; take a smaller"
    with pytest.raises(InvalidInputError, match=words):
        made(tmp_path, "bfloat16")
    monkeypatch.setattr(random_weights, "available_memory", lambda: None)
    made(tmp_path)


def test_the_memory_that_is_free() -> None:
    found = available_memory()
    assert found is None or 2**20 < found < 2**50


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 0}, "hidden_size must be a positive integer; got 0; correct "),
    ({"num_hidden_layers": -1}, "num_hidden_layers must be a positive integer; got -1; correct "),
    ({"num_attention_heads": "4"}, "num_attention_heads must be a positive integer; got 4"),
    ({"vocab_size": None}, "the config must have vocab_size; got none in "),
    ({"num_attention_heads": 3, "num_key_value_heads": 3}, "multiple of the number of attention"),
    ({"model_type": "bert"}, "whose weights are counted here; got model_type 'bert' in "),
    ({"model_type": "llamas"}, "whose weights are counted here; got model_type 'llamas' in "),
    ({"quantization_config": {"quant_method": "awq"}}, "not quantized; got quantization_config"),
    ({"hidden_act": "no such"}, "must load; got KeyError: 'no such'; correct hidden_act = "),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_a_wrong_configuration_is_named(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        made(tmp_path, **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"config must be a config.json or a known shape \("
    ):
        random_source(str(tmp_path / "none.json"))
    with pytest.raises(InvalidInputError, match="the config must exist; got"):
        random_source(str(tmp_path))
    written(tmp_path)
    assert random_source(str(tmp_path)) == random_source(str(tmp_path / "config.json"))
    with pytest.raises(InvalidInputError, match="dtype must be one of float32, bfloat16, float16"):
        made(tmp_path, "int8")


def test_trained_exits_of_the_same_sizes_are_read_and_others_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    prompts, folder = write_prompts(tmp_path / "prompts.jsonl", 8), tmp_path / "exits"
    assert command(*training(tiny_model, prompts, folder)).code == 0
    config = written(tmp_path, num_hidden_layers=5)
    exits = load_exits(folder, random_source(config))
    assert exits.on(verified(random_model(random_source(config)).model).exit).kind == "trained"
    for changes in ({"num_hidden_layers": 2}, {"hidden_size": 64}):
        with pytest.raises(InvalidInputError, match=r"trained exits must fit the model; got a map"):
            load_exits(folder, random_source(written(tmp_path, **changes)))
