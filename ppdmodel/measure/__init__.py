"""Measuring real models: the only folder whose modules import torch.

>>> from ppdmodel.measure import default_prompts
>>> default_prompts()[0].category
'question-answering'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from .models import load_model
    from .prompts import Prompt, default_prompts, read_prompts
    from .run import Progress, measure
    from .sources import ModelSource, locate

_HOMES = {
    "ModelSource": "sources",
    "Progress": "run",
    "Prompt": "prompts",
    "default_prompts": "prompts",
    "load_model": "models",
    "locate": "sources",
    "measure": "run",
    "read_prompts": "prompts",
}
__all__ = [
    "ModelSource",
    "Progress",
    "Prompt",
    "default_prompts",
    "load_model",
    "locate",
    "measure",
    "read_prompts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError("measure", error.name or "torch") from None
