"""`ppdmodel compare`: the methods side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ppdmodel.cli.compare import sentence
from ppdmodel.decide.compare import compare
from ppdmodel.results.io import load_rates
from tests.support.commands import DATA, document, refused, said


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "compare", folder, "--max-units", "4", "--acceptance-rate", "0.7")
    for name in ("plain decoding", "PPD, gated", "self-speculation", "speculative", "split layers"):
        assert name in shown
    assert "is the fastest" in shown
    found = document(capsys, "compare", folder)
    assert found["methods"][0]["name"] == "plain decoding"


def test_the_fastest_in_measured_times_is_said_too(
    timed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    measurement, timing = timed
    shown = said(capsys, "compare", measurement, "--timing", timing)
    found = document(capsys, "compare", measurement, "--timing", timing)["methods"]
    rows = [row for row in found if "timed" in row["name"]]
    fastest = min(rows, key=lambda row: (row["held_out"] or row["latency"])["value"])
    assert f"In measured times the fastest is {fastest['name']}, {fastest['setting']}, 0." in shown
    assert "Left out: " in said(capsys, "compare", measurement, "--max-units", "1")


def test_where_nothing_is_faster_in_measured_times_it_says_so() -> None:
    result = compare(load_rates(DATA / "smollm2-135m-trained.calibration.json"))
    slow = replace(result.methods[0], name="split layers, timed", setting="2 units")
    counted = replace(result.methods[1], name="PPD", basis="measured")
    words = sentence(replace(result, methods=(*result.methods[:2], counted, slow)))
    assert words.endswith(". In measured times nothing is faster than plain decoding.")


BAD: list[tuple[list[str], str]] = [
    (["compare", "{folder}", "--max-compute", "0.5"], "max_compute must be at least 1"),
    (["compare", "{folder}", "--max-compute", "nan"], "max_compute must be at least 1"),
    (["compare", "nowhere"], "the result must exist"),
    (
        ["compare", "{folder}", "--draft-time", "0.2"],
        "--draft-time must come with --acceptance-rate; got 0.2",
    ),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    folder: Path,
    timed: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    (tmp_path / "text").write_text("not json")
    refused(capsys, command, message, tmp=tmp_path, folder=folder, timing=timed[1])
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
