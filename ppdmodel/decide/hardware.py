"""Sizes of decoder models and speeds of devices, with sources."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ..errors import InvalidInputError


@dataclass(frozen=True)
class ModelShape:
    """Sizes that determine the number of weights of a dense decoder.

    `matrices` are those of a feed-forward block: three where a gate multiplies it, else two.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    source: str
    head_width: int | None = None
    matrices: int = 3

    @property
    def layer_weights(self) -> int:
        """Weights of a layer: query, key, value, output and the feed-forward matrices."""
        one = self.head_width or self.width // self.heads
        attention = 2 * self.width * one * (self.heads + self.kv_heads)
        return attention + self.matrices * self.width * self.inner

    @property
    def head_weights(self) -> int:
        """Weights of the LM head."""
        return self.vocabulary * self.width


@dataclass(frozen=True)
class Device:
    """Data-sheet speed of a device: bytes and operations (bfloat16) per second."""

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


def published_decoding() -> tuple[dict[str, Any], ...]:
    """Published decoding speeds: model, device, units, bytes per weight, source."""
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
    return json.loads((resources.files(__package__) / "shapes.json").read_text("utf-8"))
