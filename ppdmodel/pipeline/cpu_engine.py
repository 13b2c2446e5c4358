"""An engine on one CPU core, on compiled kernels and packed weights in shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import cpu_kernels
from .engine_shape import EngineShape

if TYPE_CHECKING:
    from .kv_cache import KVCache
    from .tensor_parallel import Communicator

NONE = np.zeros(0, np.float32)
#: of the state over its root mean square, which trained exits read
EXIT_EPSILON = 1e-6


class CpuEngine:
    """Layers, exits and LM head of a model, or one shard of them, on one core.

    The same operations as `engine.Engine` has on a device. Hidden states, keys and values are in
    float32, whatever the format of the weights. A row's results are bitwise the same alone and in
    any batch.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(
        self,
        shape: EngineShape,
        weights: Mapping[str, np.ndarray],
        communicator: Communicator | None = None,
        embedding: np.ndarray | None = None,
    ) -> None:
        """Take weights as `packing.packed_weights` makes them.

        `embedding` is the whole model's packed head where it is the embedding too, and `weights`
        has only a shard of it.
        """
        self.shape, self.communicator = shape, communicator
        self.head, self.head_bias = weights["head"], weights.get("head_bias", NONE)
        self.exit_head, self.exit_bias = weights.get("exit_head"), weights.get("exit_bias", NONE)
        ids = weights.get("exit_ids")
        self.exit_ids = None if ids is None else torch.from_numpy(ids)
        self.final_norm = weights["final_norm"]
        self.cos, self.sin = weights["cos"], weights["sin"]
        self.embedding = weights.get("embedding")
        self.tied = self.head if embedding is None else embedding
        self.layers = [
            tuple(
                tuple(weights.get(f"{index}.{name}", NONE) for name in names)
                for names in (cpu_kernels.ATTENTION, cpu_kernels.FEED_FORWARD)
            )
            for index in range(shape.layers)
        ]
        self.maps = {
            int(name.removeprefix("map.")): (weight, weights[f"map_bias.{name[4:]}"])
            for name, weight in weights.items()
            if name.startswith("map.")
        }
        self.ones = np.ones(shape.width, np.float32)

    def embed(self, token_ids: Tensor) -> Tensor:
        """As `Engine.embed`."""
        if self.embedding is not None:
            return torch.from_numpy(cpu_kernels.widened(self.embedding[token_ids.numpy()]))
        panel, column = np.divmod(token_ids.numpy(), self.tied.shape[2])
        return torch.from_numpy(cpu_kernels.widened(self.tied[panel, :, column]))

    def layer(self, index: int, x: Tensor, place: int, cache: KVCache, own: Tensor) -> Tensor:
        """As `Engine.layer`."""
        x, mine = self._layer(index, x, place, cache, follow=False)
        own[index, :, : len(x)] = mine
        return x

    def advance(self, index: int, x: Tensor, place: int, cache: KVCache) -> Tensor:
        """As `Engine.advance`."""
        return self._layer(index, x, place, cache, follow=True)[0]

    def _layer(
        self, index: int, x: Tensor, place: int, cache: KVCache, follow: bool
    ) -> tuple[Tensor, Tensor]:
        """Hidden states after a layer, and its rows' keys and values."""
        states, shape, width = x.numpy(), self.shape, self.shape.width
        attention, feed_forward = self.layers[index]
        added, own = cpu_kernels.attention(
            states, attention, self.cos, self.sin, place, follow, cache.tensor[index].numpy(),
            shape.heads, shape.epsilon, shape.scaling,
        )  # fmt: skip
        states = states + self._all_reduce(added)[:, :width]
        added = cpu_kernels.feed_forward(states, feed_forward, shape.inner, shape.epsilon)
        states = states + self._all_reduce(added)[:, :width]
        return torch.from_numpy(states), torch.from_numpy(own)

    def _all_reduce(self, x: np.ndarray) -> Any:
        if self.communicator is None:
            return x
        return self.communicator.all_reduce(torch.from_numpy(x)).numpy()

    def logits(self, x: Tensor, exit_layer: int | None = None) -> Tensor:
        """As `Engine.logits`."""
        states = x.numpy()
        normed = np.empty_like(states)
        cpu_kernels.rms_norm(states, self.final_norm, self.shape.epsilon, normed)
        if exit_layer in self.maps:
            weight, bias = self.maps[exit_layer]
            scaled = np.empty_like(states)
            cpu_kernels.rms_norm(states, self.ones, EXIT_EPSILON, scaled)
            normed = normed + self._product(scaled, weight, bias)[:, : self.shape.width]
        if exit_layer and self.exit_ids is not None:
            assert self.exit_head is not None
            listed = self._product(normed, self.exit_head, self.exit_bias)
            return torch.from_numpy(listed)[:, : len(self.exit_ids)]
        found = torch.from_numpy(self._product(normed, self.head, self.head_bias))
        if self.communicator is None:
            return found[:, : self.shape.vocabulary]
        return self.communicator.all_gather(found, self.shape.vocabulary)

    @staticmethod
    def _product(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), weight.shape[0] * weight.shape[2]), np.float32)
        cpu_kernels.multiply(x, weight, bias, out)
        return out
