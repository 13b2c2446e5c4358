"""Tensor parallelism for plain decoding: every unit has a shard of each product, as in Megatron-LM.

Attention heads and columns of the feed-forward layer are divided among the units. Each multiplies
its shard, and an all-reduce adds the results: two for each layer, and one for the LM head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from ..errors import InvalidInputError
from .board import TextEndedError, fence, yield_cpu
from .engine_shape import EngineShape
from .shared_memory import SharedTensors

ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Shard:
    """Which shard a unit has: `rank` of `world_size`."""

    rank: int
    world_size: int

    def slice(self, n: int) -> slice:
        """This shard's share of `n` things; the first shards have one more if it is not even.

        >>> [Shard(rank, 3).slice(8) for rank in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
        """
        each, more = divmod(n, self.world_size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))


def check_shards(shape: EngineShape, world_size: int) -> None:
    """Raise `InvalidInputError` unless each of so many shards has an attention head."""
    if world_size > shape.heads:
        raise InvalidInputError(
            f"units must not exceed the model's {shape.heads} heads on devices, over which plain "
            f"decoding is split; got {world_size}"
        )


def shard_of(
    shape: EngineShape, weights: Mapping[str, Tensor], shard: Shard
) -> tuple[EngineShape, dict[str, Tensor]]:
    """Sizes and weights of one shard of an engine.

    With more shards than kv heads, each query head has a copy of its kv head.
    """
    size, group = shape.head_size, shape.heads // shape.kv_heads
    copies = group if shard.world_size > shape.kv_heads else 1
    share = shard.slice(shape.kv_heads * copies)
    kv = torch.arange(shape.kv_heads).repeat_interleave(copies)[share]
    each = group // copies  # query heads of a kv head
    queries = torch.arange(share.start * each, (share.start + len(kv)) * each)
    inner = torch.arange(shape.inner)[shard.slice(shape.inner)]
    heads = torch.cat([queries, shape.heads + kv, shape.heads + shape.kv_heads + kv])
    columns = {
        "qkv": _columns_of(heads, size),
        "gate_up": torch.cat([inner, shape.inner + inner]),
        "head": torch.arange(shape.vocabulary)[shard.slice(shape.vocabulary)],
    }
    rows = {"out": _columns_of(queries, size), "down": inner}
    found = {}
    for name, weight in weights.items():
        what = name.rpartition(".")[2]
        product = what.removesuffix("_bias")
        if what in rows:
            found[name] = weight[rows[what]]
        elif product in rows:
            if shard.rank == 0:  # the all-reduce must add it once
                found[name] = weight
        elif product in columns:
            found[name] = weight[..., columns[product]]
        else:
            found[name] = weight
    if "embedding" not in found:
        found["embedding"] = weights["head"].t()
    return replace(shape, heads=len(queries), kv_heads=len(kv), inner=len(inner)), found


def _columns_of(heads: Tensor, size: int) -> Tensor:
    return (heads[:, None] * size + torch.arange(size)).flatten()


class Communicator:
    """Collective operations of the units that hold the shards."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def reset(self) -> None:
        """Begin a text."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all shards; `x` may be overwritten."""
        distributed.all_reduce(x)
        return x

    def all_gather(self, x: Tensor, n: int) -> Tensor:
        """[rows, n] of which each shard has some columns, as a sum of zero-padded shards."""
        found, share = x.new_zeros(len(x), n), self.shard.slice(n)
        found[:, share] = x[:, : share.stop - share.start]
        return self.all_reduce(found)


#: places between two counters, so that each has a cache line of its own
APART = 8


def new_exchange(units: int, largest: int) -> SharedTensors:
    """Shared memory for `SharedCommunicator`; `largest` elements are added up at once."""
    return SharedTensors(
        {
            "parts": ((2, units, largest), torch.float32),
            "arrived": ((units, APART), torch.int64),
            "abandoned": ((1,), torch.int64),
        }
    )


class SharedCommunicator(Communicator):
    """Units on CPUs of one machine, which add up in shared memory, all in the same order.

    Two rooms are used in turn: whoever writes to one again has seen all others arrive at the
    other, so that nobody reads it any more.
    """

    def __init__(self, shard: Shard, memory: SharedTensors) -> None:
        super().__init__(shard)
        self.parts, self.memory, self.count = memory.tensor("parts"), memory, 0
        self.arrived = memory.tensor("arrived").numpy()[:, 0]
        self.abandoned = memory.tensor("abandoned").numpy()

    def reset(self) -> None:
        """Begin a text; `new_exchange`'s counters are 0 again."""
        self.count = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all shards."""
        parts = torch.split(x.flatten(), self.parts.shape[2])
        return torch.cat([self._sum(part) for part in parts]).view(x.shape)

    def _sum(self, x: Tensor) -> Tensor:
        self.count += 1
        room, n = self.parts[self.count % 2], len(x)
        room[self.shard.rank, :n] = x
        fence()
        self.arrived[self.shard.rank] = self.count
        while (self.arrived < self.count).any():
            if self.abandoned:
                raise TextEndedError
            yield_cpu()
        fence()
        return room[:, :n].sum(0)


@dataclass(frozen=True)
class Rendezvous:
    """Where the units of one process group meet."""

    port: int
    world_size: int
    backend: str

    def join(self, rank: int, device: str) -> Communicator:
        """Initialize the process group; blocks until all units have joined."""
        if device != "cpu":
            torch.get_device_module(device).set_device(device)
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            ADDRESS, self.port, is_master=False
        )
        distributed.init_process_group(
            self.backend, store=store, rank=rank, world_size=self.world_size
        )
        return Communicator(Shard(rank, self.world_size))

    def leave(self) -> None:
        """Close the connections."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


def backend_for(devices: Sequence[str]) -> str:
    """NCCL where each unit has a GPU of its own, which it requires; otherwise Gloo."""
    apart = len(set(devices)) == len(devices) and all(d.startswith("cuda") for d in devices)
    return "nccl" if apart and distributed.is_nccl_available() else "gloo"
