"""Weights of linear layers, packed for the kernels of a CPU, and as devices have them.

A matrix [in, out] becomes panels [ceil(out / PANEL), in, PANEL], zeros added to the last one.
Weights in bfloat16 stay in 16 bits; all others are in float32, which holds float16 exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from .engine_shape import EngineShape
from .shared_memory import SharedTensors

#: columns of a panel: four cache lines in float32 of each of the rows that are read together
PANEL = 64
#: weights [in, out] of linear layers
PRODUCTS = ("head", "exit_head", "qkv", "out", "gate_up", "down")


def is_product(name: str) -> bool:
    """Whether a weight is multiplied with, rather than added or looked up."""
    return name.rpartition(".")[2] in PRODUCTS or name.startswith("map.")


def packed(weight: Tensor) -> Tensor:
    """Panels of a matrix [in, out]."""
    n, out = weight.shape
    panels = -(-out // PANEL)
    filled = torch.zeros(n, panels * PANEL, dtype=_stored(weight.dtype))
    filled[:, :out] = weight
    return filled.view(n, panels, PANEL).transpose(0, 1).contiguous()


def unpacked(panels: Tensor, out: int) -> Tensor:
    """The matrix [in, out] of its panels."""
    return panels.transpose(0, 1).reshape(panels.shape[1], -1)[:, :out]


def shared_weights(tensors: dict[str, Tensor]) -> SharedTensors:
    """Pack weights into shared memory; `tensors` is emptied, so that little is held twice."""
    places = {name: (_shape(name, w), _stored(w.dtype, name)) for name, w in tensors.items()}
    shared = SharedTensors(places)
    while tensors:
        name, weight = tensors.popitem()
        shared.tensor(name).copy_(packed(weight) if is_product(name) else weight)
    return shared


def _shape(name: str, weight: Tensor) -> tuple[int, ...]:
    if not is_product(name):
        return tuple(weight.shape)
    n, out = weight.shape
    return (-(-out // PANEL), n, PANEL)


def _stored(dtype: torch.dtype, name: str = "head") -> torch.dtype:
    """Only what is as large as a matrix is worth 16 bits; token ids are no weights."""
    if not dtype.is_floating_point:
        return dtype
    large = is_product(name) or name == "embedding"
    return torch.bfloat16 if dtype == torch.bfloat16 and large else torch.float32


def as_arrays(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Packed weights as NumPy has them: those in bfloat16 as their 16 bits."""
    return {
        name: w.view(torch.int16).numpy().view(np.uint16)
        if w.dtype == torch.bfloat16
        else w.numpy()
        for name, w in weights.items()
    }


class Unpacked(Mapping[str, Tensor]):
    """Weights [in, out] of packed ones, unpacked when they are asked for."""

    def __init__(self, weights: Mapping[str, Tensor], shape: EngineShape) -> None:
        """Take packed weights, and the sizes of the whole model."""
        self.weights, self.shape = weights, shape

    def __getitem__(self, name: str) -> Tensor:
        weight = self.weights[name]
        if not is_product(name):
            return weight
        if name == "exit_head":
            return unpacked(weight, len(self.weights["exit_ids"]))
        return unpacked(weight, self.shape.columns(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)
