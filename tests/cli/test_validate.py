"""`ppdmodel validate`: what it prints of a report, and what is refused before it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppdmodel.cli.validate import _from_the_middle, render
from tests.support.commands import DATA, refused


def test_every_cell_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "smollm2-135m-validation" / "validation.json"
    report = json.loads(path.read_text("utf-8"))
    render(report, Path("out"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    cells = [line.split() for line in lines if line.split()[0].isdecimal()][: len(report["cells"])]
    for line, cell in zip(cells, report["cells"], strict=True):
        assert line[:3] == [str(cell["exit_layer"]), str(cell["k"]), f"{cell['predicted']:.3f}"]
        assert (line[-1] == "fitted") is not cell["held_out"]
    assert lines[-1] == "Every run: out"


def test_what_became_of_the_guesses_is_printed_where_it_was_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = DATA / "smollm2-135m-validation" / "validation.json"
    report = json.loads(path.read_text("utf-8"))
    render(report, Path("out"))
    assert "right guess" not in capsys.readouterr().out, "an earlier version did not count them"
    rates = {"match_rate": 0.375, "predicted_match_rate": 0.4, "late_rate": 0.125}
    rates |= {"right_rate": 0.5, "predicted_right_rate": 0.625}
    cells = [row | rates for row in report["cells"]]
    render({**report, "cells": cells}, Path("out"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in cells:
        shown = [str(row["exit_layer"]), str(row["k"]), "0.375", "0.400", "0.125", "0.500", "0.625"]
        assert shown in lines


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [(30, [15, 17, 20, 22, 25, 27]), (6, [3, 4, 5]), (3, [2]), (80, [40, 46, 52, 58, 64, 70])],
)
def test_exits_from_the_middle_to_near_the_end(layers: int, chosen: list[int]) -> None:
    assert _from_the_middle(layers) == chosen


def test_without_settings_that_were_not_fitted_there_is_no_error_to_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = DATA / "smollm2-135m-validation" / "validation.json"
    report = json.loads(path.read_text("utf-8"))
    fitted = [cell for cell in report["cells"] if not cell["held_out"]]
    render({**report, "cells": fitted, "held_out": {"n_cells": 0}}, Path("out"))
    out = capsys.readouterr().out
    assert "settings not fitted" not in out
    assert "times as fast as plain decoding" in " ".join(out.split())


BAD: list[tuple[str, str]] = [
    ("validate --out {tmp}/v", "Missing option '--calibration'"),
    (
        "validate --out {tmp}/v --calibration {rates}",
        "validate needs costs; got none",
    ),
    (
        "validate --out {tmp}/v --calibration {rates} --seed -1",
        "seed must be 0 or more; got -1",
    ),
    (
        "validate --out {tmp}/v --calibration {rates} --exit-layers 5,x",
        "exit_layers must be a positive integer; got x",
    ),
    (
        "validate --out {tmp}/v --calibration {rates} --timing {times} --model gpt-5",
        "model must be a known name",
    ),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    name = DATA / "smollm2-135m-trained"
    places = {"rates": f"{name}.calibration.json", "times": f"{name}.timing.json"}
    refused(capsys, command.split(), message, tmp=tmp_path, **places)
    assert list(tmp_path.iterdir()) == []
