"""`ppdmodel time`: what it prints of a timing, and what is refused before a model is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ppdmodel.cli.time import render
from ppdmodel.results.io import load_timing
from tests.support.commands import DATA, document, refused


def test_the_tables_have_every_term(capsys: pytest.CaptureFixture[str]) -> None:
    timing = load_timing(DATA / "smollm2-135m-trained.timing.json")
    render(timing, Path("timing.json"))
    lines = capsys.readouterr().out.splitlines()
    term = timing.terms["head_time_s"]
    numbers = f"{1e3 * term.value:.3f} [{1e3 * term.ci_low:.3f}, {1e3 * term.ci_high:.3f}]"
    (line,) = [line for line in lines if line.startswith("the head ")]
    assert " ".join(line.split()) == f"the head {numbers}"
    rows = [line.split() for line in lines]
    assert sum(row[:1] == ["5"] and len(row) == 8 for row in rows) == len(timing.exit_layers)
    assert lines[-1].endswith("All samples: timing.json")


def test_the_document_has_the_terms_without_their_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = load_timing(DATA / "smollm2-135m-trained.timing.json")
    monkeypatch.setattr("ppdmodel.measure.load_model", lambda *_: None)
    monkeypatch.setattr("ppdmodel.pipeline.time_model", lambda *_, **__: timing)
    out = tmp_path / "timing.json"
    found = document(capsys, "time", "--out", out)
    assert load_timing(out) == timing
    assert found["out"] == str(out)
    assert found["terms"]["head_time_s"]["value"] == timing.terms["head_time_s"].value
    assert found["machine"] == timing.provenance["machine"]
    assert found["random_weights"] is False
    assert not {"samples", "provenance"} & set(found)


def test_random_weights_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    timing = load_timing(DATA / "smollm2-135m-trained.timing.json")
    render(timing, Path("timing.json"))
    assert "RANDOM WEIGHTS" not in capsys.readouterr().out
    about = {**timing.provenance, "random_weights": {"seed": 0}}
    render(replace(timing, provenance=about), Path("timing.json"))
    assert capsys.readouterr().out.splitlines()[1].startswith("RANDOM WEIGHTS: times of this shape")


BAD: list[tuple[str, str]] = [
    ("time", "Missing option '--out'"),
    ("time --out {tmp}/t --k 1,0", "k must be a positive integer; got 0"),
    ("time --out {tmp}/t --rounds x", "rounds must be a positive integer; got x"),
    ("time --out {tmp}", "{tmp} must be a file; got a folder"),
    ("time --out {tmp}/t --model gpt-5", "model must be a known name"),
    ("time --out {tmp}/t --config c.json", "--config must come with --random-weights; got c.json"),
    (
        "time --out {tmp}/t --random-weights",
        "random weights must have a shape, and no model; got no --config; give --config",
    ),
    (
        "time --out {tmp}/t --random-weights --config c.json --model gpt-5",
        "random weights must have a shape, and no model; got --model gpt-5; give --config",
    ),
    (
        "time --out {tmp}/t --random-weights --config {tmp}/c.json",
        "config must be a config.json or a known shape (SmolLM2 135M, ",
    ),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    refused(capsys, command.split(), message, tmp=tmp_path, data=DATA)
    assert list(tmp_path.iterdir()) == []
