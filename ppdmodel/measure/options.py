"""Options common to measuring and training exits: text generation and hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..checks import positive_integer
from ..errors import InvalidInputError, excerpt
from .decoder.sampling import Sampling
from .models.loading import LoadedModel, check_hardware, threads
from .prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a prompt becomes the text that the model reads.

    Attributes:
        raw: whether texts are used as they are, without the chat template.
        system: a system message before every prompt.
        template_args: further variables of the chat template, such as `enable_thinking`.

    Raises:
        InvalidInputError: a system message or variables without the chat template.
    """

    raw: bool = False
    system: str | None = None
    template_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.raw and (self.system is not None or self.template_args):
            raise InvalidInputError(
                "a system message and arguments of the chat template need the template; got them "
                "with raw texts; leave out --raw, or --system and --template-arg"
            )
        if self.system is not None and not self.system.strip():
            raise InvalidInputError("the system message must have text; got none; leave it out")
        try:
            given = [self.system, dict(self.template_args)]
            json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                "a system message and arguments of the chat template must be Unicode text and JSON "
                f"values; got: {excerpt(error)}; give others"
            ) from None

    @property
    def provenance(self) -> dict[str, Any]:
        """The entries in a result's provenance; None stands for what is not given."""
        return {
            "prompt_format": "raw" if self.raw else "chat",
            "system": self.system,
            "template_args": dict(sorted(self.template_args.items())) or None,
        }

    def encode(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[str]] | None = None,
    ) -> list[list[int]]:
        """Token ids of each prompt up to the turn after those that its `answers` are to.

        Raises:
            InvalidInputError: as `LoadedModel.encode_all`, or a prompt has a system message of its
                own beside that of all, or without a chat template.
        """
        conversations = []
        for number, prompt in enumerate(prompts):
            messages = prompt.messages(answers[number] if answers else ())
            if messages[0][0] == "system" and (self.raw or self.system is not None):
                raise InvalidInputError(
                    "a system message must be given once, for the chat template; got prompt "
                    f"{prompt.id!r} with its own; leave out {'--raw' if self.raw else '--system'}"
                )
            system = [] if self.system is None else [("system", self.system)]
            conversations.append([*system, *messages])
        return loaded.encode_all(conversations, not self.raw, self.template_args)


@dataclass(frozen=True)
class GenerationOptions(PromptFormat):
    """How the model's own text is generated, besides the format of its prompts.

    Attributes:
        max_new_tokens: most tokens per turn of a prompt.
        batch_size: most prompts decoded together.
        sampling: how tokens are sampled; None is greedy decoding.

    Raises:
        InvalidInputError: a number is not a positive integer, or as `PromptFormat`.
    """

    max_new_tokens: int = 128
    batch_size: int = 36
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("max_new_tokens", self.max_new_tokens)
        positive_integer("batch_size", self.batch_size)


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
