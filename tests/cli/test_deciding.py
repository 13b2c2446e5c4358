"""Commands fit, optimize, compare and replay as a user runs them, on a measurement on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppdmodel import load, save
from ppdmodel.cli import run
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.files import GUESSES_FILE
from ppdmodel.results.parquet import write_guesses
from tests.conftest import make_measurement
from tests.decide.test_threshold_rule import made_up
from tests.pipeline.test_prediction_error import a_timing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measurement of 20 prompts, six layers, with guesses."""
    out = tmp_path_factory.mktemp("m") / "m"
    measurement, guesses = made_up()
    save(measurement, out)
    write_guesses(guesses, out / GUESSES_FILE)
    return out


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A measurement of thirty layers, and a timing of the same model."""
    at = tmp_path_factory.mktemp("t")
    made = make_measurement(layers=30)
    save(replace(made, provenance={**made.provenance, "weights_sha256": ["0"]}), at / "m")
    save(a_timing(), at / "timing.json")
    return at / "m", at / "timing.json"


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that must succeed prints; no line is wider than 80 columns."""
    assert run([str(argument) for argument in arguments]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if not line.startswith("Written: ")]  # a path
    assert max(map(len, lines)) <= 80, out
    return " ".join(out.split())


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_fit_keeps_the_timing(
    timed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measurement, timing = timed
    out = tmp_path / "cal.json"
    shown = said(capsys, "fit", measurement, "--timing", timing, "--out", out, "--resamples", "40")
    assert "std. error" in shown
    assert "behind by" in shown
    calibration = load(out)
    assert isinstance(calibration, Calibration)
    assert calibration.timing == a_timing()
    assert sum(c.behind == 0 for c in calibration.curve.candidates) >= 1

    shown = said(capsys, "optimize", out, "--max-compute", "3", "--price", "2")
    assert "ms per token" in shown
    assert "with every product split over all of them" in shown
    ideal = said(capsys, "optimize", out, "--ideal")
    assert "layer times per token" in ideal
    decision = document(capsys, "optimize", out)
    assert decision["costs"] == "measured times"
    assert decision["plain_latency_s"] > 0

    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
                "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
            }
        )
    )  # fmt: skip
    shown = said(capsys, "optimize", out, "--roofline", config, "--device", "A100 SXM 80GB")
    assert "Ideal: times from weights and data sheets" in shown


def test_what_is_not_determined_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", folder, "--out", tmp_path / "c", "--k-max", "1", "--resamples", "40"]
    command += ["--family", "floored power"]
    assert said(capsys, *command).count("not determined") == 3
    parameters = document(capsys, *command)["curve"]["parameters"]
    assert parameters["floor_gain"]["ci_low"] is None


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "compare", folder, "--max-units", "4", "--acceptance-rate", "0.7")
    for name in ("plain decoding", "PPD, gated", "self-speculation", "speculative", "split layers"):
        assert name in shown
    assert "is the fastest" in shown
    found = document(capsys, "compare", folder)
    assert found["methods"][0]["name"] == "plain decoding"


def test_replay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "replay", folder, "--exit-layer", "4", "--k", "2")
    assert "independent matches" in shown
    assert "off the latency" in shown
    assert document(capsys, "replay", folder, "--exit-layer", "3,5", "--k", "1,2", "--depth", "inf")
    shown = said(capsys, "replay", folder, "--price", "1", "--price", "4")
    assert "The rule beats the best fixed setting at" in shown
    assert "The best two exits, each with a fixed k" in shown
    assert "Reading an exit counts as nothing" in shown
    shown = said(capsys, "replay", folder, "--price", "4", "--exit-cost", "0.5")
    assert "Reading an exit counts as 0.5 layer executions" in shown
    prices = document(capsys, "replay", folder, "--price", "4", "--price", "1")["prices"]
    assert [row["price"] for row in prices] == [1, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "FOLDER"], "replay needs a policy; got none"),
        (
            ["replay", "FOLDER", "--exit-layer", "3", "--price", "1"],
            "replay needs a policy; got two",
        ),
        (["replay", "FOLDER", "--exit-layer", "9"], "exit_layer"),
        (["replay", "FOLDER", "--price", "-1"], "price"),
        (["replay", "FOLDER", "--exit-layer", "3", "--seed", "-1"], "seed must be 0 or more"),
        (["compare", "FOLDER", "--max-compute", "0.5"], "max_compute must be at least 1"),
        (["compare", "FOLDER", "--max-compute", "nan"], "max_compute must be at least 1"),
        (["compare", "nowhere"], "the result must exist"),
        (["fit", "FOLDER", "--out", "OUT", "--family", "spline"], "the family must be one of"),
        (
            ["fit", "FOLDER", "--out", "OUT", "--timing", "TIMING"],
            "the timing must be of the measured",
        ),
        (["fit", "FOLDER", "--out", "FOLDER"], "must be a file; got a folder or device"),
        (["fit", "FOLDER", "--out", "/dev/full"], "must be a file; got a folder or device"),
        (["fit", "FOLDER", "--out", "OUT", "--seed", "-1"], "seed must be 0 or more"),
        (["fit", "FOLDER", "--out", "OUT", "--k-max", "100000"], "k_max must be at most 1000"),
        (["plot", "FOLDER", "--kind", "compare", "--out", "FOLDER"], "must be a file"),
        (["optimize", "FOLDER"], "optimize must be given a calibration"),
        (["fit", "FOLDER", "--out", "OUT", "--resamples", "5"], "resamples must be at least 40"),
        (["fit", "--table", "x", "--layers", "6", "--out", "OUT", "--k-max", "3"], "--k-max must"),
        (["fit", "--table", "x", "--layers", "6", "--out", "OUT", "--coupled"], "--coupled must"),
        (["optimize", "FOLDER", "--device", "L40S"], "--device must come with --roofline; got"),
        (["optimize", "FOLDER", "--link-time-s", "0"], "--link-time-s must come with --roofline"),
        (["optimize", "FOLDER", "--ideal", "--roofline", "x"], "ideal counts layers, and roofline"),
        (["compare", "FOLDER", "--draft-time", "0.2"], "must come with --acceptance-rate; got 0.2"),
        (["replay", "FOLDER", "--exit-layer", "6"], "exit_layer must lie below layer 6, the last"),
        (["replay", "FOLDER", "--price", "1", "--k", "2"], "--k must come with --exit-layer"),
        (["replay", "FOLDER", "--price", "1", "--depth", "2"], "--depth must come with --exit"),
        (["replay", "FOLDER", "--price", "1", "--gate", "0.5"], "--gate must come with --exit"),
        (
            ["replay", "FOLDER", "--exit-layer", "3", "--exit-cost", "1"],
            "--exit-cost must come with --price",
        ),
        (
            ["replay", "FOLDER", "--exit-layer", "3", "--timing", "TIMING"],
            "--timing must come with --price",
        ),
        (["replay", "FOLDER", "--price", "1", "--exit-cost", "-1"], "exit_cost"),
        (
            ["replay", "FOLDER", "--price", "1", "--exit-cost", "1", "--timing", "TIMING"],
            "the cost of reading must be given once",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    folder: Path,
    timed: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"FOLDER": str(folder), "OUT": str(tmp_path / "cal.json"), "TIMING": str(timed[1])}
    assert run([places.get(argument, argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "cal.json").exists()
