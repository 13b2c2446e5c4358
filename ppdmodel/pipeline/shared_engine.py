"""A model's weights, packed in shared memory for its workers, and checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InvalidInputError, RunFailedError, excerpt
from ..measure.decoder.exit import TOLERANCE, Exit
from ..measure.decoder.lengths import changes
from .devices import CPU
from .engine import Engine, read_tokens
from .engine_shape import EngineShape
from .kv_cache import KVCache
from .packing import Unpacked, as_arrays, is_product, packed, shared_weights
from .shared_memory import SharedTensors, shared_copy
from .tensor_parallel import Communicator, shard_of

if TYPE_CHECKING:
    from ..measure.models.loading import LoadedModel
    from .cpu_engine import CpuEngine

#: the text on which the logits of an engine and its model are compared, modulo the vocabulary
PROBE_IDS = tuple(7 * n + 31 for n in range(12))
PROBE = len(PROBE_IDS)
#: how many times the rounding of a model in a short number format an engine may deviate
ROUNDINGS = 4


@dataclass(frozen=True)
class SharedEngine:
    """An engine that spawned processes can open: its weights are in shared memory, packed.

    Attributes:
        shape: its sizes.
        weights: its weights, by name.
        dtype: in which a device computes.
        probed: its logits on the CPU in `probe`, to compare those of a device or of shards with;
            shared too, since a new process is given its arguments through a pipe of 64 KiB.
        tolerance: how far such logits may be from these, relative to the largest.
    """

    shape: EngineShape
    weights: SharedTensors
    dtype: torch.dtype
    probed: SharedTensors
    tolerance: float

    def open(
        self, device: str = CPU, communicator: Communicator | None = None
    ) -> Engine | CpuEngine:
        """The engine, or one shard of it, in this process.

        A shard, or an engine on a device, must give the logits of the whole engine on the CPU.

        Args:
            device: where to copy the weights; on "cpu" they stay in shared memory.
            communicator: between the units that hold the shards; None opens the whole engine.

        Raises:
            RunFailedError: the logits differ.
        """
        weights = self.weights.tensors()
        if device == CPU:
            engine = on_cpu(self.shape, weights, communicator)
        else:
            engine = _on_device(self.shape, weights, communicator, device, self.dtype)
        if device == CPU and communicator is None:
            return engine
        error = _relative_error(self.probed.tensor("logits"), probe(engine))
        if not error <= self.tolerance:
            raise RunFailedError(
                f"{device} must give the CPU's logits; got {error:.2g} of the largest one away"
                "; use cpu"
            )
        return engine

    def close(self) -> None:
        """Close this process's handles of the shared memory."""
        self.weights.close()
        self.probed.close()


def on_cpu(
    shape: EngineShape, weights: Mapping[str, Tensor], communicator: Communicator | None = None
) -> Engine | CpuEngine:
    """An engine of packed weights, or one shard of it, on a CPU.

    In torch where Numba is not installed: a machine whose GPUs decode needs none.
    """
    if find_spec("numba") is None:
        return _on_device(shape, weights, communicator, CPU, torch.float32)
    from .cpu_engine import CpuEngine

    if communicator is None:
        return CpuEngine(shape, as_arrays(weights))
    shape, parts = shard_of(shape, Unpacked(weights, shape), communicator.shard)
    again = {name: packed(w) if is_product(name) else w for name, w in parts.items()}
    return CpuEngine(shape, as_arrays(again), communicator, as_arrays(weights)["head"])


def _on_device(
    shape: EngineShape,
    weights: Mapping[str, Tensor],
    communicator: Communicator | None,
    device: str,
    dtype: torch.dtype,
) -> Engine:
    parts: Mapping[str, Tensor] = Unpacked(weights, shape)
    if communicator is not None:
        shape, parts = shard_of(shape, parts, communicator.shard)
    placed = {name: _placed(name, weight, device, dtype) for name, weight in parts.items()}
    return Engine(shape, placed, communicator)


def _placed(name: str, weight: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """A weight on a device; those of linear layers are [out, in] in memory, as in `torch.nn`."""
    if is_product(name):
        return weight.t().to(device, dtype).contiguous().t()
    return weight.to(device, dtype if weight.is_floating_point() else weight.dtype)


def shared_engine(loaded: LoadedModel, exit_: Exit, text_tokens: int) -> SharedEngine:
    """Pack a model's weights, and its trained exits, in shared memory for an engine.

    The engine on a CPU computes in float32, whatever the format of the weights. It is compared with
    the model in float32, so that another architecture is told from rounding. A device that computes
    in a shorter format may deviate from these logits a few times as much as the model does.

    Args:
        loaded: a model, loaded on the CPU.
        exit_: from `logit_exit` or with trained maps.
        text_tokens: most tokens of a text with its prompt.

    Raises:
        InvalidInputError: the engine does not give the model's logits: another architecture.
    """
    model = loaded.model
    try:
        shape, tensors = _extract(model, exit_, text_tokens)
        weights = shared_weights(tensors)
        made = probe(on_cpu(shape, weights.tensors()))
        rounded = _reference_logits(model, shape)
        exact = (
            rounded
            if model.dtype == torch.float32
            else _in_float32(model, _reference_logits, shape)
        )
    except (AttributeError, KeyError, TypeError, RuntimeError) as failure:
        raise _unsupported(loaded, excerpt(failure)) from None
    error = _relative_error(exact, made)
    if not error <= TOLERANCE[torch.float32]:
        raise _unsupported(loaded, f"its logits were {error:.2g} of the largest one away")
    tolerance = max(TOLERANCE[model.dtype], ROUNDINGS * _relative_error(exact, rounded))
    probed = shared_copy({"logits": made})
    return SharedEngine(shape, weights, model.dtype, probed, tolerance)


def _in_float32(model: Any, read: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """What `read` gives of a model whose weights are in float32 meanwhile."""
    before = [(parameter, parameter.dtype) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.data = parameter.data.float()
        return read(model, *arguments)
    finally:
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)


def _unsupported(loaded: LoadedModel, why: str) -> InvalidInputError:
    return InvalidInputError(
        "real pipelined decoding runs decoders of Llama's build (Llama, Mistral, Qwen2, "
        f"Qwen3, SmolLM2); got {type(loaded.model).__name__}: {why}; measure and fit work for it"
    )


def _extract(model: Any, exit_: Exit, text_tokens: int) -> tuple[EngineShape, dict[str, Tensor]]:
    config, base = model.config.get_text_config(), model.model
    attention = base.layers[0].self_attn
    if getattr(config, "hidden_act", "silu") != "silu" or exit_.scale != 1 or exit_.softcap:
        raise AttributeError("another activation, or scaled logits")
    size = int(attention.head_dim)
    shape = EngineShape(
        layers=len(base.layers),
        width=base.embed_tokens.weight.shape[1],
        heads=attention.q_proj.weight.shape[0] // size,
        kv_heads=attention.k_proj.weight.shape[0] // size,
        head_size=size,
        inner=base.layers[0].mlp.gate_proj.weight.shape[0],
        vocabulary=exit_.vocabulary,
        epsilon=float(config.rms_norm_eps),
        scaling=float(attention.scaling),
    )
    for change in changes(config):
        if text_tokens > change.beyond:
            raise AttributeError(f"{change.what}, shorter than the text")
    positions = torch.arange(max(text_tokens, PROBE))[None]
    cos, sin = base.rotary_emb(torch.empty(0), positions)
    half = size // 2
    sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], 1)
    tensors = {"head": exit_.weight.t(), "cos": cos[0], "sin": sin}
    tensors["final_norm"] = base.norm.weight
    if exit_.weight.data_ptr() != base.embed_tokens.weight.data_ptr():
        tensors["embedding"] = base.embed_tokens.weight
    if exit_.bias is not None:
        tensors["head_bias"] = exit_.bias
    for index, layer in enumerate(base.layers):
        tensors |= {f"{index}.{key}": value for key, value in _layer(layer).items()}
    if exit_.shortlist is not None:
        listed = exit_.of_shortlist()
        tensors |= {"exit_head": listed.weight.t(), "exit_ids": exit_.shortlist}
        if listed.bias is not None:
            tensors["exit_bias"] = listed.bias
    for number, trained in exit_.maps.items():
        tensors |= {f"map.{number}": trained.weight.t(), f"map_bias.{number}": trained.bias}
    return shape, tensors


def _layer(layer: Any) -> dict[str, Tensor]:
    attention, mlp = layer.self_attn, layer.mlp
    found = {
        "norm": layer.input_layernorm.weight,
        "post_norm": layer.post_attention_layernorm.weight,
    }
    for name, parts in {
        "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
        "out": (attention.o_proj,),
        "gate_up": (mlp.gate_proj, mlp.up_proj),
        "down": (mlp.down_proj,),
    }.items():
        found[name] = torch.cat([part.weight for part in parts]).t()
        if parts[0].bias is not None:
            found[f"{name}_bias"] = torch.cat([part.bias for part in parts])
    if hasattr(attention, "q_norm"):
        found |= {"q_norm": attention.q_norm.weight, "k_norm": attention.k_norm.weight}
    return found


def _probe_ids(shape: EngineShape) -> Tensor:
    return torch.tensor([number % shape.vocabulary for number in PROBE_IDS])


@torch.inference_mode()
def probe(engine: Engine | CpuEngine) -> Tensor:
    """An engine's logits over a text, in float32 on the CPU: [PROBE - PROBE // 2 + 1, vocabulary].

    The first half is a prompt; the rest is decoded token by token in a batch with a wrong guess.
    """
    ids, device = _probe_ids(engine.shape), engine.device
    cache = KVCache(torch.zeros(engine.shape.cache(PROBE), dtype=engine.dtype, device=device))
    rows = torch.zeros(engine.shape.guesses(2), dtype=engine.dtype, device=device)
    made = [engine.logits(read_tokens(engine, ids[: PROBE // 2], 0, cache)[-1:])]
    for place in range(PROBE // 2, PROBE):
        x = engine.embed(torch.stack([ids[place], ids.min()]))  # the second row is a wrong guess
        for index in range(engine.shape.layers):
            x = engine.layer(index, x, place, cache, rows)
            cache.write(index, place, rows[index, :, 0][None, :, :, None])
        made.append(engine.logits(x)[:1])
    return torch.cat(made).cpu().float()


@torch.inference_mode()
def warm_up(engine: Engine | CpuEngine) -> None:
    """Run each part once, so that what is compiled when it is first used is there."""
    cache = KVCache(torch.zeros(engine.shape.cache(2), dtype=engine.dtype, device=engine.device))
    own = torch.zeros(engine.shape.guesses(2), dtype=engine.dtype, device=engine.device)
    x = engine.advance(0, engine.embed(torch.tensor([0])), 0, cache)
    engine.layer(0, torch.cat([x, x]), 1, cache, own)
    for exit_layer in (None, 1, *engine.maps):
        engine.logits(x, exit_layer).topk(1)


@torch.inference_mode()
def _reference_logits(model: Any, shape: EngineShape) -> Tensor:
    """The model's own logits where `probe` gives an engine's."""
    (logits,) = model(input_ids=_probe_ids(shape)[None]).logits.float()
    return torch.as_tensor(logits[PROBE // 2 - 1 :])


def _relative_error(right: Tensor, found: Tensor) -> float:
    """The largest absolute difference of logits over the largest absolute logit."""
    return float((found - right).abs().max() / right.abs().max())
