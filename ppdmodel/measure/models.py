"""Loading a decoder and its tokenizer from where `sources` found them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from ..errors import InvalidInputError, RunFailedError
from .sources import ModelSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A decoder in evaluation mode, and its tokenizer."""

    source: ModelSource
    model: Any
    tokenizer: Any

    @property
    def layers(self) -> int:
        """Decoder layers d."""
        return int(self.model.config.num_hidden_layers)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens after which a text ends."""
        found = self.model.generation_config.eos_token_id
        if found is None:
            found = self.tokenizer.eos_token_id
        return frozenset([found] if isinstance(found, int) else found or [])

    def encode(self, text: str, chat: bool = True) -> list[int]:
        """Token ids of a user message, in the model's chat template unless `chat` is false.

        Raises:
            InvalidInputError: the text has no tokens, or a chat template is wanted and missing.
        """
        if chat:
            if not self.tokenizer.chat_template:
                raise InvalidInputError(
                    "the model must have a chat template; got a tokenizer without one; use --raw"
                )
            turns = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        ids: list[int] = self.tokenizer(text, add_special_tokens=not chat).input_ids
        if not ids:
            raise InvalidInputError(f"each prompt must have tokens; got none for {text!r}")
        return ids


def check_dtype(dtype: str) -> None:
    """Raise `InvalidInputError` unless weights can be converted to `dtype`."""
    if dtype not in DTYPES:
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")


def load_model(source: ModelSource, dtype: str = "float32") -> LoadedModel:
    """Load a model on the CPU, weights converted to `dtype`.

    Raises:
        InvalidInputError: no such dtype.
        RunFailedError: the weights are there and could not be loaded.
    """
    check_dtype(dtype)
    gguf = {"gguf_file": source.gguf.name} if source.gguf else {}
    try:
        with redirect_stderr(io.StringIO()):  # these loaders draw bars that cannot be switched off
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, **gguf)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source.folder,
                dtype=DTYPES[dtype],
                use_safetensors=None if gguf else True,
                **gguf,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunFailedError(
            f"the weights of {source.name} must load; got: {reason[:300]}; check {source.folder}"
        ) from error
    return LoadedModel(source=source, model=model.eval(), tokenizer=tokenizer)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads, and on the former number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
