"""Faster matrix products and smaller memory use on a CPU than torch's defaults."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: oneDNN caches compiled code for up to 1024 shapes by default: too much as batches shrink
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

#: a product of states, weight and bias (or None)
Linear = Callable[..., Tensor]
#: rows of states for which oneDNN packs weights; near-optimal for 2 to a few hundred rows
ROWS = 32
#: largest part of a head's weight, in bytes, that is duplicated in oneDNN's packed format
HEAD_BYTES = 2**26
#: flags of an anonymous memory map, allocated page by page on writing; 0 if unsupported
MAP_FLAGS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


def linear_for(weight: Tensor) -> Linear:
    """Choose a linear product: oneDNN's where supported, else torch's default.

    On a CPU torch multiplies float32 by MKL, which is slower on some processors, most of all
    with few rows.
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
        one = torch.ones(ROWS, ROWS)
        return torch.equal(_by_onednn(one, one, None), one @ one.T)
    except (AttributeError, RuntimeError):  # this torch lacks the operator
        return False


@contextmanager
def fast_linears(model: nn.Module) -> Iterator[None]:
    """Context in which a model's linear layers use `linear_for`.

    Layers with a replaced `forward`, as by a device map, are left unchanged.
    """
    changed = _onednn_linears(model)
    try:
        for module in changed:
            _set_linear(module, module.weight)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def prepack_layers(model: nn.Module, layers: Iterable[nn.Module]) -> Callable[[], None]:
    """Replace the weights of a model's layers by oneDNN's packed format, where supported.

    Products of a few rows become faster. Memory does not grow: a replaced parameter reads NaN.
    Weights shared between modules, such as those of head and embedding, are not replaced.

    Returns:
        A function that restores the parameters.
    """
    uses = Counter(id(p) for m in model.modules() for p in vars(m)["_parameters"].values())
    inside = {id(module) for layer in layers for module in layer.modules()}
    moved: list[tuple[nn.Linear, Tensor]] = []

    def undo() -> None:
        while moved:
            module, packed = moved.pop()
            del vars(module)["forward"]
            module.weight.data = packed.to_dense()

    for module in _onednn_linears(model):
        if id(module) in inside and uses[id(module.weight)] == 1:
            weight = module.weight
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.data, ROWS)
            weight.data = torch.full((1, 1), torch.nan).expand(weight.shape)
            _set_linear(module, packed)
            moved.append((module, packed))
    return undo


class Blocks:
    """A linear layer's product in blocks of its outputs, so that each can be read while in cache.

    Args:
        weight: [out, in].
        bias: [out], or None.
        size: outputs of a block; the last may have fewer.
        packed_bytes: how much of the weight to duplicate in oneDNN's packed format, if supported.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, size: int, packed_bytes: int = 0
    ) -> None:
        self.size, self.outputs = size, len(weight)
        linear = linear_for(weight)
        weights: Sequence[Tensor] = torch.split(weight.detach(), size)
        biases = [None] * len(weights) if bias is None else torch.split(bias.detach(), size)
        self.packed = 0
        if linear is _by_onednn:
            largest, *_ = weights
            self.packed = min(packed_bytes // largest.nbytes, len(weights))
            reorder = torch.ops.mkldnn._reorder_linear_weight
            first = [reorder(part, ROWS) for part in weights[: self.packed]]
            weights = [*first, *weights[self.packed :]]
        self.products = [
            functools.partial(linear, weight=part, bias=added)
            for part, added in zip(weights, biases, strict=True)
        ]

    def __call__(self, states: Tensor) -> Tensor:
        """The whole product, [..., out], of states [..., in]."""
        out = states.new_empty(*states.shape[:-1], self.outputs)
        for start, product in zip(range(0, self.outputs, self.size), self.products, strict=True):
            out[..., start : start + self.size] = product(states)
        return out


def prepack_head(head: nn.Module, size: int) -> Blocks | None:
    """Give a head a packed copy of up to `HEAD_BYTES` of its weight, where oneDNN can.

    Its parameters are unchanged: an embedding may share them.
    """
    if not isinstance(head, nn.Linear) or not _onednn_linears(head):
        return None
    blocks = Blocks(head.weight, head.bias, size, HEAD_BYTES)
    vars(head)["forward"] = blocks
    return blocks


def _onednn_linears(model: nn.Module) -> list[nn.Linear]:
    """A model's plain linear layers that oneDNN can compute."""
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and linear_for(module.weight) is _by_onednn
    ]


def _set_linear(module: nn.Linear, weight: Tensor) -> None:
    vars(module)["forward"] = functools.partial(_by_onednn, weight=weight, bias=module.bias)


def lazy_zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros like another tensor; on a CPU memory is allocated only for written pages.

    >>> lazy_zeros((2, 3), torch.ones(1)).sum()
    tensor(0.)
    """
    size = like.element_size() * math.prod(shape)
    if like.device.type != "cpu" or not MAP_FLAGS or not size:
        return like.new_zeros(tuple(shape))
    pages = mmap.mmap(-1, size, flags=MAP_FLAGS)
    return torch.frombuffer(pages, dtype=like.dtype).view(*shape)


def drop_pages(zeros: Tensor) -> None:
    """Return the pages of a contiguous part of `lazy_zeros` to the operating system.

    Their contents are lost.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if zeros.device.type != "cpu" or not MAP_FLAGS or advice is None or not zeros.is_contiguous():
        return
    begin = -(-zeros.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (zeros.data_ptr() + zeros.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)


def give_back_memory() -> None:
    """Return freed memory to the operating system, which glibc would retain."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    trim(0)
