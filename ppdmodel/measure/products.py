"""Matrix products and memory on a CPU, faster and leaner than torch gives them by itself."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: oneDNN keeps code for each shape that it met, by default for 1024: it adds up as batches shrink
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

Linear = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
#: an anonymous map whose pages take memory only when they are written; not on every system
PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


def linear_for(weight: Tensor) -> Linear:
    """Multiply: states @ weight.T + bias by oneDNN where it can, else by torch's own way.

    On a CPU torch multiplies float32 by MKL, which is slower on some processors, most so where
    there are few rows.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_onednn():
        return _by_onednn
    return nn.functional.linear


def _by_onednn(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


@functools.cache
def _has_onednn() -> bool:
    if not torch._C._has_mkldnn:
        return False
    try:
        one = torch.ones(2, 3)
        return torch.equal(_by_onednn(one, one, None), one @ one.T)
    except (AttributeError, RuntimeError):  # a torch without this operator
        return False


@contextmanager
def fast_linears(model: nn.Module) -> Iterator[None]:
    """Have a model's linear layers multiply by `linear_for`, for a while.

    Layers that something else has changed already, such as a device map, are left alone.
    """
    changed: list[nn.Module] = []
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            linear: Any = linear_for(module.weight)
            if linear is not nn.functional.linear:
                vars(module)["forward"] = functools.partial(
                    linear, weight=module.weight, bias=module.bias
                )
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def lazy_zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros of the type and on the device of another tensor; on a CPU only what is written counts.

    >>> lazy_zeros((2, 3), torch.ones(1)).sum()
    tensor(0.)
    """
    size = like.element_size()
    for n in shape:
        size *= n
    if like.device.type != "cpu" or not PRIVATE or not size:
        return like.new_zeros(tuple(shape))
    pages = mmap.mmap(-1, size, flags=PRIVATE)
    return torch.frombuffer(pages, dtype=like.dtype).view(*shape)


def give_back_memory() -> None:
    """Return what was freed to the system, where the allocator would keep it (glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another system's allocator
        return
    trim(0)
