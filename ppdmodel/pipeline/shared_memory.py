"""Tensors in anonymous shared memory, which the system frees with the last process that maps it."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

#: bytes; tensors begin on a cache line
ALIGNMENT = 64


class SharedTensors:
    """Tensors in one block of shared memory, at first zeros; an argument of spawned processes.

    The block has no name in the file system, so that nothing stays behind, however the processes
    end.

    Attributes:
        places: offset, shape and type of each tensor, by name; each is on cache lines of its own.
    """

    def __init__(self, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Reserve memory for tensors of these names, shapes and types."""
        self.places: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {}
        size = 0
        for name, (shape, dtype) in tensors.items():
            self.places[name] = (size, shape, dtype)
            size += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        fd = _anonymous_file()
        os.ftruncate(fd, max(size, ALIGNMENT))
        self._open(fd)

    def _open(self, fd: int) -> None:
        self._fd, self._release = fd, weakref.finalize(self, os.close, fd)
        pages = mmap.mmap(fd, 0)  # the whole file
        with suppress(AttributeError, OSError):  # fewer, larger pages, where the system has them
            pages.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(pages, dtype=torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places, "handle": reduction.DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.places = state["places"]
        self._open(state["handle"].detach())

    def close(self) -> None:
        """Close this process's handle; tensors that were handed out stay valid."""
        self._release()  # at most once

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, in the shared memory."""
        start, shape, dtype = self.places[name]
        n = math.prod(shape)
        return self._bytes[start : start + n * dtype.itemsize].view(dtype).view(shape)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: self.tensor(name) for name in self.places}


def shared_copy(tensors: Mapping[str, Tensor]) -> SharedTensors:
    """Copy tensors to shared memory."""
    shared = SharedTensors({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
    for name, tensor in tensors.items():
        shared.tensor(name).copy_(tensor)
    return shared


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ppdmodel")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
