"""What is loaded as a model, what is refused, and that nothing in a model's folder is ever run."""

from __future__ import annotations

import functools
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ppdmodel import load
from ppdmodel.measure.decoder.exit import Exit
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.results.measurement import Measurement
from tests.support.gguf_files import write_gguf
from tests.support.runs import (
    Outcome,
    alone,
    assert_same,
    command,
    deaths,
    measuring,
    snapshot,
    write_prompts,
)

Weights = dict[str, torch.Tensor]
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", 3)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def run(prompts: Path, tmp_path: Path) -> Run:
    """Measure a model into `out`."""

    def measured(model: Path, *options: object) -> Outcome:
        return command(*measuring(model, prompts, tmp_path / "out", *options))

    return measured


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(model: Path, change: Callable[[Weights], None]) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def refused(outcome: Outcome, tmp_path: Path) -> str:
    """The one line that refuses a model, before anything is measured."""
    error = outcome.error
    assert not (tmp_path / "out" / "tokens.parquet").exists()
    return error


def measurement(folder: Path) -> Measurement:
    found = load(folder)
    assert isinstance(found, Measurement)
    return found


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]])
@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_weights_must_be_finite(
    model: Path, run: Run, tmp_path: Path, name: str, values: list[float]
) -> None:
    def spoil(weights: Weights) -> None:
        weights[name].view(-1)[: len(values)] = torch.tensor(values)

    change_weights(model, spoil)
    outcome = run(model)
    assert outcome.code == 2
    assert f"must be finite numbers; got NaN or infinity in {name}" in refused(outcome, tmp_path)


def test_what_float16_cannot_hold_is_named_with_the_way_out(
    model: Path, run: Run, tmp_path: Path
) -> None:
    def enlarge(weights: Weights) -> None:
        weights["model.layers.0.input_layernorm.weight"][0] = 1e6

    change_weights(model, enlarge)
    error = refused(run(model, "--dtype", "float16"), tmp_path)
    assert "NaN or infinity in model.layers.0.input_layernorm.weight" in error
    assert "use another --dtype" in error
    assert run(model).code == 0


@pytest.mark.parametrize("keep", [0, 7, 200, 0.5, -1])
def test_weights_cut_short_are_refused(model: Path, run: Run, tmp_path: Path, keep: float) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else int(keep)])
    outcome = run(model)
    assert outcome.code == 2
    assert f"must be whole safetensors files; got {path} (" in refused(outcome, tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"]
)
def test_tensors_that_are_missing_are_not_made_up(
    model: Path, run: Run, tmp_path: Path, name: str
) -> None:
    """Transformers fills them with random numbers, and says so where nobody looks."""

    def lose(weights: Weights) -> None:
        del weights[name]

    change_weights(model, lose)
    outcome = run(model)
    assert outcome.code == 2
    error = refused(outcome, tmp_path)
    assert f"the weights of {model} must be whole" in error
    assert f"got none such for {name}" in error or "lm_head" in error


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 48},
        {"intermediate_size": 32},
        {"vocab_size": 300},
        {"num_key_value_heads": 4},
        {"num_hidden_layers": 6},
        {"tie_word_embeddings": False},
    ],
)
def test_sizes_of_another_model_are_refused(
    model: Path, run: Run, tmp_path: Path, changes: dict[str, object]
) -> None:
    change_json(model / "config.json", **changes)
    error = refused(run(model), tmp_path)
    assert "above report" not in error, "there is none: it went nowhere"


def test_a_model_with_fewer_layers_than_its_weights_is_refused(
    model: Path, run: Run, tmp_path: Path
) -> None:
    """The first three of five layers make a model that runs, and is another one."""
    change_json(model / "config.json", num_hidden_layers=3)
    refused(run(model), tmp_path)


# ---------------------------------------------------------------- nothing is run


class Marker:
    """A pickle of it creates a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that must never appear; that it would is tried here."""
    path = tmp_path / "was-run"
    pickle.loads(pickle.dumps(Marker(path)))
    assert path.exists(), "the trap works"
    path.unlink()
    return path


PICKLES = (
    "pytorch_model.bin", "model.pt", "training_args.bin", "consolidated.00.pth", "adapter_model.bin"
)  # fmt: skip


def test_pickled_weights_alone_are_refused(
    model: Path, run: Run, tmp_path: Path, marker: Path
) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"weight": Marker(marker)}, model / "pytorch_model.bin")
    outcome = run(model)
    assert outcome.code == 2
    error = refused(outcome, tmp_path)
    assert "must hold *.safetensors weights; got none in" in error
    assert "pickled weights are not read" in error
    assert not marker.exists()


def test_pickled_weights_beside_safetensors_are_not_read(
    model: Path, run: Run, tiny_model: Path, tmp_path: Path, prompts: Path, marker: Path
) -> None:
    for name in PICKLES:
        torch.save({"weight": Marker(marker)}, model / name)
    assert run(model).code == 0
    assert not marker.exists()
    assert command(*measuring(tiny_model, prompts, tmp_path / "clean")).code == 0
    assert_same(tmp_path / "out", tmp_path / "clean")


@pytest.mark.parametrize("listed", ["weights.bin", "../outside.safetensors"])
def test_an_index_names_safetensors_of_its_folder_only(
    model: Path,
    run: Run,
    tmp_path: Path,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    listed: str,
) -> None:
    """Others would be read, and would not be in the fingerprint of the weights."""
    part = model / "model-00001-of-00002.safetensors"
    (model / "model.safetensors").rename(part)
    names = list(load_file(part))
    here = [] if listed.endswith(".bin") else names[1:]
    places = dict.fromkeys(names, listed) | dict.fromkeys(here, part.name)
    index = {"metadata": {}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    if listed.endswith(".bin"):
        torch.save({names[0]: Marker(marker)}, model / listed)
    else:
        shutil.copy(part, model / listed)
    opened: list[Any] = []

    def unpickle(*args: Any, **_: Any) -> dict[str, Any]:
        opened.append(args)
        return {}

    monkeypatch.setattr(torch, "load", unpickle)
    refused(run(model), tmp_path)
    assert opened == []
    assert not marker.exists()


CODE = """
open({marker!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.mark.parametrize("model_type", ["llama", "of-its-own"])
def test_code_in_the_folder_is_never_run(
    model: Path, run: Run, tmp_path: Path, marker: Path, model_type: str
) -> None:
    """A model with code of its own is refused; a known one that brings some goes without."""
    (model / "code.py").write_text(CODE.format(marker=str(marker)))
    trust = {"trust_remote_code": True}
    maps = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    change_json(model / "config.json", auto_map=maps, model_type=model_type, **trust)
    maps = {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}  # type: ignore[dict-item]
    change_json(model / "tokenizer_config.json", auto_map=maps, **trust)
    change_json(model / "generation_config.json", custom_generate="code.py", **trust)
    outcome = run(model)
    assert not marker.exists()
    if model_type == "llama":
        assert outcome.code == 0
    else:
        refused(outcome, tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for message in messages",
    ],
)
def test_a_chat_template_that_fails_or_reaches_out_is_named(
    model: Path, run: Run, tmp_path: Path, template: str
) -> None:
    (model / "chat_template.jinja").write_text(template)
    assert "template" in refused(run(model), tmp_path)


# ---------------------------------------------------------------- what is no decoder


def test_a_folder_without_a_tokenizer_is_refused(model: Path, run: Run, tmp_path: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refused(run(model), tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model_type": "of-its-own"}'])
def test_a_folder_without_a_sound_configuration_is_refused(
    model: Path, run: Run, tmp_path: Path, text: str | None
) -> None:
    if text is None:
        (model / "config.json").unlink()
    else:
        (model / "config.json").write_text(text)
    refused(run(model), tmp_path)


def test_a_tokenizer_of_another_model_is_named(model: Path, run: Run, tmp_path: Path) -> None:
    """It has ids that the model has no embedding for."""
    path = model / "tokenizer.json"
    document = json.loads(path.read_text())
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"].append({"id": 999, "content": "the", **flags})
    path.write_text(json.dumps(document))
    refused(run(model), tmp_path)


def bert() -> Any:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=257, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=256, pad_token_id=0,
        )
    )  # fmt: skip


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=257, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "says"), [(bert, "the exit at the last layer must"), (t5, "must be a decoder")]
)
def test_encoders_are_refused_as_bad_input(
    model: Path, run: Run, tmp_path: Path, make: Callable[[], Any], says: str
) -> None:
    torch.manual_seed(0)
    (model / "model.safetensors").unlink()
    make().save_pretrained(model)
    outcome = run(model)
    assert says in refused(outcome, tmp_path)
    assert outcome.code == 2


# ---------------------------------------------------------------- types and devices


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_ties_are_listed(
    tiny_model: Path, run: Run, tmp_path: Path, dtype: str
) -> None:
    outcome = run(tiny_model, "--dtype", dtype, "--max-new-tokens", "40")
    assert (outcome.code, outcome.notes) == (0, [])
    result = measurement(tmp_path / "out")
    assert result.complete
    assert result.provenance["dtype"] == dtype
    late = np.flatnonzero(result.rank[:, -1] > 1)
    listed = {(tie["prompt_id"], tie["position"]) for tie in result.ties}
    own = {(result.prompt_ids[result.prompt_index[n]], int(result.position[n])) for n in late}
    assert own <= listed
    assert all(0 <= tie["margin"] <= 0.5 for tie in result.ties)


@pytest.mark.parametrize(("lead", "passes"), [(0.25, True), (2.0, False)])
def test_a_near_tie_in_bfloat16_is_reported_and_a_wrong_head_fails(
    tiny_model: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lead: float,
    passes: bool,
) -> None:
    """Where ranking makes the runner-up of one token win, by less than rounding or by more."""
    calls = [0]

    def rounded(_self: Exit, logits: torch.Tensor) -> torch.Tensor:
        whole = logits.shape[1] > 100  # the targets' own are made ahead
        calls[0] += whole
        if whole and calls[0] > 6:  # after the two probes of the last exit and layers 1 to 4
            top = logits.topk(2, dim=1)
            logits[0, top.indices[0, 1]] = top.values[0, 0] + lead
        return logits

    monkeypatch.setattr(Exit, "finish", rounded)
    outcome = run(tiny_model, "--dtype", "bfloat16", "--batch-size", "3", "--max-new-tokens", "1")
    if passes:
        assert outcome.code == 0, outcome
        ties = measurement(tmp_path / "out").ties
        assert ("p0", 0) in {(tie["prompt_id"], tie["position"]) for tie in ties}
    else:
        assert outcome.code == 1
        assert "the last layer must rank every token first" in refused(outcome, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ("--device", "nonsense"),
        ("--device", "cuda:99"),
        ("--device", "meta"),
        ("--device-map", "nonsense"),
        ("--device-map", "meta"),
        ("--dtype", "float8"),
    ],
)
def test_a_device_or_type_that_is_none_is_bad_input(
    tiny_model: Path, run: Run, tmp_path: Path, options: tuple[str, str]
) -> None:
    outcome = run(tiny_model, *options)
    assert options[1] in refused(outcome, tmp_path)
    assert outcome.code == 2


def test_a_device_map_gives_the_same_measurement(
    tiny_model: Path, run: Run, prompts: Path, tmp_path: Path
) -> None:
    assert run(tiny_model, "--device-map", "auto").code == 0
    assert command(*measuring(tiny_model, prompts, tmp_path / "plain")).code == 0
    assert_same(tmp_path / "out", tmp_path / "plain")


# ---------------------------------------------------------------- GGUF files, converted once


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversions are kept; nothing is there yet."""
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converted"


def conversions(cache: Path) -> list[Path]:
    """What would be taken for a converted model, were it whole or not."""
    return [path for path in cache.glob("*") if not path.name.startswith(".")]


def embedding(source: Path) -> torch.Tensor:
    table: torch.Tensor = load_model(locate(str(source))).model.get_input_embeddings().weight
    return table.detach().clone()


def test_a_gguf_file_is_converted_once_and_then_read_from_the_cache(
    gguf: Path, run: Run, cache: Path, prompts: Path, tmp_path: Path
) -> None:
    assert run(gguf).code == 0
    (folder,) = conversions(cache)
    assert locate(str(gguf)).weights_sha256[0] in folder.name
    before = snapshot(cache)
    assert command(*measuring(gguf, prompts, tmp_path / "again")).code == 0
    assert_same(tmp_path / "again", tmp_path / "out")
    assert snapshot(cache) == before, "the second time it is only read"

    def double(weights: Weights) -> None:
        weights["model.embed_tokens.weight"] *= 2

    first = embedding(gguf)
    change_weights(folder, double)
    assert torch.equal(embedding(gguf), 2 * first), "what is read is what the cache holds"


def test_another_gguf_file_of_the_same_name_is_another_model(
    gguf: Path, cache: Path, tmp_path: Path
) -> None:
    first = embedding(gguf)
    other = tmp_path / gguf.name
    data = bytearray(gguf.read_bytes())
    data[-4:] = np.float32(0.125).tobytes()  # the last norm's last weight
    other.write_bytes(data)
    model = load_model(locate(str(other))).model
    assert torch.equal(model.get_input_embeddings().weight, first)
    assert 0.125 in model.model.layers[-1].post_attention_layernorm.weight.tolist()
    assert len(conversions(cache)) == 2


@pytest.mark.parametrize("place", ["a file", "/proc/nowhere"])
def test_without_a_cache_the_file_itself_is_read(
    gguf: Path,
    run: Run,
    cache: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    assert run(gguf).code == 0
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path / "file") if place == "a file" else place)
    outcome = command(*measuring(gguf, prompts, tmp_path / "direct"))
    assert (outcome.code, outcome.notes) == (0, [])
    assert_same(tmp_path / "direct", tmp_path / "out")


def fill_disk_for(what: str, limit: int) -> None:
    """Have this process fail to save one class of Transformers, by a limit on sizes of files."""
    kind = getattr(transformers, what)
    save = kind.save_pretrained

    def narrow(*args: Any, **options: Any) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            return save(*args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    kind.save_pretrained = narrow


def prepare(cache: Path, what: str, limit: int) -> None:
    """In a process whose server started before this test: its environment is older."""
    os.environ["PPDMODEL_CACHE"] = str(cache.parent)
    fill_disk_for(what, limit)


@pytest.mark.parametrize("limit", [10, 1000, 5000])
@pytest.mark.parametrize("what", ["PreTrainedTokenizerBase", "PreTrainedModel"])
def test_on_a_full_disk_the_file_itself_is_read(
    gguf: Path, cache: Path, prompts: Path, tmp_path: Path, what: str, limit: int
) -> None:
    """Small files are written by Python, large ones by libraries with errors of their own."""
    words = measuring(gguf, prompts, tmp_path / "m")
    outcome = alone(words, functools.partial(prepare, cache, what, limit))
    assert outcome is not None
    assert (outcome.code, outcome.notes) == (0, [])
    assert conversions(cache) == []
    assert not any(cache.glob(".part-*")), "what was begun is cleared away"


def test_a_conversion_that_dies_leaves_nothing_that_is_taken_for_whole(
    gguf: Path, cache: Path, prompts: Path, tmp_path: Path
) -> None:
    expected = embedding(gguf)
    (whole,) = conversions(cache)
    complete, moments = snapshot(whole).keys(), 0
    shutil.rmtree(cache)
    words = measuring(gguf, prompts, tmp_path / "m")
    copies, where = tmp_path / "copies", str(cache.parent)
    for moment in deaths(words, cache, copies, every=1, PPDMODEL_CACHE=where):
        for folder in conversions(cache):
            assert snapshot(folder).keys() == complete, moment
        assert torch.equal(embedding(gguf), expected)
        assert not any(cache.glob(".part-*")), "what was begun is cleared away"
        moments += 1
    assert moments >= 2, "a folder is begun, and renamed"
    assert [path.name for path in cache.iterdir()] == [whole.name]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_conversion_is_made_again(gguf: Path, cache: Path, name: str) -> None:
    """The user has no use for a message about a file that the user did not make."""
    expected = embedding(gguf)
    (folder,) = conversions(cache)
    (folder / name).write_bytes(b"cut short")
    assert torch.equal(embedding(gguf), expected)
    assert (folder / name).read_bytes() != b"cut short"
    assert conversions(cache) == [folder]


def test_two_processes_may_convert_at_once(
    gguf: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is first with its rename: its folder is taken, and ours is cleared away."""
    expected = embedding(gguf)
    (folder,) = conversions(cache)
    aside = tmp_path / "aside"
    folder.rename(aside)
    rename = os.rename

    def beaten(source: Any, target: Any, **options: Any) -> None:
        if Path(target).parent == cache and not Path(target).exists():
            shutil.copytree(aside, target)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", beaten)
    assert torch.equal(embedding(gguf), expected)
    assert [path.name for path in cache.iterdir()] == [folder.name]
