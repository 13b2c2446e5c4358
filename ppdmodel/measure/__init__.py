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
    from .decoder.exit import AffineMap, Exit, register_exit
    from .decoder.sampling import Sampling
    from .models.loading import load_model
    from .models.sources import ModelSource, locate
    from .options import GenerationOptions, HardwareOptions
    from .progress import Progress
    from .prompts import Prompt, default_prompts, read_prompts, training_prompts
    from .run import Shard, measure
    from .shards import merge
    from .training.train import TrainedExits, TrainingOptions, load_exits, train_exits

_HOMES = {
    "AffineMap": "decoder.exit",
    "Exit": "decoder.exit",
    "GenerationOptions": "options",
    "HardwareOptions": "options",
    "ModelSource": "models.sources",
    "Progress": "progress",
    "Prompt": "prompts",
    "Sampling": "decoder.sampling",
    "Shard": "run",
    "TrainedExits": "training.train",
    "TrainingOptions": "training.train",
    "default_prompts": "prompts",
    "load_exits": "training.train",
    "load_model": "models.loading",
    "locate": "models.sources",
    "measure": "run",
    "merge": "shards",
    "read_prompts": "prompts",
    "register_exit": "decoder.exit",
    "train_exits": "training.train",
    "training_prompts": "prompts",
}
__all__ = [
    "AffineMap",
    "Exit",
    "GenerationOptions",
    "HardwareOptions",
    "ModelSource",
    "Progress",
    "Prompt",
    "Sampling",
    "Shard",
    "TrainedExits",
    "TrainingOptions",
    "default_prompts",
    "load_exits",
    "load_model",
    "locate",
    "measure",
    "merge",
    "read_prompts",
    "register_exit",
    "train_exits",
    "training_prompts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise MissingExtraError("measure", error.name or "torch") from None
