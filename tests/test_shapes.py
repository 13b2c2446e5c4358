"""Sizes of decoders against known counts, and what is not there."""

from __future__ import annotations

import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.shapes import memory, models, shape


@pytest.mark.parametrize(
    ("name", "layer", "head"),
    [
        ("SmolLM2 135M", 2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536, 28_311_552),
        ("Llama 2 7B", 67_108_864 + 135_266_304, 131_072_000),
        ("Llama 2 70B", 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672, 262_144_000),
    ],
)
def test_weights(name: str, layer: int, head: int) -> None:
    assert shape(name).layer_weights == layer
    assert shape(name).head_weights == head


def test_the_small_model_has_as_many_weights_as_its_name_says() -> None:
    """134 515 008 with two norms a layer and one at the end; the head is the embedding."""
    small = shape("SmolLM2 135M")
    norms = (2 * small.layers + 1) * small.width
    assert small.layers * small.layer_weights + small.head_weights + norms == 134_515_008


def test_times_go_with_the_bytes() -> None:
    model = shape("Llama 2 7B")
    assert model.layer_time_s(1e12) == model.layer_weights * 2 / 1e12
    assert model.head_time_s(1e12, 0.5) == model.head_weights / 2 / 1e12


def test_every_entry_has_a_source() -> None:
    assert all(shape(name).source.startswith("config.json of ") for name in models())
    assert memory("H100 SXM") == 3.35e12


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"got 'GPT'; choose from SmolLM2 135M, Llama 2 7B"):
        shape("GPT")
    with pytest.raises(InvalidInputError, match=r"got 'A100'; choose from A100 SXM 80GB, H100"):
        memory("A100")
    with pytest.raises(InvalidInputError, match=r"bytes_per_s must be positive; got 0"):
        shape("Llama 2 7B").layer_time_s(0)
