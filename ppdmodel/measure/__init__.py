"""Measuring real models: the only folder whose modules import torch.

>>> from ppdmodel.measure import default_prompts
>>> default_prompts()[0].category
'question-answering'
"""

from typing import TYPE_CHECKING

from ..errors import names_on_demand

if TYPE_CHECKING:
    from ..progress import Progress as Progress
    from .decoder.exit import AffineMap as AffineMap
    from .decoder.exit import Exit as Exit
    from .decoder.exit import register_exit as register_exit
    from .decoder.sampling import Sampling as Sampling
    from .models.loading import load_model as load_model
    from .models.sources import ModelSource as ModelSource
    from .models.sources import locate as locate
    from .options import GenerationOptions as GenerationOptions
    from .options import HardwareOptions as HardwareOptions
    from .options import PromptFormat as PromptFormat
    from .prompts import Prompt as Prompt
    from .prompts import default_prompts as default_prompts
    from .prompts import read_prompts as read_prompts
    from .prompts import training_prompts as training_prompts
    from .run import Shard as Shard
    from .run import measure as measure
    from .shards import merge as merge
    from .training.train import TrainingOptions as TrainingOptions
    from .training.train import train_exits as train_exits
    from .training.trained_exits import TrainedExits as TrainedExits
    from .training.trained_exits import load_exits as load_exits
else:
    __getattr__, __all__ = names_on_demand(
        __name__,
        {
            "decoder.exit": ("AffineMap", "Exit", "register_exit"),
            "decoder.sampling": ("Sampling",),
            "models.loading": ("load_model",),
            "models.sources": ("ModelSource", "locate"),
            "options": ("GenerationOptions", "HardwareOptions", "PromptFormat"),
            ".progress": ("Progress",),
            "prompts": ("Prompt", "default_prompts", "read_prompts", "training_prompts"),
            "run": ("Shard", "measure"),
            "shards": ("merge",),
            "training.train": ("TrainingOptions", "train_exits"),
            "training.trained_exits": ("TrainedExits", "load_exits"),
        },
    )
