"""Proofs of theory/12-ideal-times.md."""

from __future__ import annotations

import pytest

from ppdmodel import normalized_latency, roofline_time
from ppdmodel.decide.hardware import device, published_decoding, shape
from ppdmodel.decide.prediction import predicted_latency_s, predicted_plain_latency_s
from ppdmodel.decide.roofline import roofline
from tests.theory.latex import THEORY

PAGE = (THEORY / "12-ideal-times.md").read_text("utf-8")


def test_rows_are_free_up_to_the_ridge() -> None:
    """With b F / (2 B) rows, reading and computing take equally long."""
    w, b, memory, flops = 1e9, 2, 3.35e12, 989e12
    ridge = b * flops / (2 * memory)
    assert round(ridge) == 295
    assert "r_0 = 295" in PAGE
    below, above = int(ridge), int(ridge) + 1
    assert roofline_time(w, 1, b, memory, flops) == roofline_time(w, below, b, memory, flops)
    assert roofline_time(w, below, b, memory, flops) == w * b / memory
    assert roofline_time(w, above, b, memory, flops) == 2 * w * above / flops


def test_with_ideal_times_a_match_saves_the_layers_after_the_exit() -> None:
    timing = roofline(shape("Llama 2 7B"), device("H100 SXM"))
    tau = timing.terms["layer_time_s"].value
    heads = timing.terms["head_time_s"].value / tau
    for e in (16, 20, 27, 31):
        for p in (0.0, 0.3, 0.9, 1.0):
            ratio = float(predicted_latency_s(timing, p, e, 3)) / predicted_plain_latency_s(timing)
            in_layers = (32 * normalized_latency(p, 32, e) + heads) / (32 + heads)
            assert ratio == pytest.approx(in_layers)


def test_the_table_of_the_page() -> None:
    rows = published_decoding()
    for row in rows:
        timing = roofline(
            shape(row["model"]),
            device(row["device"]),
            bytes_per_weight=row["bytes_per_weight"],
            units_per_process=row["units"],
        )
        ideal, measured = 1e3 * predicted_plain_latency_s(timing), 1e3 / row["tokens_per_s"]
        line = (
            f"| {row['model']} | {row['units']} | {row['bytes_per_weight']} | {measured:.2f} | "
            f"{ideal:.2f} | {ideal / measured:.2f} |"
        )
        assert line in PAGE
    assert PAGE.count("| Llama 2") == len(rows)
