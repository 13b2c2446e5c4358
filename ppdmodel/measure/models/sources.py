"""Locating a model's weights and identifying them by sha256. No torch here."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import EXCERPT, InvalidInputError, RunFailedError
from ...results.files import parse_json
from .gguf_header import read_header
from .packaged import PACKAGED, installed_path, sha256, verify

#: files of a hub snapshot; pickled weights are never fetched
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class ModelSource:
    """Weights on disk: a folder with safetensors, or one GGUF file in it."""

    name: str
    folder: Path
    gguf: Path | None
    weights_sha256: tuple[str, ...]
    quantization: str | None

    @property
    def provenance(self) -> dict[str, Any]:
        """The weights' entries in a result's provenance."""
        return {
            "model": self.name,
            "weights_sha256": list(self.weights_sha256),
            "quantization": self.quantization,
        }


def locate(name: str) -> ModelSource:
    """Find a model's weights and compute their sha256.

    Args:
        name: a packaged model, a GGUF file, a folder with safetensors, or a Hugging Face id
            (owner/name), which is downloaded unless it is in the cache.

    Raises:
        InvalidInputError: there is no such model, it is not installed, or the file is not a whole
            and sound GGUF file.
        RunFailedError: packaged weights are not the pinned ones, or the hub did not answer.
    """
    path = Path(name)
    if name in PACKAGED:
        model = PACKAGED[name]
        path = installed_path(model)
        verify(path, model.sha256)
        return ModelSource(name, path.parent, path, (model.sha256,), model.quantization)
    if path.is_file():
        quantization = read_header(path).quantization
        return ModelSource(path.name, path.parent, path, (sha256(path),), quantization)
    if path.is_dir():
        return _folder(path.resolve().name, path)
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or path.suffix == ".gguf" or parts[0].startswith("."):
        raise InvalidInputError(
            f"model must be a known name ({', '.join(PACKAGED)}), a GGUF file, a folder or a "
            f"Hugging Face id (owner/name); got {name!r}"
        )
    return _folder(name, _hub_snapshot(name))


def _folder(name: str, folder: Path) -> ModelSource:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InvalidInputError(
            f"a model folder must hold *.safetensors weights; got none in {folder}; "
            "pickled weights are not read"
        )
    _check_index(folder)
    return ModelSource(name, folder, None, tuple(map(sha256, weights)), None)


def _check_index(folder: Path) -> None:
    """Raise unless an index of weights names safetensors of its own folder only.

    Files elsewhere would be loaded without being part of the sha256.
    """
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    try:
        names = set(parse_json(path.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInputError(
            f"the index of the weights must be JSON with a weight_map; got {path}; get it again"
        ) from None
    here = {weights.name for weights in folder.glob("*.safetensors")}
    for name in sorted(map(str, names - here)):
        raise InvalidInputError(
            f"the index of the weights must name safetensors of its folder; got {name!r} in "
            f"{path}; get the model again"
        )


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
