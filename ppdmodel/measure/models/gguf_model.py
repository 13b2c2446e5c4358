"""What a GGUF file states against the model that Transformers makes of it.

Transformers reads some of a header's fields and the tensors that its class has places for, and
leaves out the rest. Scaling of positions is added here; anything else that is left out is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from .gguf_header import GgufHeader, Tensor

#: divisors of the rotary frequencies, in files of Llama 3.1 and later
DIVISORS = "rope_freqs.weight"
ROPE = "rope.scaling."
#: fields that do not enter a prediction, or whose sizes the tensors' shapes confirm
CONFIRMED = frozenset({
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
    "expert_feed_forward_length", "expert_shared_feed_forward_length", "tensor_data_layout",
    "nextn_predict_layers", "rope.scaling.finetuned",
})  # fmt: skip
#: by field: where the configuration of a model may have its value
NAMES: Mapping[str, tuple[str, ...]] = {
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("global_head_dim", "head_dim"),
    "attention.value_length": ("global_head_dim", "head_dim"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": (
        "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps",
    ),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_weights_norm": ("norm_topk_prob",),
    "use_parallel_residual": ("use_parallel_residual",),
    "full_attention_interval": ("full_attention_interval",),
    "shortconv.l_cache": ("conv_L_cache",),
    "ssm.conv_kernel": ("linear_conv_kernel_dim", "conv_kernel"),
    "ssm.state_size": ("linear_key_head_dim", "state_size"),
    "ssm.group_count": ("linear_num_key_heads",),
    "ssm.time_step_rank": ("linear_num_value_heads", "time_step_rank"),
    "ssm.inner_size": ("intermediate_size",),
}  # fmt: skip
#: fields of yarn, and their names in a configuration
YARN: Mapping[str, str] = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
SCALING = ("type", "factor", *YARN)
NEUTRAL = ("attn_factor", "yarn_attn_factor", "yarn_ext_factor")
#: arrays that Transformers reads
ARRAYS = frozenset({"rope.dimension_sections", "attention.head_count_kv", "feed_forward_length"})


def scale_positions(config: Any, header: GgufHeader, path: Path) -> None:
    """Give a configuration the scaling of positions that a header states.

    Divisors of the frequencies become the factors of `longrope`, the same for short and long texts.

    Args:
        config: as Transformers reads it from the header; changed.
        header: of the file.
        path: the file, whose divisors are read.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or rope.get("rope_type") != "default":
        return
    kind, factor = _scaling(header)
    divisors = _divisors(header, path)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(width * rope.get("partial_rotary_factor", 1))
    if kind == "yarn" and divisors is None:
        stated = {name: _field(header, ROPE + field) for field, name in YARN.items()}
        rope |= {"rope_type": "yarn", "factor": factor}
        rope |= {name: value for name, value in stated.items() if value is not None}
        rope.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    elif divisors is not None and kind in ("none", "linear") and 2 * len(divisors) == rotated:
        factors = (factor * divisors).tolist()
        rope |= {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": config.max_position_embeddings,
        }
    elif kind == "linear" and divisors is None:
        rope |= {"rope_type": "linear", "factor": factor}


def check_used(model: Any, header: GgufHeader, path: Path) -> None:
    """Raise where a model leaves out a tensor of the file, or has another value than a field.

    Args:
        model: of the file's configuration, with or without its weights.
        header: of the file.
        path: the file.

    Raises:
        InvalidInputError: the message names the tensor or the field.
    """
    fix = "give the model as a folder with safetensors"
    for tensor, place in _places(model, header):
        if place is None and not _changes_nothing(model, header, path, tensor):
            raise InvalidInputError(
                f"all tensors of a GGUF file must be used; got {path}, whose {tensor.name} has no "
                f"place in Transformers' model of a {header.architecture}; {fix}"
            )
        if place is not None and place != math.prod(tensor.shape):
            raise InvalidInputError(
                f"tensors of a GGUF file must have the sizes that its fields state; got {path}, "
                f"whose {tensor.name} has {math.prod(tensor.shape)} weights instead of {place}; "
                "get the file again"
            )
    prefix, values = f"{header.architecture}.", _values_of(model, header)
    for key, value in header.fields.items():
        field = key.removeprefix(prefix)
        if not key.startswith(prefix) or field in (ARRAYS if value is None else CONFIRMED):
            continue
        known = values.get(field)
        if not (_is_nothing(field, value) if known is None else _same(value, known)):
            other = "which Transformers does not read" if known is None else f"read as {known!r}"
            raise InvalidInputError(
                f"all fields of a GGUF file must be used; got {path}, whose {key} is "
                f"{'an array' if value is None else repr(value)}, {other}; {fix}"
            )


def _places(model: Any, header: GgufHeader) -> Iterator[tuple[Tensor, int | None]]:
    """Tensors, and how many weights the model has for each; None where it has no place for one."""
    from transformers.integrations.gguf import GGUF_ARCHS
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    if header.architecture in GGUF_ARCHS:  # the loader itself reports what it leaves out
        return
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    names: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for part in (model.base_model, model):  # names may start at either; further parts take minutes
        state = part.state_dict()
        alone = SimpleNamespace(config=model.config, state_dict=state.copy, named_children=list)
        names |= get_gguf_hf_weights_map(alone, processor({}))
        sizes |= {name: place.numel() for name, place in state.items()}
    if header.architecture == "gpt2":  # read under another name
        names["output.weight"] = "lm_head.weight"
    for tensor in header.tensors:
        whole = math.prod(tensor.shape)
        if tensor.name in names:
            yield tensor, sizes.get(names[tensor.name], whole)
        else:  # experts of several tensors share a place
            yield tensor, whole if tensor.name.removesuffix(".weight") in names else None


def _changes_nothing(model: Any, header: GgufHeader, path: Path, tensor: Tensor) -> bool:
    """Whether a tensor without a place is used otherwise, or is neutral."""
    if tensor.name == DIVISORS:
        divisors, rope = _divisors(header, path), getattr(model.config, "rope_parameters", None)
        factors = (rope or {}).get("long_factor")
        return divisors is None or factors == (_scaling(header)[1] * divisors).tolist()
    return tensor.name.endswith(".bias") and not _values(path, header, tensor).any()


def _divisors(header: GgufHeader, path: Path) -> np.ndarray[Any, Any] | None:
    """The divisors of the frequencies, unless there are none or all are 1."""
    tensor = next((tensor for tensor in header.tensors if tensor.name == DIVISORS), None)
    values = None if tensor is None else _values(path, header, tensor)
    return None if values is None or np.all(values == 1) else values


def _values(path: Path, header: GgufHeader, tensor: Tensor) -> np.ndarray[Any, Any]:
    """A vector in the file, as numbers; an unknown type gives NaN, which equals nothing."""
    kinds = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
    if tensor.kind not in kinds:
        return np.full(math.prod(tensor.shape), np.nan)
    place, count = header.data_start + tensor.offset, math.prod(tensor.shape)
    return np.fromfile(path, kinds[tensor.kind], count, offset=place).astype(np.float64)


def _field(header: GgufHeader, name: str) -> Any:
    return header.fields.get(f"{header.architecture}.{name}")


def _scaling(header: GgufHeader) -> tuple[str, float]:
    """The kind of scaling of positions and its factor; without a kind, a factor is linear."""
    factor = _field(header, ROPE + "factor")
    kind = _field(header, ROPE + "type")
    if not isinstance(factor, (int, float)) or factor in (0, 1) or kind == "none":
        return ("none" if kind in (None, "none", "linear", "yarn") else str(kind)), 1.0
    return str(kind or "linear"), float(factor)


def _values_of(model: Any, header: GgufHeader) -> dict[str, Any]:
    """What the model has for fields of the header; None where that is not known."""
    config = model.config.get_text_config()
    values: dict[str, Any] = {}
    for field, names in NAMES.items():
        found = (getattr(config, name, None) for name in names)
        values[field] = next((value for value in found if value is not None), None)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or (heads and config.hidden_size // heads)
    rotated = [2 * b.numel() for name, b in model.named_buffers() if name.endswith("inv_freq")]
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope  # where layers differ, those that see the whole text
    values["attention.key_length"] = values["attention.key_length"] or width
    values["attention.value_length"] = values["attention.value_length"] or width
    values["attention.scale"] = _field(header, "attention.scale") and width**-0.5
    values["rope.freq_base"] = rope.get("rope_theta")
    values["rope.dimension_count"] = max(rotated, default=None)
    window, context = (_field(header, n) for n in ("attention.sliding_window", "context_length"))
    if values["attention.sliding_window"] is None and window and context and window >= context:
        values["attention.sliding_window"] = window  # wider than any text
    return values | _scaling_of(header, rope)


def _scaling_of(header: GgufHeader, rope: Mapping[str, Any]) -> dict[str, Any]:
    """What the model has for fields of the scaling of positions."""
    kind, _ = _scaling(header)
    used = rope.get("rope_type")
    values = {ROPE + name: _field(header, ROPE + name) for name in SCALING}  # if they say nothing
    values |= dict.fromkeys((f"{ROPE}{name}" for name in NEUTRAL), 1)
    if kind != "none" and not (kind == "linear" and used == "longrope"):  # or in the divisors
        values |= {f"{ROPE}type": used, f"{ROPE}factor": rope.get("factor")}
    if kind not in ("none", "linear"):
        values |= {f"{ROPE}{field}": rope.get(name, 0) for field, name in YARN.items()}
    return values


def _is_nothing(field: str, value: Any) -> bool:
    if field == "attention.causal":
        return bool(value)
    return value in (0, "", "none") or (field.endswith("scale") and value == 1)


def _same(value: Any, other: Any) -> bool:
    numbers = isinstance(value, (int, float)) and isinstance(other, (int, float))
    return math.isclose(value, other, rel_tol=1e-6) if numbers else value == other
