"""Real PPD: worker processes on CPUs or GPUs, timed layer by layer and compared with predictions.

Names are loaded when they are first used; they need the extra `measure`.
"""

from typing import TYPE_CHECKING

from ..errors import names_on_demand

if TYPE_CHECKING:
    from .decoding import Decoded as Decoded
    from .decoding import decode as decode
    from .options import PpdSetting as PpdSetting
    from .options import Workers as Workers
    from .pipeline import Pipeline as Pipeline
    from .timing import time_model as time_model
    from .validation import ValidationGrid as ValidationGrid
    from .validation import validate as validate
else:
    __getattr__, __all__ = names_on_demand(
        __name__,
        {
            "decoding": ("Decoded", "decode"),
            "options": ("PpdSetting", "Workers"),
            "pipeline": ("Pipeline",),
            "timing": ("time_model",),
            "validation": ("ValidationGrid", "validate"),
        },
    )
