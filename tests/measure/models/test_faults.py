"""The file and the field at fault are named, whatever error a library raises."""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure.models.faults import explained
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def change(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def refused(folder: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        load_model(locate(str(folder)))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pad_token_id", 32000),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("hidden_act", "no-such"),
        ("hidden_act", None),
        ("layer_types", ["full_attention"]),
        ("rope_parameters", {"rope_type": "no-such", "rope_theta": 1e4}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("rope_parameters", 7),
        ("vocab_size", "many"),
        ("hidden_size", -32),
        ("num_hidden_layers", 10**9),
        ("quantization_config", "fp8"),
    ],
)
def test_the_field_of_a_configuration_is_named(folder: Path, key: str, value: object) -> None:
    change(folder / "config.json", key, value)
    error = refused(folder)
    assert re.match("the configuration of .*model must load; got ", error)
    assert f"; correct {key} = {str(value)[:80]!r} in config.json" in error


def test_a_model_of_no_known_type_names_the_configuration(folder: Path) -> None:
    change(folder / "config.json", "model_type", "no-such")
    error = refused(folder)
    assert "model type `no-such`" in error
    assert error.endswith("correct config.json")


@pytest.mark.parametrize(("key", "value"), [("tokenizer_class", 5), ("eos_token", 1.5)])
def test_the_field_of_a_tokenizer_is_named(folder: Path, key: str, value: object) -> None:
    path = folder / "tokenizer_config.json"
    change(path, key, value)
    assert f"; correct {key} = {str(value)!r} in {path}" in refused(folder)


@pytest.mark.parametrize(
    "document", [{}, [], {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}]
)
def test_the_file_of_a_tokenizer_is_named(folder: Path, document: object) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    error = refused(folder)
    assert re.match("the tokenizer of .*model must load; got ", error)
    assert error.endswith(f"correct {path}")
    (folder / "tokenizer_config.json").unlink()
    assert refused(folder).endswith(f"correct {path}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("text", "words"),
    [('{"a": 1, "a": 2}', "the key 'a' twice"), ('{"a": NaN}', "nan at a"), ("{", "Expecting")],
)
def test_json_that_is_none_is_named(folder: Path, name: str, text: str, words: str) -> None:
    (folder / name).write_text(text)
    error = refused(folder)
    assert f"{folder / name} must be JSON; got " in error
    assert words in error


def test_limits_in_a_configuration_may_be_infinite(folder: Path, tiny_model: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"time_step_limit": [0.0, Infinity],', 1))
    assert load_model(locate(str(folder))).layers == load_model(locate(str(tiny_model))).layers


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EIO, "input/output error"), RunFailedError),
        (PermissionError(errno.EACCES, "permission denied"), RunFailedError),
        (MemoryError(), RunFailedError),
        (torch.OutOfMemoryError("out of memory"), RunFailedError),
        (FileNotFoundError(errno.ENOENT, "no such file"), InvalidInputError),
        (OSError("it has no file named so"), InvalidInputError),
        (AssertionError("within bounds"), InvalidInputError),
        (Exception("a library's own"), InvalidInputError),
        (InvalidInputError("ours"), InvalidInputError),
    ],
)
def test_bad_input_is_told_from_a_machine_at_fault(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind), explained("the weights of m", lambda: "m.safetensors"):
        raise error


VALUES: tuple[Any, ...] = (
    None,
    0,
    -1,
    7,
    2.5,
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
    True,
    10**9,
    10**30,
    1e308,
    [None],
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(name=st.sampled_from(["config.json", "tokenizer_config.json", "tokenizer.json",
                             "generation_config.json"]), data=st.data())  # fmt: skip
def test_changed_files_load_or_are_refused_in_one_line(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "model"
    shutil.copytree(tiny_model, folder)
    document = place = json.loads((folder / name).read_text())
    while True:
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
        )
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        place = inner
    place[key] = data.draw(st.sampled_from(VALUES))
    (folder / name).write_text(json.dumps(document))
    began = time.process_time()
    try:
        load_model(locate(str(folder)))
    except InvalidInputError as error:
        assert re.fullmatch(".*model.*", str(error))  # noqa: PT017  # either end is right
    assert time.process_time() - began < 5
    shutil.rmtree(folder)
