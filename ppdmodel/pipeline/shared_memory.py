"""Tensors in anonymous shared memory, which the system frees with the last process that maps it."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

#: bytes; tensors begin on a cache line
ALIGNMENT = 64


@dataclass(frozen=True)
class Layout:
    """Offset, shape and type of each named tensor in a block of memory, and the block's bytes."""

    entries: Mapping[str, tuple[int, tuple[int, ...], torch.dtype]]
    size: int

    @classmethod
    def of(cls, tensors: Mapping[str, tuple[Sequence[int], torch.dtype]]) -> Layout:
        """Tensors of these shapes one after the other, each on a cache line of its own."""
        entries, end = {}, 0
        for name, (shape, dtype) in tensors.items():
            entries[name] = (end, tuple(shape), dtype)
            n = math.prod(shape) * dtype.itemsize
            end += -(-n // ALIGNMENT) * ALIGNMENT
        return cls(entries, max(end, ALIGNMENT))


class SharedTensors:
    """Tensors in one block of shared memory, at first zeros; an argument of spawned processes.

    The block has no name in the file system, so that nothing stays behind, however the processes
    end.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._fd = _anonymous_file()
        self._release = weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, layout.size)
        self._open()

    def _open(self) -> None:
        pages = mmap.mmap(self._fd, self.layout.size)
        with suppress(AttributeError, OSError):  # fewer, larger pages, where the system has them
            pages.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(pages, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "handle": reduction.DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.layout, self._fd = state["layout"], state["handle"].detach()
        self._release = weakref.finalize(self, os.close, self._fd)
        self._open()

    def close(self) -> None:
        """Close this process's handle; tensors that were handed out stay valid."""
        self._release()  # at most once

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, in the shared memory."""
        start, shape, dtype = self.layout.entries[name]
        n = math.prod(shape)
        return self._bytes[start : start + n * dtype.itemsize].view(dtype).view(shape)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: self.tensor(name) for name in self.layout.entries}


def shared_copy(tensors: Mapping[str, Tensor]) -> SharedTensors:
    """Copy tensors to shared memory."""
    shared = SharedTensors(Layout.of({n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}))
    for name, tensor in tensors.items():
        shared.tensor(name).copy_(tensor)
    return shared


def shared_zeros(tensors: Mapping[str, tuple[Sequence[int], torch.dtype]]) -> SharedTensors:
    """Zeros in shared memory, by name: shape and type."""
    return SharedTensors(Layout.of(tensors))


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ppdmodel")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
