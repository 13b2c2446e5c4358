"""A decoder of the Llama architecture, run one layer and one token at a time.

The model's own code runs all layers in one call. Pipelined decoding must run them one by one: to
publish the input of an exit, to stop early, and to continue one row of a batch of guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InvalidInputError, RunFailedError, excerpt
from ..measure.decoder.exit import TOLERANCE, AffineMap, Exit
from ..measure.decoder.kernels import by_columns
from ..measure.decoder.lengths import changes
from .devices import CPU
from .engine_shape import EngineShape
from .shared_memory import SharedTensors, shared_copy
from .tensor_parallel import Communicator, shard_of

if TYPE_CHECKING:
    from ..measure.models.loading import LoadedModel

#: the text on which the logits of an engine and its model are compared, modulo the vocabulary
PROBE_IDS = tuple(7 * n + 31 for n in range(12))
PROBE = len(PROBE_IDS)
#: how many times the rounding of a model in a short number format an engine may deviate
ROUNDINGS = 4


class Engine:
    """Layers, exits and LM head of a model, or one shard of them.

    Hidden states are [rows, width]; all rows are guesses for the same position of the text.
    """

    def __init__(
        self,
        shape: EngineShape,
        weights: Mapping[str, Tensor],
        communicator: Communicator | None = None,
    ) -> None:
        self.shape, self.communicator = shape, communicator
        self.head_weight = weights["head"]  # [width, vocabulary], as all weights: [in, out]
        self.embedding = weights.get("embedding", self.head_weight.t())
        self.head_bias = weights.get("head_bias")
        self.final_norm = weights["final_norm"]
        self.cos, self.sin = weights["cos"], weights["sin"]
        self.layers = [
            {key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)}
            for prefix in (f"{index}." for index in range(shape.layers))
        ]
        maps = {name.removeprefix("map."): w for name, w in weights.items() if "map." in name}
        self.maps = {int(n): AffineMap(w, weights[f"map_bias.{n}"]) for n, w in maps.items()}

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, hidden states and KV cache."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where weights and hidden states are."""
        return self.embedding.device

    def embed(self, token_ids: Tensor) -> Tensor:
        """Hidden states [rows, width] before the first layer."""
        return self.embedding[token_ids.to(self.device)]

    def layer(self, index: int, x: Tensor, place: int, before: Tensor, own: Tensor) -> Tensor:
        """Run layer `index` (from 0) on guesses for one position of the text.

        Args:
            index: the layer.
            x: hidden states [rows, width].
            place: the position, which is the number of tokens before it.
            before: their keys and values, [2, kv heads, place, head size].
            own: receives the keys and values of the rows, of shape `EngineShape.guesses`.

        Returns:
            Hidden states [rows, width] after the layer.
        """
        layer, rows = self.layers[index], len(x)
        queries, keys, values = self._projected(x, layer, self.cos[place], self.sin[place])
        own[index, 0, :rows], own[index, 1, :rows] = keys, values
        return self._finished(x, self._attend(queries, keys, values, before), layer)

    def _projected(
        self, x: Tensor, layer: Mapping[str, Tensor], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [rows, heads, head size], keys and values [rows, kv heads, head size]."""
        rows, heads, kv, size = len(x), self.shape.heads, self.shape.kv_heads, self.shape.head_size
        qkv = by_columns(self._norm(x, layer["norm"]), layer["qkv"], layer.get("qkv_bias"))
        both = qkv[:, : (heads + kv) * size].view(rows, heads + kv, size)
        rotated = self._rotate(self._qk_norm(both, layer), cos, sin)
        values = qkv[:, (heads + kv) * size :].view(rows, kv, size)
        return rotated[:, :heads], rotated[:, heads:], values

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, before: Tensor) -> Tensor:
        """Attention of each row to the text `before` and to its own key and value."""
        rows, kv, size = keys.shape
        group = queries.shape[1] // kv
        queries = queries.reshape(rows, kv, group, size)
        flat = queries.transpose(0, 1).reshape(kv, rows * group, size)
        scores = flat.new_empty(kv, rows * group, before.shape[2] + 1)
        scores[:, :, :-1] = torch.bmm(flat, before[0].transpose(1, 2))
        scores[:, :, -1] = (queries * keys[:, :, None]).sum(-1).transpose(0, 1).reshape(kv, -1)
        weights = scores.mul_(self.shape.scaling).softmax(-1)
        mixed = torch.bmm(weights[:, :, :-1], before[1]).view(kv, rows, group, size)
        last = weights[:, :, -1].view(kv, rows, group, 1)
        mixed = mixed + last * values.transpose(0, 1)[:, :, None]
        return mixed.transpose(0, 1).reshape(rows, kv * group * size)

    def _finished(self, x: Tensor, attended: Tensor, layer: Mapping[str, Tensor]) -> Tensor:
        """The rest of a layer: the output product and the feed-forward layer."""
        x = x + self._all_reduce(by_columns(attended, layer["out"], layer.get("out_bias")))
        normed = self._norm(x, layer["post_norm"])
        both = by_columns(normed, layer["gate_up"], layer.get("gate_up_bias"))
        gate, up = both[:, : self.shape.inner], both[:, self.shape.inner :]
        gated = functional.silu(gate).mul_(up)
        return x + self._all_reduce(by_columns(gated, layer["down"], layer.get("down_bias")))

    def _all_reduce(self, x: Tensor) -> Tensor:
        return x if self.communicator is None else self.communicator.all_reduce(x)

    def read_prompt(self, token_ids: Tensor, cache: Tensor) -> Tensor:
        """Prefill: write the prompt's keys and values; returns its last hidden state [1, width]."""
        n, x = len(token_ids), self.embed(token_ids)
        cos, sin = self.cos[:n, None], self.sin[:n, None]
        for index, layer in enumerate(self.layers):
            queries, keys, values = self._projected(x, layer, cos, sin)
            cache[index, 0, :, :n] = keys.transpose(0, 1)
            cache[index, 1, :, :n] = values.transpose(0, 1)
            mixed = functional.scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                cache[index, 0, :, :n][None],
                cache[index, 1, :, :n][None],
                is_causal=True,
                scale=self.shape.scaling,
                enable_gqa=True,
            )
            x = self._finished(x, mixed[0].transpose(0, 1).reshape(n, -1), layer)
        return x[-1:]

    def logits(self, x: Tensor, exit_layer: int | None = None) -> Tensor:
        """Logits [rows, vocabulary] after the last layer, or of the exit after `exit_layer`."""
        normed = self._norm(x, self.final_norm)
        trained = self.maps.get(exit_layer) if exit_layer else None
        if trained is not None:
            normed = normed + trained(x)
        found = by_columns(normed, self.head_weight, self.head_bias)
        if self.communicator is None:
            return found
        return self.communicator.all_gather(found, self.shape.vocabulary)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.shape.epsilon)

    def _qk_norm(self, both: Tensor, layer: Mapping[str, Tensor]) -> Tensor:
        """QK-norm, where the model has it, of [rows, heads + kv heads, head size]."""
        if "q_norm" not in layer:
            return both
        queries = self._norm(both[:, : self.shape.heads], layer["q_norm"])
        keys = self._norm(both[:, self.shape.heads :], layer["k_norm"])
        return torch.cat([queries, keys], 1)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary position embedding; the first half of `sin` is negative."""
        return torch.addcmul(x * cos, x.roll(self.shape.head_size // 2, -1), sin)


#: weights [in, out] of linear layers
PRODUCTS = ("head", "qkv", "out", "gate_up", "down")


@dataclass(frozen=True)
class SharedEngine:
    """An engine that spawned processes can open: its weights are in shared memory.

    Attributes:
        shape: its sizes.
        weights: its weights, by name.
        probed: its logits on the CPU in `probe`, to compare those of another device with; shared
            too, since a new process is given its arguments through a pipe of 64 KiB.
        tolerance: how far such logits may be from these, relative to the largest.
    """

    shape: EngineShape
    weights: SharedTensors
    probed: SharedTensors
    tolerance: float

    def open(self, device: str = CPU, communicator: Communicator | None = None) -> Engine:
        """The engine, or one shard of it, in this process.

        A shard, or an engine on a device, must give the logits of the whole engine on the CPU.

        Args:
            device: where to copy the weights; on "cpu" they stay in shared memory.
            communicator: between the units that hold the shards; None opens the whole engine.

        Raises:
            RunFailedError: the logits differ.
        """
        shape, weights = self.shape, self.weights.tensors()
        if communicator is not None:
            shape, weights = shard_of(shape, weights, communicator.shard)
        if device != CPU:
            weights = {name: _placed(name, w, device) for name, w in weights.items()}
        engine = Engine(shape, weights, communicator)
        if device != CPU or communicator is not None:
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


def _placed(name: str, weight: Tensor, device: str) -> Tensor:
    """A weight on a device; those of linear layers are [out, in] in memory, as in `torch.nn`."""
    if name.rpartition(".")[2] in PRODUCTS:
        return weight.t().to(device).contiguous().t()
    return weight.to(device)


def shared_engine(loaded: LoadedModel, exit_: Exit, text_tokens: int) -> SharedEngine:
    """Copy a model's weights, and its trained exits, to shared memory for an engine.

    The engine and the model compute in float32 to be compared, whatever the number format, so that
    another architecture is told from rounding. In a shorter format the engine may then deviate from
    these logits a few times as much as the model does.

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
        weights = shared_copy(tensors)
        made, own = probe(Engine(shape, weights.tensors())), _reference_logits(model, shape)
        found, exact = (made, own) if model.dtype == torch.float32 else _exactly(model, exit_)
    except (AttributeError, KeyError, TypeError, RuntimeError) as failure:
        raise _unsupported(loaded, excerpt(failure)) from None
    error = _relative_error(exact, found)
    if not error <= TOLERANCE[torch.float32]:
        raise _unsupported(loaded, f"its logits were {error:.2g} of the largest one away")
    tolerance = max(TOLERANCE[model.dtype], ROUNDINGS * _relative_error(exact, own))
    error = _relative_error(exact, made)
    if not error <= tolerance:
        raise _unsupported(loaded, f"rounded, its logits were {error:.2g} of the largest one away")
    return SharedEngine(shape, weights, shared_copy({"logits": made}), tolerance)


def _exactly(model: Any, exit_: Exit) -> tuple[Tensor, Tensor]:
    """The logits of an engine and those of its model, both in float32.

    The model's weights are in float32 for as long, which holds shorter formats exactly.
    """
    before = [(parameter, parameter.dtype) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.data = parameter.data.float()
        shape, tensors = _extract(model, exit_, PROBE)
        return probe(Engine(shape, tensors)), _reference_logits(model, shape)
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
    cos, sin = base.rotary_emb(base.embed_tokens.weight, positions)
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
    for number, trained in exit_.maps.items():
        tensors |= {f"map.{number}": trained.weight, f"map_bias.{number}": trained.bias}
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
def probe(engine: Engine) -> Tensor:
    """An engine's logits over a text, in float32 on the CPU: [PROBE - PROBE // 2 + 1, vocabulary].

    The first half is a prompt; the rest is decoded token by token in a batch with a wrong guess.
    """
    ids, device = _probe_ids(engine.shape), engine.device
    cache = torch.zeros(engine.shape.cache(PROBE), dtype=engine.dtype, device=device)
    rows = torch.zeros(engine.shape.guesses(2), dtype=engine.dtype, device=device)
    x = engine.read_prompt(ids[: PROBE // 2], cache)
    made = [engine.logits(x)]
    for place in range(PROBE // 2, PROBE):
        x = engine.embed(torch.stack([ids[place], ids.min()]))  # the second row is a wrong guess
        for index in range(engine.shape.layers):
            x = engine.layer(index, x, place, cache[index, :, :, :place], rows)
            cache[index, :, :, place] = rows[index, :, 0]
        made.append(engine.logits(x)[:1])
    return torch.cat(made).cpu().float()


@torch.inference_mode()
def _reference_logits(model: Any, shape: EngineShape) -> Tensor:
    """The model's own logits where `probe` gives an engine's."""
    (logits,) = model(input_ids=_probe_ids(shape)[None]).logits.float()
    return torch.as_tensor(logits[PROBE // 2 - 1 :])


def _relative_error(right: Tensor, found: Tensor) -> float:
    """The largest absolute difference of logits over the largest absolute logit."""
    return float((found - right).abs().max() / right.abs().max())
