"""Memory that several processes see, without a name that could be left behind."""

from __future__ import annotations

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
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in a block of memory."""

    entries: Mapping[str, tuple[int, Shape, torch.dtype]]
    size: int

    @classmethod
    def of(cls, tensors: Mapping[str, tuple[Shape, torch.dtype]]) -> Layout:
        """Put tensors of these shapes one behind the other."""
        entries, end = {}, 0
        for name, (shape, dtype) in tensors.items():
            entries[name] = (end, shape, dtype)
            n = dtype.itemsize
            for size in shape:
                n *= size
            end += -(-n // ALIGNMENT) * ALIGNMENT
        return cls(entries, max(end, ALIGNMENT))


class Shared:
    """A block of zeros that spawned processes can be given: as an argument of `Process`.

    It has no name in the file system, so that nothing is left when the processes are gone, however
    they end.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._fd = _unnamed()
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
        """Give up this process's hold; tensors that were handed out stay valid."""
        self._release()  # once, whoever calls it

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, in the shared memory."""
        start, shape, dtype = self.layout.entries[name]
        n = 1
        for size in shape:
            n *= size
        return self._bytes[start : start + n * dtype.itemsize].view(dtype).view(shape)

    def tensors(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: self.tensor(name) for name in self.layout.entries}


def share(tensors: Mapping[str, Tensor]) -> Shared:
    """A copy of some tensors in shared memory."""
    shared = Shared(Layout.of({n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}))
    for name, tensor in tensors.items():
        shared.tensor(name).copy_(tensor)
    return shared


def zeros(tensors: Mapping[str, tuple[Sequence[int], torch.dtype]]) -> Shared:
    """Zeros of these shapes in shared memory."""
    return Shared(Layout.of({n: (tuple(shape), dtype) for n, (shape, dtype) in tensors.items()}))


def _unnamed() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ppdmodel")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
