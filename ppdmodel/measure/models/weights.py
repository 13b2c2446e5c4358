"""What a model's files hold against what the loaded model took of them.

A loader leaves out each tensor that the model's class has no place for, and says so where nobody
looks. What is left out changes the model, unless the model never uses it to predict the next token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...errors import InvalidInputError, excerpt

#: types of weights that need no scale, and their fewest bytes
FLOATS, SMALLEST = frozenset({"F64", "F32", "F16", "BF16"}), 2
#: an index in a weight's name, such as its layer
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
#: tensors that no class reads: layers that predict further tokens, and tables that a model computes
IGNORED = re.compile(
    r"(^|\.)mtp(_\w+)?\.|rotary\w*\.(inv_freq|cos_cached|sin_cached)$|\.masked_bias$"
)
#: names under which a configuration counts layers that predict further tokens
EXTRA_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")


@dataclass(frozen=True)
class Held:
    """A tensor in a safetensors file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def tensors_in(files: Iterable[Path]) -> dict[str, Held]:
    """The tensors of safetensors files by name, none of them read.

    Raises:
        InvalidInputError: a file is no whole safetensors file, or two hold a tensor of one name.
    """
    found: dict[str, Held] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a mapping
                    if name in found:
                        raise InvalidInputError(
                            f"the tensors of a model must differ in name; got {name} in "
                            f"{found[name].path.name} and in {path}; get the model again"
                        )
                    view = file.get_slice(name)
                    found[name] = Held(path, view.get_dtype(), tuple(view.get_shape()))
        except SafetensorError as error:
            raise InvalidInputError(
                f"weights must be whole safetensors files; got {path} ({excerpt(error)}); "
                "get the file again"
            ) from None
    return found


def check_tensors(source: Path, model: Any, held: Mapping[str, Held]) -> None:
    """Raise where tensors have other sizes or types than the weights of a model.

    Weights as integers or in eight bits are others without their scales.

    Args:
        source: the model's file or folder, for messages.
        model: made of the configuration alone, without quantization.
        held: what its files hold.

    Raises:
        InvalidInputError: the message names the tensor.
    """
    places = model.state_dict()
    taken: dict[str, str] = {}
    is_table = _tables(model, held)
    for key, tensor in held.items():
        name_in_model = _place(model, key, places)
        place = places.get(name_in_model)
        if place is not None and taken.setdefault(name_in_model, key) != key:
            raise InvalidInputError(
                f"the tensors of {source} must have one place each; got {taken[name_in_model]} and "
                f"{key} for the same; get the file again"
            )
        if place is not None and place.numel() != math.prod(tensor.shape):
            raise InvalidInputError(
                f"the weights of {source} must be whole and of the stated sizes; got {key} of "
                f"{_by(tensor.shape)}, where config.json says {_by(place.shape)}; get both from "
                "one place"
            )
        is_number = place is None or place.is_floating_point()
        if tensor.dtype not in FLOATS and is_number and not is_table(key):
            raise InvalidInputError(
                f"the weights of {source} must be floating-point numbers of 16 bits or more, or "
                f"have a quantization_config in config.json; got {key} of type {tensor.dtype}; "
                "get the model without quantization"
            )


def check_taken(
    source: Path, model: Any, loading: Mapping[str, Iterable[Any]], held: Mapping[str, Held]
) -> None:
    """Raise where the loaded model is not the one that its files hold.

    Args:
        source: the model's file or folder, for messages.
        model: as it was loaded.
        loading: what Transformers reports of it (`output_loading_info`).
        held: what its files hold; empty for a GGUF file.

    Raises:
        InvalidInputError: weights are missing, not used, or quantized in a way that is not undone.
    """
    missing = sorted(map(str, loading["missing_keys"]))
    missing += sorted(name for name, *_shapes in loading.get("mismatched_keys", ()))
    if missing:  # Transformers initializes them at random
        raise InvalidInputError(
            f"the weights of {source} must be whole and of the stated sizes; got none such for "
            f"{missing[0]} and {len(missing) - 1} more; get the file again"
        )
    packed = [
        key
        for key, weight in model.named_parameters()
        if weight.is_floating_point() and weight.element_size() < SMALLEST
    ]
    if packed and not getattr(model.config, "quantization_config", None):
        raise InvalidInputError(
            f"the weights of {source} must have their scales; got none for {packed[0]} and "
            f"{len(packed) - 1} more; get the file again"
        )
    unused = _unused(model, loading["unexpected_keys"], held)
    beyond = layers_beyond(model, unused)
    if beyond:
        raise InvalidInputError(
            f"the configuration of {source} must name all layers of its weights; got none for "
            f"{beyond[0]} and {len(beyond) - 1} more; get config.json again"
        )
    if unused:
        raise InvalidInputError(
            f"all weights of {source} must be used; got no place in a {model.config.model_type} "
            f"model of this configuration for {unused[0]} and {len(unused) - 1} more; get "
            "config.json and the weights from one place"
        )


def is_quantized(source: Path, config: Any) -> bool:
    """Whether weights are quantized by a method that Transformers undoes.

    Raises:
        InvalidInputError: the configuration names another method.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    places = (vars(config), vars(config.get_text_config()))
    stated = [place["quantization_config"] for place in places if "quantization_config" in place]
    found = next((one for one in stated if one is not None), None)
    if found is None:
        return False
    method = found.get("quant_method") if isinstance(found, dict) else found
    if not method or not AutoHfQuantizer.supports_quant_method(found):
        raise InvalidInputError(
            f"the weights of {source} must be quantized by a method that Transformers reads; got "
            f"quant_method {method!r} of the quantization_config in config.json; get the model "
            "without quantization"
        )
    return True


def layers_beyond(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Unexpected weights of further layers: their names match those of the first layer."""
    places = set(model.state_dict())
    layers = {place[: number.end()] for place in places for number in NUMBER.finditer(place)}
    beyond = []
    for key in unexpected:
        number = NUMBER.search(key)
        if number and key[: number.end()] not in layers and NUMBER.sub("0", key, 1) in places:
            beyond.append(key)
    return sorted(beyond)


def _unused(model: Any, unexpected: Iterable[Any], held: Mapping[str, Held]) -> list[str]:
    """Tensors without a place in the model that would change what it predicts."""
    extra = _extra_layers(model, held)
    is_table = _tables(model, held)
    unused = []
    for key in sorted(map(str, unexpected)):
        number = NUMBER.search(key)
        is_extra = number is not None and key[: number.end()] in extra
        if not (is_extra or is_table(key) or _is_zero_bias(key, held)):
            unused.append(key)
    return unused


def _tables(model: Any, held: Mapping[str, Held]) -> Callable[[str], bool]:
    """Whether a tensor's name is that of numbers that a model computes, or that no class reads."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    left_out = re.compile("|".join(f"({pattern})" for pattern in [IGNORED.pattern, *patterns]))
    buffers = {buffer for buffer, _ in model.named_buffers()}

    def is_table(key: str) -> bool:
        shape = held[key].shape if key in held else ()
        is_mask = key.endswith(".bias") and len(shape) == 4 and shape[0] == shape[1] == 1
        return bool(is_mask or left_out.search(key) or _place(model, key, buffers) in buffers)

    return is_table


def _is_zero_bias(key: str, held: Mapping[str, Held]) -> bool:
    if not key.endswith(".bias") or key not in held:
        return False
    with safe_open(held[key].path, "pt") as file:
        return not bool(file.get_tensor(key).any())


def _extra_layers(model: Any, held: Mapping[str, Held]) -> set[str]:
    """Beginnings of names of layers that predict further tokens and follow the model's own.

    The configuration counts them, and each joins a state and an embedding by a matrix [width, 2
    width], which no other layer has.
    """
    config = model.config.get_text_config()
    counts = (getattr(config, name, None) for name in EXTRA_LAYERS)
    count = next((n for n in counts if isinstance(n, int) and not isinstance(n, bool)), 0)
    own = range(config.num_hidden_layers, config.num_hidden_layers + count)
    known = {NUMBER.sub("0", place, 1) for place in model.state_dict()}
    found = set()
    for key, tensor in held.items():
        number = NUMBER.search(key)
        if (
            number
            and int(number[0]) in own
            and tensor.shape == (config.hidden_size, 2 * config.hidden_size)
            and NUMBER.sub("0", key, 1) not in known
        ):
            found.add(key[: number.end()])
    return found


def _place(model: Any, key: str, places: Collection[str]) -> str:
    """A tensor's name in the model: files may omit the prefix of the base model, or add it."""
    prefix = f"{model.base_model_prefix}."
    names = (key, prefix + key, key.removeprefix(prefix))
    return next((name for name in names if name in places), key)


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"
