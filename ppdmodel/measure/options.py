"""Options common to measuring and training exits: text generation and hardware."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from ..checks import positive_integer
from .decoder.sampling import Sampling
from .models.loading import check_hardware, threads


@dataclass(frozen=True)
class GenerationOptions:
    """How the model's own text is generated.

    Attributes:
        max_new_tokens: most tokens per turn of a prompt.
        batch_size: most prompts decoded together.
        raw: whether prompts are used as they are, without the chat template.
        sampling: how tokens are sampled; None is greedy decoding.

    Raises:
        InvalidInputError: a number is not a positive integer.
    """

    max_new_tokens: int = 128
    batch_size: int = 36
    raw: bool = False
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        positive_integer("max_new_tokens", self.max_new_tokens)
        positive_integer("batch_size", self.batch_size)

    @property
    def prompt_format(self) -> str:
        """The format as provenance states it: "raw" or "chat"."""
        return "raw" if self.raw else "chat"


@dataclass(frozen=True)
class HardwareOptions:
    """Where and in which number format the model runs.

    Attributes:
        dtype: "float32", "bfloat16" or "float16".
        device: such as "cpu" or "cuda:1"; None is a GPU if there is one.
        device_map: Accelerate's placement over several devices instead, such as "auto".
        n_threads: threads for torch; None keeps torch's number.

    Raises:
        InvalidInputError: a value that torch or Accelerate does not know, or a number of threads
            that is not positive.
    """

    dtype: str = "float32"
    device: str | None = None
    device_map: str | None = None
    n_threads: int | None = None

    def __post_init__(self) -> None:
        if self.n_threads is not None:
            positive_integer("n_threads", self.n_threads)
        check_hardware(self.dtype, self.device, self.device_map)

    @property
    def chosen_device(self) -> str:
        """The device, with the default resolved."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def threads(self) -> AbstractContextManager[None]:
        """Run torch on `n_threads` threads, then restore the former number."""
        return threads(self.n_threads or torch.get_num_threads())


#: defaults of `measure`
GENERATION, HARDWARE = GenerationOptions(), HardwareOptions()
