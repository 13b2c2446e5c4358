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
    from .exits import AffineMap, Exit, register_exit
    from .merging import merge
    from .models import load_model
    from .pipeline.decoding import Decoded, decode
    from .pipeline.pipeline import Pipeline
    from .pipeline.timing import time_model
    from .pipeline.validating import validate
    from .prompts import Prompt, default_prompts, read_prompts, training_prompts
    from .run import Progress, Shard, measure
    from .sampling import Sampling
    from .sources import ModelSource, locate
    from .training import TrainedExits, load_exits, train_exits

_HOMES = {
    "AffineMap": "exits",
    "Decoded": "pipeline.decoding",
    "Exit": "exits",
    "ModelSource": "sources",
    "Pipeline": "pipeline.pipeline",
    "Progress": "run",
    "Prompt": "prompts",
    "Sampling": "sampling",
    "Shard": "run",
    "TrainedExits": "training",
    "decode": "pipeline.decoding",
    "default_prompts": "prompts",
    "load_exits": "training",
    "load_model": "models",
    "locate": "sources",
    "measure": "run",
    "merge": "merging",
    "read_prompts": "prompts",
    "register_exit": "exits",
    "time_model": "pipeline.timing",
    "train_exits": "training",
    "training_prompts": "prompts",
    "validate": "pipeline.validating",
}
__all__ = [
    "AffineMap",
    "Decoded",
    "Exit",
    "ModelSource",
    "Pipeline",
    "Progress",
    "Prompt",
    "Sampling",
    "Shard",
    "TrainedExits",
    "decode",
    "default_prompts",
    "load_exits",
    "load_model",
    "locate",
    "measure",
    "merge",
    "read_prompts",
    "register_exit",
    "time_model",
    "train_exits",
    "training_prompts",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError("measure", error.name or "torch") from None
