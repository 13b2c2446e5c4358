"""Faster products and leaner memory change no number but in its last digits."""

from __future__ import annotations

import ctypes
import functools
import mmap
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from ppdmodel.measure.decoder import kernels
from ppdmodel.measure.decoder.kernels import (
    Blocks,
    _has_onednn,
    drop_pages,
    fast_linears,
    give_back_memory,
    lazy_zeros,
    linear_for,
    prepack_head,
    prepack_layers,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5)])
@torch.inference_mode()
def test_products_are_torchs_own(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(*shape, 33, dtype=dtype), torch.randn(65, 33, dtype=dtype)
    added = torch.randn(65, dtype=dtype) if bias else None
    expected = nn.functional.linear(states, weight, added)
    found = linear_for(weight)(states, weight, added)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_models_layers_are_changed_for_a_while_only() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).double(), nn.Linear(4, 4))
    mine = functools.partial(nn.functional.linear, weight=torch.ones(4, 4))
    vars(model[2])["forward"] = mine
    with fast_linears(model):
        changed = linear_for(torch.ones(1)) is not nn.functional.linear
        assert ("forward" in vars(model[0])) == changed
        assert "forward" not in vars(model[1])
        assert vars(model[2])["forward"] is mine
    with pytest.raises(IndexError), fast_linears(model):
        [].pop()
    assert "forward" not in vars(model[0])
    assert vars(model[2])["forward"] is mine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_take_memory_where_they_are_written(dtype: torch.dtype) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zeros = lazy_zeros((64, 2**22), torch.ones(1, dtype=dtype))
    zeros[3, 5:9] = 1
    assert zeros.dtype == dtype
    assert zeros.shape == (64, 2**22)
    assert zeros[3, :12].tolist() == [0] * 5 + [1] * 4 + [0] * 3
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**18, "a quarter of a GiB, in KiB; all of it is twice as much, or four times"
    give_back_memory()


def test_zeros_of_no_size_are_zeros() -> None:
    assert lazy_zeros((0, 3), torch.ones(1)).shape == (0, 3)


def test_packed_weights_multiply_alike_and_come_back() -> None:
    torch.manual_seed(0)
    first, tied = nn.Linear(8, 8), nn.Linear(8, 8)
    tied.weight = first.weight
    layers = nn.ModuleList([nn.Linear(8, 24), nn.Linear(24, 8, bias=False), first])
    model = nn.Sequential(*layers, tied, nn.Linear(8, 65)).requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    states = torch.randn(5, 8)
    with torch.inference_mode():
        expected = model(states)
    undo = prepack_layers(model, layers)
    with torch.inference_mode():
        assert torch.allclose(model(states), expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(model(states[:1]), expected[:1], rtol=1e-5, atol=1e-5)
    moved = [name for name, weight in model.named_parameters() if weight.isnan().any()]
    assert moved == (["0.weight", "1.weight"] if _has_onednn() else [])
    assert dict(model.named_parameters())["0.weight"].shape == (24, 8)
    with fast_linears(model), torch.inference_mode():
        assert torch.allclose(model(states), expected, rtol=1e-5, atol=1e-5)
    undo()
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert "forward" not in vars(model[0])
    with torch.inference_mode():
        assert torch.equal(model(states), expected)


@pytest.mark.parametrize("packed", [0, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_product_in_blocks_is_the_whole(packed: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = nn.Linear(33, 75).to(dtype)
    states = torch.randn(2, 5, 33, dtype=dtype)
    room = packed * 32 * 33 * head.weight.element_size() + 1
    blocks = Blocks(head.weight, head.bias, 32, room)
    assert blocks.packed == (packed if linear_for(head.weight) is not nn.functional.linear else 0)
    assert Blocks(head.weight, head.bias, 32).packed == 0, "unless it is said"
    assert [product(states).shape[-1] for product in blocks.products] == [32, 32, 11]
    assert torch.allclose(blocks(states), head(states), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_head_is_packed_beside_its_parameters() -> None:
    head, states = nn.Linear(33, 75, bias=False), torch.randn(4, 33)
    before, expected = head.weight.clone(), head(states)
    blocks = prepack_head(head, 32)
    assert (blocks is not None) == _has_onednn()
    assert torch.equal(head.weight, before)
    assert torch.allclose(head(states), expected, rtol=1e-5, atol=1e-5)
    assert prepack_head(head, 32) is None  # something else multiplies there already
    assert prepack_head(nn.Linear(33, 75).double(), 32) is None
    assert prepack_head(nn.Identity(), 32) is None


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux says what is in memory")
def test_dropped_pages_are_given_back_and_their_neighbours_stay() -> None:
    rows = lazy_zeros((16, 2**20), torch.ones(1))
    rows += 1
    before = resident()
    drop_pages(rows[4:])
    assert before - resident() > 40 * 2**20
    assert bool((rows[:4] == 1).all())
    assert not rows[5:].any()
    drop_pages(rows[:2].t())  # not in one piece
    drop_pages(rows[0, 1:9])  # less than a page
    drop_pages(rows[:0])
    assert bool((rows[:4] == 1).all())
    page = mmap.PAGESIZE // rows.element_size()
    row = rows[0]
    drop_pages(row[page // 2 : -page // 2])  # only whole pages
    assert bool((row[:page] == 1).all())
    assert bool((row[-page:] == 1).all())
    assert not row[page:-page].any()


def test_a_torch_without_the_operator_multiplies_by_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacks(*_: object) -> None:
        raise AttributeError("_linear_pointwise")

    kernels._has_onednn.cache_clear()
    monkeypatch.setattr(kernels, "_by_onednn", lacks)
    assert kernels._has_onednn() is False
    kernels._has_onednn.cache_clear()
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    assert kernels._has_onednn() is False
    kernels._has_onednn.cache_clear()


def test_another_c_library_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    kernels.give_back_memory()
