"""Sizes of decoders against known counts, and what is not there."""

from __future__ import annotations

import pytest

from ppdmodel.decide.hardware import device, models, published_decoding, shape
from ppdmodel.errors import InvalidInputError


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


def test_every_entry_has_a_source() -> None:
    assert all(shape(name).source.startswith("config.json of ") for name in models())
    assert device("H100 SXM").bytes_per_s == 3.35e12
    for row in published_decoding():
        assert row["model"] in models()
        assert device(row["device"]).source
        assert row["source"]
    assert len(published_decoding()) >= 3


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"got 'GPT'; choose from SmolLM2 135M, Llama 2 7B"):
        shape("GPT")
    with pytest.raises(InvalidInputError, match=r"got 'A100'; choose from A100 SXM 80GB, H100"):
        device("A100")
