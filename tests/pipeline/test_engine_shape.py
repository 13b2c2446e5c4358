"""Shapes of the KV cache of a text and of its guesses."""

from __future__ import annotations

from ppdmodel.pipeline.engine_shape import EngineShape


def test_shapes_of_caches() -> None:
    shape = EngineShape(
        layers=3, width=32, heads=8, kv_heads=2, head_size=4, inner=48, vocabulary=96,
        epsilon=1e-5, scaling=0.5,
    )  # fmt: skip
    assert shape.cache(17) == (3, 2, 2, 17, 4)
    assert shape.guesses(5) == (3, 2, 5, 2, 4)
