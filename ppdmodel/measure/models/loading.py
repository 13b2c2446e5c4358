"""Loading of a decoder and its tokenizer from a located source."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ...errors import EXCERPT, InvalidInputError, RunFailedError, excerpt
from ...results.files import flush
from ...results.locks import LOCK_FILE, only_one
from ..decoder.lengths import context
from .cache import cache_dir
from .chat import Message, render
from .faults import (
    CONFIG,
    TOKENIZER_CONFIG,
    explained,
    fault_of_config,
    fault_of_tokenizer,
    json_of,
    model_without_weights,
    read_tokenizer,
)
from .gguf_header import read_header
from .gguf_model import check_used, scale_positions
from .sources import WEIGHTS_FILE, ModelSource, check_all_used, weight_files
from .weights import Held, check_taken, check_tensors, is_quantized, tensors_in

#: packages whose versions are part of a result's provenance
PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "numpy", "pyarrow")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
#: bytes, a cache line
ALIGNMENT = 64
#: types of the fields of a generation config that are of one
_GENERATION_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("max_length", "min_length", "max_new_tokens", "min_new_tokens"), (int,)),
    **dict.fromkeys(("top_k", "num_beams", "num_return_sequences"), (int,)),
    **dict.fromkeys(("no_repeat_ngram_size",), (int,)),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p"), (int, float)),
    **dict.fromkeys(("repetition_penalty", "length_penalty"), (int, float)),
    **dict.fromkeys(("do_sample", "use_cache"), (bool,)),
}
#: which rules made a conversion: one by older rules is not read
CONVERSION = "2"


@dataclass(frozen=True)
class LoadedModel:
    """A decoder in evaluation mode, and its tokenizer; None for random weights."""

    source: ModelSource
    model: Any
    tokenizer: Any

    @property
    def layers(self) -> int:
        """Decoder layers d."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def context(self) -> int | None:
        """The model's maximum context in tokens, if it states one."""
        return context(self.model.config)

    @property
    def end_ids(self) -> frozenset[int]:
        """End-of-text tokens; random weights have none."""
        if self.tokenizer is None:
            return frozenset()
        found = self.model.generation_config.eos_token_id
        if found is None:
            found = self.tokenizer.eos_token_id
        return frozenset([found] if isinstance(found, int) else found or [])

    def encode(
        self, turns: Sequence[str], chat: bool = True, answers: Sequence[str] = ()
    ) -> list[int]:
        """As `encode_all`, for user messages and the model's answers to all but the last."""
        pairs = zip(turns[:-1], answers, strict=True)
        said = [(("user", turn), ("assistant", answer)) for turn, answer in pairs]
        messages = [message for pair in said for message in pair]
        return self.encode_all([[*messages, ("user", turns[-1])]], chat)[0]

    def encode_all(
        self,
        conversations: Sequence[Sequence[Message]],
        chat: bool = True,
        template_args: Mapping[str, Any] | None = None,
    ) -> list[list[int]]:
        """Token ids of each conversation, up to where the model answers.

        Args:
            conversations: messages in order, as (role, text).
            chat: whether to use the model's chat template; otherwise texts are concatenated.
            template_args: further variables of the template.

        Raises:
            InvalidInputError: a text has no tokens, or a chat template is wanted and missing,
                fails, drops a message or exceeds its budget, or there is no tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidInputError(
                f"a text must have a tokenizer to read it; got {self.source.name}, which has none; "
                "give token ids"
            )
        if not chat:
            texts = ["".join(text for _, text in messages) for messages in conversations]
        elif not self.tokenizer.chat_template:
            raise InvalidInputError(
                "the model must have a chat template; got a tokenizer without one; use --raw"
            )
        else:
            texts = render(self.tokenizer, conversations, template_args or {})
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        found = []
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InvalidInputError(
                    "each prompt must be Unicode text; got half a character (a lone surrogate) in "
                    f"{text[:EXCERPT]!a}; repair it"
                ) from None
            ids: list[int] = self.tokenizer(text, add_special_tokens=not chat).input_ids
            if not ids:
                raise InvalidInputError(
                    f"each prompt must have tokens; got none for {text[:EXCERPT]!r}"
                )
            if max(ids) >= vocabulary:
                raise InvalidInputError(
                    f"the tokenizer must fit the model; got token {max(ids)} of a vocabulary of "
                    f"{vocabulary}; get both from one place"
                )
            found.append(ids)
        return found

    def check_room(self, prompt_id: str, n_ids: int, room: int) -> None:
        """Raise `InvalidInputError` where a prompt and its answers may exceed the context."""
        if self.context and n_ids + room > self.context:
            raise InvalidInputError(
                f"prompt and new tokens must fit the model's context of {self.context}; got "
                f"{n_ids} + {room} for prompt {prompt_id!r}; shorten one of them"
            )

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, without special ones; their ids without a tokenizer."""
        if self.tokenizer is None:
            return " ".join(map(str, token_ids))
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text


def check_hardware(dtype: str, device: str | None, device_map: str | None) -> None:
    """Raise `InvalidInputError` for a type, a device or a device map that is not known.

    Weights must convert to `dtype`, torch must put a tensor on `device`, and Accelerate know the
    map; None needs no check.
    """
    if dtype not in DTYPES:
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    try:
        if device is not None and torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidInputError(
            "device must be one that this torch can use; "
            f"got {device!r} ({excerpt(error)}); use cpu"
        ) from None
    if device_map is not None and device_map not in DEVICE_MAPS:
        raise InvalidInputError(
            f"device_map must be one of {', '.join(DEVICE_MAPS)}; got {device_map!r}"
        )


def load_model(
    source: ModelSource,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | None = None,
) -> LoadedModel:
    """Load a model, weights converted to `dtype`.

    A GGUF file is converted to safetensors the first time, in the cache of `cache_dir`, and read
    from there afterwards.

    Args:
        source: where it is.
        dtype: "float32", "bfloat16" or "float16".
        device: of the whole model, such as "cpu" or "cuda:1".
        device_map: Accelerate's placement over several devices instead, such as "auto".

    Raises:
        InvalidInputError: no such dtype or device, the model is no decoder with a language-model
            head, its files do not make a model or hold weights that the model leaves out, its
            weights are not finite numbers, or its generation config is not well-formed.
        RunFailedError: a file cannot be read, or the memory is too small.
    """
    check_hardware(dtype, device, device_map)
    with quiet():
        tokenizer, model = _loaded(source, dtype, device_map or {"": device})
    _check_finite(source, model)
    _check_generation(source, vars(model.generation_config))
    _align(model)
    return LoadedModel(source=source, model=model.eval().requires_grad_(False), tokenizer=tokenizer)


def _loaded(
    source: ModelSource, dtype: str, device_map: str | Mapping[str, str]
) -> tuple[Any, Any]:
    folder = _converted(source) if source.gguf else None
    if folder is not None:
        try:
            return _read(source, folder, dtype, device_map)
        except (InvalidInputError, RunFailedError):  # the conversion is damaged; repeat it
            shutil.rmtree(folder, ignore_errors=True)
            folder = _converted(source)
    return _read(source, folder or source.folder, dtype, device_map)


def _read(
    source: ModelSource, folder: Path, dtype: str, device_map: str | Mapping[str, str]
) -> tuple[Any, Any]:
    """Read the source's own folder, or that of its conversion."""
    generation = folder / "generation_config.json"
    if generation.is_file():
        _check_generation(source, json_of(generation))
    if (folder / TOKENIZER_CONFIG).is_file():
        json_of(folder / TOKENIZER_CONFIG)
    path = source.gguf if source.gguf and folder == source.folder else None
    gguf = {"gguf_file": str(path.resolve())} if path else {}
    config, held = _configured(source, folder, path, gguf)
    with explained(f"the tokenizer of {source.place}", lambda: path or fault_of_tokenizer(folder)):
        tokenizer = read_tokenizer(folder, **gguf)
    with explained(f"the weights of {source.place}", lambda: path or folder):
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            device_map=device_map,
            use_safetensors=None if path else True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and rejected below
            **gguf,
        )
    check_taken(source.place, model, loading, held)
    return tokenizer, model


def _configured(
    source: ModelSource, folder: Path, path: Path | None, gguf: Mapping[str, str]
) -> tuple[Any, dict[str, Held]]:
    """The configuration of a GGUF file, or of a folder with what its weights' files hold.

    Raises:
        InvalidInputError: no model can be made of it, or one with weights of other sizes.
    """
    if path:
        with explained(f"the header of {source.place}", lambda: path):
            config = transformers.AutoConfig.from_pretrained(
                folder, trust_remote_code=False, **gguf
            )
            header = read_header(path)
            scale_positions(config, header, path)
            model = model_without_weights(config)
        check_used(model, header, path)
        return config, {}
    document = json_of(folder / CONFIG)
    if not isinstance(document, dict):
        raise InvalidInputError(
            f"{folder / CONFIG} must be a JSON object; got {type(document).__name__}; get it again"
        )
    if document.get("transformers_weights", WEIGHTS_FILE) != WEIGHTS_FILE:
        raise InvalidInputError(
            f"transformers_weights in {folder / CONFIG} must be {WEIGHTS_FILE}; got "
            f"{excerpt(ValueError(document['transformers_weights']))!r}; rename the file"
        )
    check_all_used(folder)
    held = tensors_in(weight_files(folder))
    with explained(f"the configuration of {source.place}", lambda: fault_of_config(document)):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model, quantized = model_without_weights(config), is_quantized(source.place, config)
    if not quantized:
        check_tensors(source.place, model, held)
    return config, held


def _check_finite(source: ModelSource, model: Any) -> None:
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(torch.isfinite(weight.sum(dtype=torch.float32))):
            raise InvalidInputError(
                f"the weights of {source.place} must be finite numbers; got NaN or infinity in "
                f"{name}; get the file again, or use another --dtype"
            )


def _check_generation(source: ModelSource, config: Any) -> None:
    """Refuse fields of another type, such as an end token given as text: it would end no text."""
    if not isinstance(config, Mapping):
        raise InvalidInputError(
            f"the generation config of {source.place} must be a JSON object; got "
            f"{type(config).__name__}; correct generation_config.json"
        )
    for name, value in config.items():
        is_ids = name.endswith("_token_id")
        kinds = (int,) if is_ids else _GENERATION_TYPES.get(name)
        values = value if is_ids and isinstance(value, list) else [value]
        if value is not None and kinds and not all(type(one) in kinds for one in values):
            kind = "a token id, or a list of them" if is_ids else kinds[-1].__name__
            raise InvalidInputError(
                f"{name} in the generation config of {source.place} must be {kind}; got "
                f"{str(value)[:80]!r}; correct generation_config.json"
            )


def _align(model: Any) -> None:
    """Copy memory-mapped weights to addresses aligned for fast matrix products."""
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


# ---------------------------------------------------------------- GGUF files, converted once


def _converted(source: ModelSource) -> Path | None:
    """Convert a GGUF file once; return the cached folder, or None if it cannot be written."""
    home = cache_dir() / "converted"
    folder = (
        home / f"{source.weights_sha256[0]}-transformers-{transformers.__version__}-{CONVERSION}"
    )
    if (folder / CONFIG).is_file():  # folders are renamed into place when whole
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        with only_one(home / LOCK_FILE) as alone:
            if (folder / CONFIG).is_file():  # another process has made it meanwhile
                return folder
            for left in home.glob(".part-*") if alone else ():  # by killed processes
                shutil.rmtree(left, ignore_errors=True)
            return _convert(source, folder, Path(tempfile.mkdtemp(prefix=".part-", dir=home)))
    except OSError:  # the cache is not writable: read the GGUF file each time
        return None


def _convert(source: ModelSource, folder: Path, part: Path) -> Path | None:
    """Convert a GGUF file into the folder `part` and rename it; None where that fails."""
    try:
        tokenizer, model = _read(source, source.folder, "float32", {"": "cpu"})
        model.hf_quantizer = None  # saving is refused with the marks of GGUF quantization
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        with suppress(Exception):  # on a full disk the libraries raise various types
            tokenizer.save_pretrained(part)
            model.save_pretrained(part)
            for path in (*part.iterdir(), part):
                flush(path)
            part.rename(folder)  # fails where another process was first
            flush(folder.parent)
        return folder if (folder / CONFIG).is_file() else None
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the loaders' progress bars and log messages."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    # some progress bars have no switch
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        try:
            yield
        finally:
            logging.set_verbosity(level)
            logging.enable_progress_bar()
            enable_progress_bars()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads, then restore the former number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
