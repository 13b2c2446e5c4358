"""Locating a model's weights and identifying them by sha256. No torch here."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import EXCERPT, InvalidInputError, RunFailedError
from ...results.compatibility import RANDOM_WEIGHTS
from ...results.files import check_path, parse_json, read_text
from .gguf_header import read_header
from .packaged import PACKAGED, installed_path, sha256, verify

#: files of a hub snapshot; pickled weights are never fetched
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
#: PEFT writes it beside the weights of an adapter
ADAPTER_FILE = "adapter_config.json"
#: the same weights again, in the format and under the names of Mistral's own code
COPY = re.compile(r"consolidated(-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class ModelSource:
    """Weights on disk: a folder with safetensors, or one GGUF file in it.

    `random_weights` says which random numbers they are instead, of models that are on no disk.
    """

    name: str
    folder: Path
    gguf: Path | None
    weights_sha256: tuple[str, ...]
    quantization: str | None
    random_weights: Mapping[str, Any] | None = None

    @property
    def place(self) -> Path:
        """The GGUF file or the folder, as messages name it."""
        return self.gguf or self.folder

    @property
    def provenance(self) -> dict[str, Any]:
        """The weights' entries in a result's provenance."""
        random = {RANDOM_WEIGHTS: dict(self.random_weights)} if self.random_weights else {}
        return {
            "model": self.name,
            "weights_sha256": list(self.weights_sha256),
            "quantization": self.quantization,
            **random,
        }


def locate(name: str) -> ModelSource:
    """Find a model's weights and compute their sha256.

    Args:
        name: a packaged model, a GGUF file, a folder with safetensors, or a Hugging Face id
            (owner/name), which is downloaded unless it is in the cache.

    Raises:
        InvalidInputError: there is no such model, it is not installed, the file is not a whole and
            sound GGUF file, or the folder holds no weights.
        RunFailedError: packaged weights are not the pinned ones, a file cannot be read, or the hub
            did not answer.
    """
    check_path(Path(name))
    if name in PACKAGED:
        model = PACKAGED[name]
        path = installed_path(model)
        verify(path, model.sha256)
        return ModelSource(name, path.parent, path, (model.sha256,), model.quantization)
    path = Path(name)
    try:
        if path.is_file():
            quantization = read_header(path).quantization
            return ModelSource(path.name, path.parent, path, (sha256(path),), quantization)
        if path.is_dir():
            return _folder(path.resolve().name, path)
    except OSError as error:
        raise RunFailedError(
            f"the model must be readable; got {error.strerror} at {error.filename}; "
            "check its permissions"
        ) from error
    if os.path.lexists(path):
        found = "a link to nothing" if path.is_symlink() else "a pipe or a device"
        raise InvalidInputError(f"model must be a file or a folder; got {name}, {found}")
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or path.suffix == ".gguf" or parts[0].startswith("."):
        raise InvalidInputError(
            f"model must be a known name ({', '.join(PACKAGED)}), a GGUF file, a folder or a "
            f"Hugging Face id (owner/name); got {name!r}"
        )
    return _folder(name, _hub_snapshot(name))


def _folder(name: str, folder: Path) -> ModelSource:
    return ModelSource(name, folder, None, tuple(map(sha256, weight_files(folder))), None)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors in a model's folder that are loaded: one file, or those of the index, sorted.

    Raises:
        InvalidInputError: there are none.
    """
    here = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX_FILE
    indexed = _indexed(index, here) if index.is_file() else []
    used = [path for path in here if path.name == WEIGHTS_FILE] or indexed
    if not used:
        check_no_adapter(folder)
        if here:
            raise InvalidInputError(
                f"a model folder must hold {WEIGHTS_FILE} or {INDEX_FILE}; got {here[0]} without "
                "them; get the model again"
            )
        raise InvalidInputError(
            f"a model folder must hold *.safetensors weights; got none in {folder}; "
            "pickled weights are not read"
        )
    return tuple(used)


def check_no_adapter(folder: Path) -> None:
    """Raise `InvalidInputError` where a folder holds an adapter, which nothing would apply."""
    adapter = folder / ADAPTER_FILE
    if os.path.lexists(adapter):
        raise InvalidInputError(
            f"an adapter must be merged with its base model; got {adapter}, which is not applied; "
            "merge it with merge_and_unload of peft and give the merged model, or remove it"
        )


def check_all_used(folder: Path) -> None:
    """Raise `InvalidInputError` where a folder holds weights beside those that are loaded."""
    check_no_adapter(folder)
    used = weight_files(folder)
    for path in sorted(folder.glob("*.safetensors")):
        if path not in used and not COPY.fullmatch(path.name):
            raise InvalidInputError(
                f"a model folder must hold the weights of one model; got {path}, which is not "
                f"read beside {used[0].name}; merge it into them, or move it elsewhere"
            )


def _indexed(index: Path, here: Sequence[Path]) -> list[Path]:
    """The files that an index names, all of its own folder: others would escape the sha256."""
    try:
        names = set(parse_json(read_text(index))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInputError(
            f"the index of the weights must be JSON with a weight_map; got {index}; get it again"
        ) from None
    missing = sorted(map(str, names - {path.name for path in here}))
    if missing or not names:
        raise InvalidInputError(
            f"the index of the weights must name safetensors of its folder; got "
            f"{missing[0] if missing else 'none'!r} in {index}; get the model again"
        )
    return [path for path in here if path.name in names]


def _hub_snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        reason = textwrap.shorten(str(error), EXCERPT, break_on_hyphens=False, placeholder=" ...")
        raise RunFailedError(
            f"cannot download {name} from the Hugging Face Hub ({reason}); give a local folder or "
            "a GGUF file"
        ) from error
