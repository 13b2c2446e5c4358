"""Weights in panels: nothing is lost, and little is held twice."""

from __future__ import annotations

import pytest
import torch

from ppdmodel.pipeline.cpu_kernels import widened
from ppdmodel.pipeline.engine_shape import EngineShape
from ppdmodel.pipeline.packing import (
    PANEL,
    Unpacked,
    as_arrays,
    is_product,
    packed,
    shared_weights,
    unpacked,
)

SHAPE = EngineShape(
    layers=1, width=6, heads=4, kv_heads=2, head_size=3, inner=50, vocabulary=130,
    epsilon=1e-5, scaling=0.5,
)  # fmt: skip


@pytest.mark.parametrize("out", [1, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL])
def test_panels_are_unpacked_to_the_same_matrix(out: int) -> None:
    weight = torch.randn(5, out)
    panels = packed(weight)
    assert panels.shape == (-(-out // PANEL), 5, PANEL)
    assert panels.is_contiguous()
    assert torch.equal(panels[0, 3, : min(out, PANEL)], weight[3, :PANEL])
    assert torch.equal(unpacked(panels, out), weight)
    assert panels.sum().item() == pytest.approx(weight.sum().item(), abs=1e-4), "zeros are added"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_format_is_held_exactly(dtype: torch.dtype) -> None:
    weights = {
        "head": torch.randn(6, 130), "0.qkv": torch.randn(6, 24), "0.qkv_bias": torch.randn(24),
        "0.gate_up": torch.randn(6, 100), "0.down": torch.randn(50, 6), "0.norm": torch.randn(6),
        "map.1": torch.randn(6, 6), "map_bias.1": torch.randn(6), "embedding": torch.randn(130, 6),
    }  # fmt: skip
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    left = dict(weights)
    shared = shared_weights(left)
    assert not left, "each is let go once it is packed"
    tensors = shared.tensors()
    short = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    for name, tensor in tensors.items():
        large = is_product(name) or name == "embedding"
        assert tensor.dtype == (short if large else torch.float32)
    again = Unpacked(tensors, SHAPE)
    assert len(again) == len(weights)
    assert set(again) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(again[name].to(dtype), weight), name
    for name, array in as_arrays(tensors).items():
        assert torch.equal(torch.from_numpy(widened(array)), tensors[name].float()), name
        assert array.ctypes.data == tensors[name].data_ptr(), "no copy"
