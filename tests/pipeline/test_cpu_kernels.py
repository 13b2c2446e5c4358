"""Products, norms and attention beside torch's; a row's bits do not depend on its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from ppdmodel.pipeline import cpu_kernels
from ppdmodel.pipeline.packing import as_arrays, packed

NONE = np.zeros(0, np.float32)


def random(*shape: int) -> np.ndarray:
    return torch.randn(*shape).numpy()


def panels(weight: torch.Tensor) -> np.ndarray:
    return as_arrays({"head": packed(weight)})["head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "out"), [(1, 1), (3, 70), (4, 64), (33, 65), (66, 128)])
def test_products_of_any_size(n: int, out: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, n), torch.randn(n, out).to(dtype), torch.randn(out)
    found = np.full((5, -(-out // 64) * 64), np.nan, np.float32)
    for added in (NONE, bias.numpy()):
        cpu_kernels.multiply(x.numpy(), panels(weight), added, found)
        exact = x.double() @ weight.double() + (bias if added.size else 0)
        np.testing.assert_allclose(found[:, :out], exact, rtol=1e-5, atol=1e-5)


def test_exponentials_to_a_unit_in_the_last_place() -> None:
    x = np.linspace(-86.9, 88, 200_001, dtype=np.float32)
    found = x.copy()
    cpu_kernels.exponentials(found)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(found / exact - 1).max() < 1.2e-7
    ends = np.array([-np.inf, -1000, 0, 1000], np.float32)
    cpu_kernels.exponentials(ends)
    assert ends[0] == ends[1] < 2e-38
    assert ends[2] == 1
    assert np.isfinite(ends[3])


def test_norms() -> None:
    x, weight = random(3, 37), random(37)
    found = np.empty_like(x)
    cpu_kernels.rms_norm(x, weight, 1e-5, found)
    wanted = functional.rms_norm(torch.from_numpy(x), (37,), torch.from_numpy(weight), 1e-5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def layer_of(dtype: torch.dtype) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """A layer of 4 heads, 2 kv heads of size 10, width 22 and 27 inner columns."""
    torch.manual_seed(2)
    wide = [torch.randn(22, 80), torch.randn(40, 22), torch.randn(22, 54), torch.randn(27, 22)]
    qkv, out, gate_up, down = (panels((0.2 * weight).to(dtype)) for weight in wide)
    return (
        (random(22), qkv, random(80), random(10), random(10), out, NONE),
        (random(22), gate_up, NONE, down, random(22)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_alone_and_in_any_batch_bit_by_bit(dtype: torch.dtype) -> None:
    """Hidden states, keys and values; for guesses of one position and for tokens in a row."""
    attention, feed_forward = layer_of(dtype)
    before, cos, sin = random(2, 2, 30, 10), random(30, 10), random(30, 10)
    x = random(9, 22)

    def run(rows: np.ndarray, place: int, follow: bool, cache: np.ndarray) -> list[np.ndarray]:
        added, own = cpu_kernels.attention(
            rows, attention, cos, sin, place, follow, cache, 4, 1e-5, 0.3
        )
        states = rows + added[:, :22]
        return [states + cpu_kernels.feed_forward(states, feed_forward, 27, 1e-5)[:, :22], own]

    rng = np.random.default_rng(0)
    for follow in (False, True):
        alone, parts = before.copy(), []
        for r in range(len(x)):
            parts.append(run(x[r : r + 1], 11 + r if follow else 11, follow, alone))
        for _ in range(20):
            batch, cache = np.sort(rng.permutation(9)[: rng.integers(1, 10)]), before.copy()
            if follow:
                batch = np.arange(len(batch))
            states, own = run(x[batch], 11, follow, cache)
            for place, r in enumerate(batch):
                assert np.array_equal(states[place], parts[r][0][0])
                assert np.array_equal(own[:, place], parts[r][1][:, 0])
            if follow:
                written = slice(11 + len(batch))
                assert np.array_equal(cache[:, :, written], alone[:, :, written])
            else:
                assert np.array_equal(cache, before)


@pytest.mark.parametrize("n", [1, 5, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_of_a_row_has_the_same_bits_in_every_batch(n: int, dtype: torch.dtype) -> None:
    weight, x = panels(torch.randn(n, 200).to(dtype)), random(16, n)
    alone = np.empty((16, 256), np.float32)
    for r in range(16):
        cpu_kernels.multiply(x[r : r + 1], weight, NONE, alone[r : r + 1])
    for rows in range(1, 17):
        for start in (0, 16 - rows):
            together = np.empty((rows, 256), np.float32)
            cpu_kernels.multiply(x[start : start + rows], weight, NONE, together)
            assert np.array_equal(together, alone[start : start + rows])
