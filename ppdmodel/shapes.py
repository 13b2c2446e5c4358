"""Sizes of some decoders and speeds of devices, with sources, and the least time of a layer.

The times are ideal: a layer reads its weights once from memory, and nothing else takes any time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from .checks import real_number
from .errors import InvalidInputError


@dataclass(frozen=True)
class ModelShape:
    """The numbers that fix how many weights a decoder of Llama's build has."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    source: str
    head_width: int | None = None

    @property
    def layer_weights(self) -> int:
        """Of a layer's matrices: queries, output, keys, values, and three of the feed-forward."""
        one = self.head_width or self.width // self.heads
        attention = 2 * self.width * one * (self.heads + self.kv_heads)
        return attention + 3 * self.width * self.inner

    @property
    def head_weights(self) -> int:
        """Of the matrix that makes logits."""
        return self.vocabulary * self.width

    def layer_time_s(self, bytes_per_s: float, bytes_per_weight: float = 2) -> float:
        """Seconds to read a layer's weights from a memory.

        Raises:
            InvalidInputError: an argument is not a positive number.

        >>> round(1e6 * shape("Llama 2 7B").layer_time_s(memory("H100 SXM")), 1)
        120.8
        """
        return _seconds(self.layer_weights, bytes_per_s, bytes_per_weight)

    def head_time_s(self, bytes_per_s: float, bytes_per_weight: float = 2) -> float:
        """Seconds to read the head's weights from a memory.

        Raises:
            InvalidInputError: an argument is not a positive number.

        >>> round(1e6 * shape("Llama 2 7B").head_time_s(memory("H100 SXM")), 1)
        78.3
        """
        return _seconds(self.head_weights, bytes_per_s, bytes_per_weight)


@dataclass(frozen=True)
class Device:
    """What a device delivers by its data sheet: bytes and operations (bfloat16) per second."""

    bytes_per_s: float
    flops_per_s: float
    source: str


def shape(name: str) -> ModelShape:
    """The shape of one model that `shapes.json` holds.

    Raises:
        InvalidInputError: it holds no such model.

    >>> shape("SmolLM2 135M").layers
    30
    """
    return ModelShape(**_entry("models", name))


def device(name: str) -> Device:
    """One device that `shapes.json` holds.

    Raises:
        InvalidInputError: it holds no such device.

    >>> device("H100 SXM").bytes_per_s
    3350000000000.0
    """
    return Device(**_entry("devices", name))


def memory(name: str) -> float:
    """Bytes per second of one device that `shapes.json` holds; raises like `device`."""
    return device(name).bytes_per_s


def published_decoding() -> tuple[dict[str, Any], ...]:
    """Decoding speeds that others measured: model, device, units, bytes per weight, source."""
    return tuple(dict(row) for row in _document()["published_decoding"])


def models() -> tuple[str, ...]:
    """The models that `shapes.json` holds, small ones first."""
    return tuple(_document()["models"])


def _entry(kind: str, name: str) -> Any:
    known = _document()[kind]
    if name not in known:
        raise InvalidInputError(
            f"the name must be one in shapes.json; got {name!r}; choose from {', '.join(known)}"
        )
    return known[name]


@cache
def _document() -> Any:
    return json.loads((resources.files("ppdmodel") / "shapes.json").read_text("utf-8"))


def _seconds(weights: int, bytes_per_s: float, bytes_per_weight: float) -> float:
    for name, value in (("bytes_per_s", bytes_per_s), ("bytes_per_weight", bytes_per_weight)):
        if real_number(name, value, 0, "give a size") == 0:
            raise InvalidInputError(f"{name} must be positive; got 0; give a size")
    return weights * bytes_per_weight / bytes_per_s
