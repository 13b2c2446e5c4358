"""Plain decoding split over devices: each has a part of every product, as Megatron-LM cuts them.

Heads of attention and of the inner layer's columns go to the devices; each multiplies its part, and
the sum of what they get is the product. That is two sums for each layer and one for the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from ..errors import InvalidInputError
from .engine_shape import Shape

ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Part:
    """Which part a unit has."""

    number: int
    of: int

    def range(self, n: int) -> slice:
        """Of `n` things, as evenly as it goes; the first parts have one more.

        >>> [Part(number, 3).range(8) for number in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
        """
        each, more = divmod(n, self.of)
        start = self.number * each + min(self.number, more)
        return slice(start, start + each + (self.number < more))


def check_parts(shape: Shape, of: int) -> None:
    """Raise `InvalidInputError` unless a model has so many parts."""
    if of > shape.heads:
        raise InvalidInputError(
            f"units must not exceed the model's {shape.heads} heads on devices, over which plain "
            f"decoding is split; got {of}"
        )


def part_of(
    shape: Shape, weights: Mapping[str, Tensor], part: Part
) -> tuple[Shape, dict[str, Tensor]]:
    """The numbers and weights of one part of an engine.

    Where the parts are more than the heads of keys and values, each query head gets its own copy.
    """
    size, group = shape.head_size, shape.heads // shape.kv_heads
    copies = group if part.of > shape.kv_heads else 1
    kv = torch.arange(shape.kv_heads).repeat_interleave(copies)[part.range(shape.kv_heads * copies)]
    each = group // copies  # query heads of a head of keys and values
    first = part.range(shape.kv_heads * copies).start * each
    queries = torch.arange(first, first + len(kv) * each)
    inner = torch.arange(shape.inner)[part.range(shape.inner)]
    heads = torch.cat([queries, shape.heads + kv, shape.heads + shape.kv_heads + kv])
    columns = {
        "qkv": _within(heads, size),
        "out": _within(queries, size),
        "gate_up": torch.cat([inner, shape.inner + inner]),
        "down": inner,
        "head": torch.arange(shape.vocabulary)[part.range(shape.vocabulary)],
    }
    found = {}
    for name, weight in weights.items():
        what = name.rsplit(".", 1)[-1]
        if what in ("out", "down"):
            found[name] = weight[columns[what]]
        elif what in ("out_bias", "down_bias"):
            if part.number == 0:
                found[name] = weight
        elif what.removesuffix("_bias") in columns:
            found[name] = weight[..., columns[what.removesuffix("_bias")]]
        elif not name.startswith("map"):  # a plain text reads no exit
            found[name] = weight
    if "embedding" not in found:
        found["embedding"] = weights["head"].t()
    own = replace(shape, heads=len(queries), kv_heads=len(kv), inner=len(inner))
    return own, found


def _within(heads: Tensor, size: int) -> Tensor:
    return (heads[:, None] * size + torch.arange(size)).flatten()


class Link:
    """The parts' way to add up what they have."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all parts."""
        distributed.all_reduce(x)
        return x

    def whole(self, x: Tensor, n: int) -> Tensor:
        """[rows, n] of which each part has some columns."""
        found = x.new_zeros(len(x), n)
        found[:, self.part.range(n)] = x
        return self.sum(found)


@dataclass(frozen=True)
class Meeting:
    """Where the processes of one split text find each other."""

    port: int
    of: int
    backend: str

    def join(self, number: int, device: str) -> Link:
        """Meet the others; all must come."""
        if device != "cpu":
            torch.get_device_module(device).set_device(device)
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            ADDRESS, self.port, is_master=False
        )
        distributed.init_process_group(self.backend, store=store, rank=number, world_size=self.of)
        return Link(Part(number, self.of))

    def leave(self) -> None:
        """Give up the connections."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


def backend_for(devices: Sequence[str]) -> str:
    """NCCL for GPUs of their own; it does not take one GPU twice, and Gloo does."""
    apart = len(set(devices)) == len(devices) and all(d.startswith("cuda") for d in devices)
    return "nccl" if apart and distributed.is_nccl_available() else "gloo"
