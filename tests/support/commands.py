"""Run commands as a user does, and check their output and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppdmodel import save
from ppdmodel.cli import run
from ppdmodel.results.files import GUESSES_FILE
from ppdmodel.results.parquet import write_guesses
from tests.conftest import make_measurement
from tests.decide.test_threshold_rule import made_up
from tests.pipeline.test_prediction_error import a_timing

DATA = Path(__file__).parents[2] / "data"


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The output of a command that must succeed; no line is wider than 80 columns."""
    assert run([str(argument) for argument in arguments]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if not line.startswith("Written: ")]  # a path
    assert max(map(len, lines)) <= 80, out
    return " ".join(out.split())


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON document of a command; there are no NaN and no infinities in it."""
    assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def refused(
    capsys: pytest.CaptureFixture[str], command: list[str], message: str, **places: object
) -> None:
    """Bad input is one line on standard error, exit code 2, and nothing is written."""
    assert run([word.format(**places) for word in command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: " + message.format(**places))


def a_measurement(out: Path) -> Path:
    """A measurement of 20 prompts, six layers, with guesses."""
    measurement, guesses = made_up()
    save(measurement, out)
    write_guesses(guesses, out / GUESSES_FILE)
    return out


def a_timed_measurement(at: Path) -> tuple[Path, Path]:
    """A measurement of thirty layers, and a timing of the same model."""
    made = make_measurement(layers=30)
    save(replace(made, provenance={**made.provenance, "weights_sha256": ["0"]}), at / "m")
    save(a_timing(), at / "timing.json")
    return at / "m", at / "timing.json"
