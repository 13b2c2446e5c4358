"""Real PPD: worker processes on CPUs or GPUs, timed layer by layer and compared with predictions.

Names are loaded when they are first used; they need the extra `measure`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from .decoding import Decoded, decode
    from .options import PpdSetting, Workers
    from .pipeline import Pipeline
    from .timing import time_model
    from .validation import ValidationGrid, validate

_HOMES = {
    "Decoded": "decoding",
    "Pipeline": "pipeline",
    "PpdSetting": "options",
    "ValidationGrid": "validation",
    "Workers": "options",
    "decode": "decoding",
    "time_model": "timing",
    "validate": "validation",
}
__all__ = [
    "Decoded",
    "Pipeline",
    "PpdSetting",
    "ValidationGrid",
    "Workers",
    "decode",
    "time_model",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError("measure", error.name or "torch") from None
