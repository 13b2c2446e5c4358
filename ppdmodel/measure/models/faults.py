"""Which file of a model, and which of its fields, a library's error is about."""

from __future__ import annotations

import errno
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers

from ...checks import MOST_LAYERS
from ...errors import InvalidInputError, PpdModelError, RunFailedError, excerpt
from ...results.files import parse_json

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"


def model_without_weights(config: Any) -> Any:
    """The model of a configuration, without numbers."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {layers}, which is more than {MOST_LAYERS}")
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def read_tokenizer(folder: Path, **gguf: str) -> Any:
    """The tokenizer of a folder or a GGUF file, once it has read a text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **gguf)
    tokenizer("a text")
    return tokenizer


def fault_of_config(document: Mapping[str, Any]) -> str:
    """The field of a configuration without which a model can be made; else the file."""

    def make(rest: Mapping[str, Any]) -> None:
        model_without_weights(transformers.AutoConfig.for_model(**deepcopy(dict(rest))))

    return _field_at_fault(document, make, CONFIG)


def fault_of_tokenizer(folder: Path) -> str:
    """The field of tokenizer_config.json without which a tokenizer loads; else the files."""
    settings = folder / TOKENIZER_CONFIG
    others = [path for path in folder.glob("*") if path.suffix in (".json", ".model", ".txt")]
    if not any(path.name.startswith("tokenizer") for path in others):
        return f"{folder}, which has no tokenizer.json"
    if not settings.is_file():
        return str(folder / "tokenizer.json")
    document = json_of(settings)
    with tempfile.TemporaryDirectory() as trial:
        for path in others:
            if path != settings:
                (Path(trial) / path.name).symlink_to(path.resolve())

        def make(rest: Mapping[str, Any]) -> None:
            (Path(trial) / settings.name).write_text(json.dumps(rest))
            read_tokenizer(Path(trial))

        with suppress(Exception):
            make({})
            return _field_at_fault(document, make, str(settings))
    return str(folder / "tokenizer.json")


def _field_at_fault(document: Any, make: Callable[[Mapping[str, Any]], object], file: str) -> str:
    """The first field without which something can be made of a document, with its file."""
    for name in document if isinstance(document, dict) else ():
        with suppress(Exception):
            make({key: value for key, value in document.items() if key != name})
            return f"{name} = {str(document[name])[:80]!r} in {file}"
    return file


@contextmanager
def explained(what: str, place: Callable[[], object]) -> Iterator[None]:
    """Raise a library's error as one of ours: bad input, unless the machine is at fault.

    Args:
        what: must load.
        place: finds the file at fault, and the field.
    """
    try:
        yield
    except PpdModelError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RunFailedError(
            f"{what} must fit the memory; got {excerpt(error) or 'too little of it'}; "
            "use a smaller model, or a machine with more"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {excerpt(error)}"
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise RunFailedError(
                f"{what} must be readable; got {reason}; check the disk and permissions"
            ) from error
        if "Unrecognized configuration class" in str(error):
            raise InvalidInputError(
                f"the model must be a decoder with a language-model head; got {what}, "
                "which Transformers has no such class for; choose another"
            ) from None
        raise InvalidInputError(f"{what} must load; got {reason}; correct {place()}") from error


def json_of(path: Path) -> Any:
    """The document in a file; a configuration may have infinite limits."""
    try:
        return parse_json(re.sub(r"\bInfinity\b", "0", path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} must be JSON; got {error}; get the file again") from None
