"""Weights that are none, code that must not run, and a file that is converted once."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from ppdmodel.errors import InvalidInputError, PpdModelError
from ppdmodel.measure.decoder.verify import verified
from ppdmodel.measure.models import loading as models
from ppdmodel.measure.models.loading import check_hardware, load_model
from ppdmodel.measure.models.sources import ModelSource, locate

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def damage(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_must_be_finite(folder: Path, value: float) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    damage(folder, lambda tensors: tensors[name][3, 4].fill_(value))
    with pytest.raises(InvalidInputError) as caught:
        load_model(locate(str(folder)))
    words = str(caught.value)
    assert words.startswith(
        f"the weights of {folder} must be finite numbers; got NaN or infinity in"
    )
    assert name in words


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    damage(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(InvalidInputError, match=r"none such for model\.layers\.1.* and 0 more;"):
        load_model(locate(str(folder)))


def test_of_several_missing_weights_the_first_is_named(folder: Path) -> None:
    names = [f"model.layers.{n}.self_attn.k_proj.weight" for n in (3, 1, 2)]
    damage(folder, lambda tensors: [tensors.pop(name) for name in names])
    with pytest.raises(InvalidInputError, match=r"none such for model\.layers\.1.* and 2 more;"):
        load_model(locate(str(folder)))


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_weights_of_other_sizes_are_named(folder: Path) -> None:
    configure(folder, intermediate_size=48)
    words = (
        r"got model\.layers\.0\.mlp\.down_proj\.weight of 32 x 64, where config\.json says 32 x 48;"
    )
    with pytest.raises(InvalidInputError, match=words):
        load_model(locate(str(folder)))


def test_weights_of_further_layers_are_named_and_others_left_alone(folder: Path) -> None:
    """Nine weights of each of the two layers that the configuration leaves out."""
    names = ("model.layers.1.self_attn.rotary_emb.inv_freq", "mtp.blocks.7.weight")
    damage(folder, lambda tensors: tensors.update({name: torch.ones(3) for name in names}))
    assert load_model(locate(str(folder))).layers == 5
    configure(folder, num_hidden_layers=3)
    words = r"must name all layers of its weights; got none for model\.layers\.3\..* and 17 more;"
    with pytest.raises(InvalidInputError, match=words):
        load_model(locate(str(folder)))


def test_a_loaded_model_only_predicts_from_aligned_weights(tiny_model: Path) -> None:
    model = load_model(locate(str(tiny_model))).model
    assert not model.training
    for weight in model.parameters():
        assert not weight.requires_grad
        assert weight.data_ptr() % models.ALIGNMENT == 0


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_a_file_cut_short_is_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        InvalidInputError, match=r"must be whole safetensors files; got .*model\.saf"
    ):
        load_model(locate(str(folder)))


class Mark:
    """Something whose unpickling can be seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("beside_safetensors", [False, True])
def test_pickles_are_never_read(folder: Path, tmp_path: Path, beside_safetensors: bool) -> None:
    mark = tmp_path / "unpickled"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Mark(mark)))
    if beside_safetensors:
        load_model(locate(str(folder)))
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(InvalidInputError, match="pickled weights are not read"):
            locate(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("known", [False, True])
def test_code_that_comes_with_a_model_is_never_run(
    folder: Path, tmp_path: Path, known: bool
) -> None:
    """A model of a known type goes without."""
    mark = tmp_path / "ran"
    (folder / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\n")
    auto_map = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    configure(folder, auto_map=auto_map, **({} if known else {"model_type": "theirs"}))
    if known:
        load_model(locate(str(folder)))
    else:
        with pytest.raises(InvalidInputError, match=r"the configuration of .*model must load"):
            load_model(locate(str(folder)))
    assert not mark.exists()


def test_a_folder_without_a_tokenizer_is_named(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(InvalidInputError, match=r"the tokenizer of .*model must load; got "):
        load_model(locate(str(folder)))


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_what_is_no_decoder_is_refused(folder: Path, kind: str) -> None:
    config: Any = {
        "bert": lambda: transformers.BertConfig(
            vocab_size=257, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32,
        ),
        "t5": lambda: transformers.T5Config(
            vocab_size=257, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        ),
    }[kind]()  # fmt: skip
    build = {"bert": transformers.BertForMaskedLM, "t5": transformers.T5ForConditionalGeneration}
    build[kind](config).save_pretrained(folder)
    with pytest.raises(PpdModelError) as caught:
        verified(load_model(locate(str(folder))).model)
    assert len(str(caught.value).splitlines()) == 1


def test_names_of_devices_are_checked(tiny_model: Path) -> None:
    source = locate(str(tiny_model))
    with pytest.raises(InvalidInputError, match="device must be one that this torch can use"):
        load_model(source, device="nonsense")
    with pytest.raises(InvalidInputError, match=r"got 'meta' \(it holds no numbers\); use cpu"):
        load_model(source, device="meta")
    with pytest.raises(InvalidInputError, match="dtype must be one of float32, bfloat16, float16"):
        load_model(source, dtype="int8")
    with pytest.raises(InvalidInputError, match="device_map must be one of auto, "):
        check_hardware("float32", None, "nonsense")
    assert verified(load_model(source, device_map="auto").model).drops_rows


def test_a_gguf_file_is_converted_once(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader stands in for Transformers' slow one: what is asked of it, and how often."""
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    source = ModelSource("m", tmp_path, tmp_path / "m.gguf", ("a" * 64,), "Q4_1")
    read, asked = models._read, []

    def reading(src: Any, place: Path, *rest: Any) -> Any:
        asked.append(place == src.folder)
        return read(src, tiny_model if asked[-1] else place, *rest)

    monkeypatch.setattr(models, "_read", reading)
    first = load_model(source)
    second = load_model(source, dtype="bfloat16")
    assert asked == [True, False, False]  # from GGUF once; from the cache for each loading
    state = second.model.state_dict()
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight.bfloat16(), state[name])
    (folder,) = (tmp_path / "cache" / "converted").iterdir()
    (folder / "model.safetensors").write_bytes(b"cut short")
    load_model(source)
    assert asked[3:] == [False, True, False], "a damaged conversion is made again"
    for cut_short in (tmp_path / "cache" / "converted").glob("*/config.json"):
        cut_short.unlink()
    load_model(source)
    assert asked[6:] == [True, True], "what is not whole is not taken, and not replaced"


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path / "file"))
    source = ModelSource("m", tmp_path, tmp_path / "m.gguf", ("a" * 64,), "Q4_1")
    read = models._read
    monkeypatch.setattr(models, "_read", lambda s, p, *rest: read(s, tiny_model, *rest))
    assert load_model(source).layers == 5


def test_without_an_end_of_its_own_a_model_ends_as_its_tokenizer_says(tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    for ends, expected in ((3, {3}), ([3, 4], {3, 4}), (None, {0})):
        loaded.model.generation_config.eos_token_id = ends
        assert loaded.end_ids == frozenset(expected)


FIELDS: list[tuple[str, Any, str]] = [
    ("eos_token_id", "</s>", "a token id, or a list of them"),
    ("eos_token_id", [5, None], "a token id, or a list of them"),
    ("eos_token_id", [5, "</s>"], "a token id, or a list of them"),
    ("eos_token_id", 5.0, "a token id, or a list of them"),
    ("eos_token_id", True, "a token id, or a list of them"),
    ("pad_token_id", "<pad>", "a token id, or a list of them"),
    ("max_new_tokens", "many", "int"),
    ("top_k", 5.5, "int"),
    ("temperature", "hot", "float"),
    ("do_sample", "no", "bool"),
]


@pytest.mark.parametrize(("name", "value", "kind"), FIELDS)
def test_a_field_of_a_generation_config_of_another_type_is_refused(
    folder: Path, name: str, value: Any, kind: str
) -> None:
    """An end token given as text would end no text."""
    (folder / "generation_config.json").write_text(json.dumps({name: value}), encoding="utf-8")
    with pytest.raises(InvalidInputError) as caught:
        load_model(locate(str(folder)))
    assert f"{name} in the generation config of {folder} must be {kind}; got" in str(caught.value)


def test_an_end_token_as_text_in_the_configuration_is_refused_too(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    document = json.loads((folder / "config.json").read_text("utf-8"))
    path = folder / "config.json"
    path.write_text(json.dumps(document | {"eos_token_id": "</s>"}), encoding="utf-8")
    with pytest.raises(PpdModelError, match="eos_token_id"):
        load_model(locate(str(folder)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must be a JSON object; got list"),
        ("{", "generation_config.json must be JSON; got"),
        ('{"eos_token_id": 1, "eos_token_id": 2}', "the key 'eos_token_id' twice"),
        ('{"temperature": NaN}', "temperature, which must be a finite number"),
    ],
)
def test_a_generation_config_that_is_none_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=words):
        load_model(locate(str(folder)))


def test_a_sound_generation_config_is_taken(folder: Path) -> None:
    sound = {"eos_token_id": [5, 9], "pad_token_id": None, "temperature": 1, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(sound), encoding="utf-8")
    assert load_model(locate(str(folder))).end_ids == {5, 9}


def test_a_prompt_and_its_answer_may_fill_the_context(tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    assert loaded.context == 256
    loaded.model.config.max_position_embeddings = 0
    loaded.check_room("p", 10**9, 1)
    loaded.model.config.max_seq_len = 256
    assert loaded.context == 256
    loaded.check_room("p", 200, 56)
    with pytest.raises(InvalidInputError, match=r"got 200 \+ 57 for prompt 'p'; shorten one of"):
        loaded.check_room("p", 200, 57)


def test_text_has_no_special_tokens(tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    ids = loaded.encode(["the fox"], chat=False)
    assert loaded.decode([*ids, 0]) == "the fox", "0 ends a text"


def test_the_end_of_an_answer_is_not_part_of_the_next_context(tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    letters = loaded.tokenizer("ab").input_ids
    assert loaded.decode([*letters, 0]) == "ab"
    assert loaded.tokenizer.decode(loaded.encode(["x"])) == "[user] x\n[assistant] "
    ids = loaded.encode(["x", "y"], True, [loaded.decode([*letters, 0])])
    assert loaded.tokenizer.decode(ids) == "[user] x\n[assistant] ab\n[user] y\n[assistant] "
    assert loaded.tokenizer.decode(loaded.encode(["x", "y"], False, ["ab"])) == "xaby"


def test_tokens_that_begin_a_text_are_the_templates_or_the_tokenizers(tiny_model: Path) -> None:
    """Raw text has those of the tokenizer; the template writes its own."""
    loaded = load_model(locate(str(tiny_model)))
    letters = loaded.encode(["a"], chat=False)
    begins = TemplateProcessing(single="</s> $0", special_tokens=[("</s>", 0)])
    loaded.tokenizer.backend_tokenizer.post_processor = begins
    assert loaded.encode(["a"], chat=False) == [0, *letters]
    assert 0 not in loaded.encode(["a"])


def test_what_cannot_be_encoded_is_named(tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    with pytest.raises(InvalidInputError, match="each prompt must have tokens; got none for ''"):
        loaded.encode([""], chat=False)
    ids = loaded.encode(["a"])
    loaded.model.config.vocab_size = max(ids) + 1
    assert loaded.encode(["a"]) == ids
    loaded.model.config.vocab_size = largest = max(ids)
    words = f"got token {largest} of a vocabulary of {largest}; get both from one place"
    with pytest.raises(InvalidInputError, match=words):
        loaded.encode(["a"])
    for template, words in (
        ("{{ raise_exception('roles') }}", "got TemplateError: roles; use --raw"),
        (None, "must have a chat template; got a tokenizer without one; use --raw"),
    ):
        loaded.tokenizer.chat_template = template
        with pytest.raises(InvalidInputError, match=words):
            loaded.encode(["a"])
