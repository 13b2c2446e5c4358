"""What docs/deciding.md says in its text and its table is in the committed data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ppdmodel import (
    Measurement,
    compare,
    load,
    load_guesses,
    threshold_report,
)
from ppdmodel.results import Timing
from ppdmodel.shapes import shape

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "deciding.md").read_text("utf-8")


def test_what_is_said_of_several_exits() -> None:
    """What the rule and fixed settings take off at equal compute, here and in the README."""
    name = ROOT / "data" / "smollm2-135m-trained"
    measurement, timing = load(name), load(f"{name}.timing.json")
    assert isinstance(measurement, Measurement)
    assert isinstance(timing, Timing)
    guesses = load_guesses(name)
    (row,) = threshold_report(measurement, guesses, prices=(4,)).prices
    compared = compare(measurement, guesses=guesses, max_compute=1.2)
    fixed = {method.name: 1 - method.latency.value for method in compared.methods}
    saved, more = 1 - row.several_latency.value, row.several_compute.value - 1
    assert (round(100 * saved), round(100 * more)) == (21, 20)
    assert round(100 * fixed["PPD"]) == 13
    assert round(100 * fixed["PPD, two exits"]) == 17
    words = " ".join(PAGE.split())
    assert "takes 21% off the latency for 20% more layer executions" in words
    assert "one exit with a fixed k takes 13% off, and two exits with fixed k take 17%" in words
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert "takes 21% off the latency for 20% more layer executions; at that compute" in readme
    assert "one exit with a fixed k takes 13% off" in readme
    exit_time = np.median([timing.by_k[3]["exit_time_s"][n].value for n in range(4)])
    assert f"{exit_time / timing.terms['layer_time_s'].value:.1f}" == "5.4"
    big = shape("Llama 2 70B")
    assert f"{big.head_weights / big.layer_weights:.1f} of a layer" in PAGE


def test_the_table_of_coverage_is_the_committed_one() -> None:
    document = json.loads((ROOT / "data" / "interval-coverage.json").read_text("utf-8"))
    rows = document["rows"]
    for p in {row["p_correct"] for row in rows}:
        mine = sorted((r for r in rows if r["p_correct"] == p), key=lambda r: r["prompts"])
        cells = [f"{row['coverage']:.3f}" for row in mine]
        wilson = next(row["wilson_coverage"] for row in mine if row["prompts"] == 72)
        assert f"| {p:g} | {' | '.join(cells)} | {wilson:.3f} |" in PAGE
    for row in rows:
        if row["prompts"] >= 60 and 0.1 <= row["p_correct"] <= 0.9:
            assert 0.93 <= row["coverage"] <= 0.97
            assert row["wilson_coverage"] < 0.8
    assert f"({rows[0]['n']} measurements each)" in PAGE
