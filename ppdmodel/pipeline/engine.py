"""A decoder of the Llama architecture, run one layer and a few tokens at a time.

The model's own code runs all layers in one call. Pipelined decoding must run them one by one: to
publish the input of an exit, to stop early, and to continue one row of a batch of guesses. On a CPU
`cpu_engine` does the same with compiled kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ..measure.decoder.exit import AffineMap
from .engine_shape import EngineShape
from .kv_cache import KVCache
from .tensor_parallel import Communicator

if TYPE_CHECKING:
    from .cpu_engine import CpuEngine

#: tokens of a prompt that are read at once
PROMPT_ROWS = 256


class Engine:
    """Layers, exits and LM head of a model, or one shard of them, in torch on a device.

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
        self.exit_head = weights.get("exit_head")  # [width, shortlist]: columns of the head
        self.exit_ids = weights.get("exit_ids")  # the token ids of these columns
        self.exit_bias = weights.get("exit_bias")
        self.final_norm = weights["final_norm"]
        self.cos, self.sin = weights["cos"], weights["sin"]
        self.layers = [
            {key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)}
            for prefix in (f"{index}." for index in range(shape.layers))
        ]
        maps = {name.removeprefix("map."): w for name, w in weights.items() if "map." in name}
        self.maps = {int(n): AffineMap(w.t(), weights[f"map_bias.{n}"]) for n, w in maps.items()}
        self._own = torch.zeros(shape.guesses(1), dtype=self.dtype, device=self.device)

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

    def layer(self, index: int, x: Tensor, place: int, cache: KVCache, own: Tensor) -> Tensor:
        """Run layer `index` (from 0) on guesses for one position of the text.

        Args:
            index: the layer.
            x: hidden states [rows, width].
            place: the position, which is the number of tokens before it.
            cache: keys and values of the tokens before it.
            own: receives the keys and values of the rows, of shape `EngineShape.guesses`.

        Returns:
            Hidden states [rows, width] after the layer.
        """
        layer, rows, before = self.layers[index], len(x), cache.before(index, place)
        queries, keys, values = self._projected(x, layer, self.cos[place], self.sin[place])
        own[index, 0, :rows], own[index, 1, :rows] = keys, values
        return self._finished(x, self._attend(queries, keys, values, before), layer)

    def advance(self, index: int, x: Tensor, place: int, cache: KVCache) -> Tensor:
        """Run layer `index` on tokens that follow each other from `place` on.

        Their keys and values are written to the cache. One token is computed as by `layer`.
        """
        if len(x) == 1:
            x = self.layer(index, x, place, cache, self._own)
            cache.write(index, place, self._own[index, :, 0][None, :, :, None])
            return x
        end, layer = place + len(x), self.layers[index]
        cos, sin = self.cos[place:end, None], self.sin[place:end, None]
        queries, keys, values = self._projected(x, layer, cos, sin)
        cache.before(index, place)
        cache.write(index, place, torch.stack([keys, values]).transpose(1, 2)[None])
        keys, values = cache.before(index, end)
        seen = torch.ones(len(x), end, dtype=torch.bool, device=x.device).tril(place)
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=seen,
            scale=self.shape.scaling,
            enable_gqa=True,
        )
        return self._finished(x, mixed[0].transpose(0, 1).reshape(len(x), -1), layer)

    def _projected(
        self, x: Tensor, layer: Mapping[str, Tensor], cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [rows, heads, head size], keys and values [rows, kv heads, head size]."""
        rows, heads, kv, size = len(x), self.shape.heads, self.shape.kv_heads, self.shape.head_size
        qkv = _linear(self._norm(x, layer["norm"]), layer["qkv"], layer.get("qkv_bias"))
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
        x = x + self._all_reduce(_linear(attended, layer["out"], layer.get("out_bias")))
        normed = self._norm(x, layer["post_norm"])
        both = _linear(normed, layer["gate_up"], layer.get("gate_up_bias"))
        gate, up = both[:, : self.shape.inner], both[:, self.shape.inner :]
        gated = functional.silu(gate).mul_(up)
        return x + self._all_reduce(_linear(gated, layer["down"], layer.get("down_bias")))

    def _all_reduce(self, x: Tensor) -> Tensor:
        return x if self.communicator is None else self.communicator.all_reduce(x)

    def logits(self, x: Tensor, exit_layer: int | None = None) -> Tensor:
        """Logits [rows, vocabulary] after the last layer, or of the exit after `exit_layer`.

        Of an exit with a shortlist, [rows, shortlist]: those of the tokens `exit_ids`.
        """
        normed = self._norm(x, self.final_norm)
        trained = self.maps.get(exit_layer) if exit_layer else None
        if trained is not None:
            normed = normed + trained(x)
        if exit_layer and self.exit_head is not None:
            return _linear(normed, self.exit_head, self.exit_bias)
        found = _linear(normed, self.head_weight, self.head_bias)
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


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """States [rows, in] times a weight [in, out]."""
    product = (weight.t() @ x[0])[None] if len(x) == 1 else x @ weight
    return product if bias is None else product + bias


def read_tokens(
    engine: Engine | CpuEngine, token_ids: Tensor, place: int, cache: KVCache
) -> Tensor:
    """Run tokens that follow each other through all layers; hidden states [tokens, width]."""
    parts = []
    for ids in torch.split(token_ids, PROMPT_ROWS):
        x = engine.embed(ids)
        for index in range(engine.shape.layers):
            x = engine.advance(index, x, place, cache)
        parts.append(x)
        place += len(ids)
    return torch.cat(parts)
