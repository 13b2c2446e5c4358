"""Where models are, and what is wrong with files that are none."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure.models import sources
from ppdmodel.measure.models.gguf_header import read_header
from ppdmodel.measure.models.packaged import (
    DEFAULT_MODEL,
    PACKAGED,
    find,
    install,
    packaged,
    sha256,
    verify,
)
from ppdmodel.measure.models.sources import locate


def write_gguf(path: Path) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), dtype=np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(64, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_gguf_file_is_found(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    source = locate(str(path))
    assert (source.name, source.gguf, source.quantization) == ("m.gguf", path, "F32")
    assert source.weights_sha256 == (sha256(path),)


@pytest.mark.parametrize("keep", [4, 20, 100, -1, -700])
def test_a_truncated_gguf_file_is_named(tmp_path: Path, keep: int) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:keep])
    with pytest.raises(InvalidInputError, match=r"a GGUF file must be whole; got .*cut\.gguf"):
        locate(str(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04pickle"])
def test_what_is_not_gguf_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="a model file must be GGUF; got"):
        read_header(path)


def test_hostile_sizes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16)
    with pytest.raises(InvalidInputError, match="a GGUF file must be whole"):
        read_header(path)


@pytest.mark.parametrize(
    "name", ["gpt-5", "no/such/place", "../nowhere", "missing.gguf", "a/b.gguf", "a/", "/b"]
)
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        locate(name)
    assert "smollm2-135m" in str(caught.value)
    assert repr(name) in str(caught.value)


def test_a_folder_needs_safetensors(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80pickle")
    with pytest.raises(InvalidInputError, match=r"must hold \*\.safetensors weights"):
        locate(str(tmp_path))


def test_a_folder_is_known_by_its_weights(tiny_model: Path) -> None:
    source = locate(str(tiny_model))
    assert source.name == "tiny-llama"
    assert source.weights_sha256 == (sha256(tiny_model / "model.safetensors"),)


def test_a_hub_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunFailedError) as caught:
        locate("some/model")
    said = (
        r"cannot download some/model from the Hugging Face Hub \((.+)\); "
        "give a local folder or a GGUF file"
    )
    found = re.fullmatch(said, str(caught.value))
    assert found
    words = found[1].removesuffix(" ...").split()
    assert words == str(caught.value.__cause__).split()[: len(words)], "cut between words only"


def test_what_the_hub_says_is_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise ValueError(" ".join(["a-word-of-five-parts"] * 40))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(RunFailedError, match=r"Hub \((a-word-of-five-parts )+\.\.\.\); give"):
        locate("some/model")


def test_the_default_model_is_installed_and_whole() -> None:
    model = packaged(DEFAULT_MODEL)
    path, installed_now = install(model)
    assert not installed_now, "make test installs it first"
    assert path == find(model)
    assert locate(DEFAULT_MODEL).quantization == model.quantization
    assert read_header(path).quantization == model.quantization


def test_other_weights_under_a_known_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"other")
    with pytest.raises(RunFailedError, match=r"the sha256 of .* must be b179.*; got "):
        verify(path, PACKAGED[DEFAULT_MODEL].sha256)


def test_packaged_names_are_listed() -> None:
    with pytest.raises(InvalidInputError, match="got 'x'; smollm2-135m"):
        packaged("x")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "the index of the weights must be JSON with a weight_map; got"),
        ("{}", "the index of the weights must be JSON with a weight_map; got"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "safetensors of its folder; got '../x.safe"),
    ],
)
def test_an_index_names_weights_of_its_own_folder(
    tiny_model: Path, tmp_path: Path, index: str, words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": "model.safetensors"}}')
    assert locate(str(folder)).weights_sha256 == locate(str(tiny_model)).weights_sha256
    path.write_text(index)
    with pytest.raises(InvalidInputError, match=re.escape(words)):
        locate(str(folder))


def test_paths_that_no_model_can_have_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some look like the id of a model on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    loop, nowhere, pipe = tmp_path / "d" / "loop", tmp_path / "d" / "gone", tmp_path / "d" / "pipe"
    loop.symlink_to(loop)
    nowhere.symlink_to(tmp_path / "not-there")
    os.mkfifo(pipe)
    for name, reason in {
        "d/loop": "Too many levels of symbolic links",
        "d/loop/model": "Too many levels of symbolic links",
        "d/gone": "a link to nothing",
        "d/pipe": "a pipe or a device",
        "/dev/zero": "a pipe or a device",
        "a" * 300: "File name too long",
        "d/" + "a" * 300 + ".gguf": "File name too long",
        "d/" * 3000: "File name too long",
        "a\0b": "embedded null byte",
    }.items():
        with pytest.raises(InvalidInputError) as caught:
            locate(name)
        assert reason in str(caught.value)
        assert str(Path(name)) in str(caught.value)


def test_a_model_that_cannot_be_read_is_no_bad_input(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(paths[0]))

    monkeypatch.setattr(sources, "sha256", refuse)
    with pytest.raises(RunFailedError, match=r"got Permission denied at .*model\.safetensors;"):
        locate(str(tiny_model))
