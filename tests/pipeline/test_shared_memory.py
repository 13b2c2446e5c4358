"""Tensors that processes share, and memory that is given back."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from ppdmodel.pipeline.shared_memory import (
    ALIGNMENT,
    SharedTensors,
    shared_copy,
)


def held() -> int:
    """How many blocks of shared memory this process has open."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(path))
    return sum("memfd:ppdmodel" in link for link in links)


def test_tensors_do_not_overlap() -> None:
    shared = SharedTensors(
        {"a": ((3, 5), torch.float32), "b": ((7,), torch.int64), "c": ((), torch.bfloat16)}
    )
    ranges = []
    for start, shape, dtype in shared.places.values():
        assert start % ALIGNMENT == 0
        ranges.append((start, start + torch.empty(shape, dtype=dtype).nbytes))
    assert ranges == [(0, 60), (64, 120), (128, 130)]
    assert os.fstat(shared._fd).st_size == 192
    nothing = SharedTensors({})
    assert os.fstat(nothing._fd).st_size == ALIGNMENT, "memory of no bytes cannot be mapped"


def test_tensors_begin_as_zeros_and_keep_what_is_written() -> None:
    shared = SharedTensors({"a": ((2, 3), torch.float32), "b": ((4,), torch.int64)})
    assert not any(tensor.any() for tensor in shared.tensors().values())
    shared.tensor("b").copy_(torch.arange(4))
    assert shared.tensor("b").tolist() == [0, 1, 2, 3]
    assert shared.tensor("a").shape == (2, 3)
    assert not shared.tensor("a").any()


def test_a_copy_is_of_the_values() -> None:
    given = {"t": torch.rand(3, 4).t(), "n": torch.tensor([1, 2], dtype=torch.int32)}
    shared = shared_copy(given)
    for name, tensor in given.items():
        assert torch.equal(shared.tensor(name), tensor)
        assert shared.tensor(name).dtype == tensor.dtype
        tensor.zero_()
        assert shared.tensor(name).any()


def _add_one(shared: SharedTensors) -> None:
    shared.tensor("x").add_(1)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed in /proc")
def test_another_process_writes_and_the_memory_is_freed() -> None:
    before = held()
    shared = shared_copy({"x": torch.arange(3.0)})
    assert held() > before
    process = multiprocessing.get_context("forkserver").Process(target=_add_one, args=(shared,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    kept = shared.tensor("x")
    assert kept.tolist() == [1, 2, 3]
    shared.close()
    shared.close()
    assert kept.tolist() == [1, 2, 3], "tensors that were handed out stay valid"
    del shared, kept
    gc.collect()
    assert held() == before


def test_where_the_system_has_no_memory_files_a_deleted_file_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    shared = shared_copy({"a": torch.arange(5)})
    assert shared.tensor("a").tolist() == [0, 1, 2, 3, 4]
    assert os.readlink(f"/proc/self/fd/{shared._fd}").endswith("(deleted)")
    shared.close()
