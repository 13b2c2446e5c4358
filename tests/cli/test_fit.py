"""`ppdmodel fit`: parameters, what is not determined, and the timing it keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ppdmodel import load
from ppdmodel.cli.fit import render
from ppdmodel.results.calibration import Calibration
from tests.pipeline.test_prediction_error import a_timing
from tests.support.commands import DATA, document, refused, said


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


def test_a_search_that_did_not_converge_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    assert "did not converge" not in said(capsys, "fit", folder, "--out", out, "--resamples", "40")
    calibration = load(out)
    assert isinstance(calibration, Calibration)
    render(replace(calibration, curve=replace(calibration.curve, converged=False)), out)
    assert "The search for the best parameters did not converge." in capsys.readouterr().out


def test_coupled_guesses_of_sampled_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are right more often, and make no claim about the probabilities of plain guesses."""
    rates = []
    for coupled in ([], ["--coupled"]):
        command = ["fit", DATA / "smollm2-135m-sampled", "--out", tmp_path / "c", *coupled]
        document(capsys, *command, "--resamples", "40", "--family", "floored power", "--k-max", "2")
        calibration = load(tmp_path / "c")
        assert isinstance(calibration, Calibration)
        rates.append(calibration.hits[:, 24, 0].sum() / calibration.tokens.sum())
        assert not (coupled and calibration.reliability)
    assert rates[1] > rates[0] + 0.05


BAD: list[tuple[list[str], str]] = [
    (["fit", "{tmp}/none", "--out", "{tmp}/c"], "the result must exist; got"),
    (["fit", "{tmp}", "--out", "{tmp}/c"], "a measurement folder must hold summary.json; got"),
    (
        ["fit", "{tmp}", "--out", "{tmp}/c", "--resamples", "0"],
        "resamples must be a positive integer; got 0",
    ),
    (
        ["fit", "{folder}", "--out", "{tmp}/cal.json", "--family", "spline"],
        "the family must be one of",
    ),
    (
        ["fit", "{folder}", "--out", "{tmp}/cal.json", "--timing", "{timing}"],
        "the timing must be of the measured",
    ),
    (["fit", "{folder}", "--out", "{folder}"], "{folder} must be a file; got a folder or device"),
    (["fit", "{folder}", "--out", "/dev/full"], "/dev/full must be a file; got a folder or device"),
    (["fit", "{folder}", "--out", "{tmp}/cal.json", "--seed", "-1"], "seed must be 0 or more"),
    (
        ["fit", "{folder}", "--out", "{tmp}/cal.json", "--k-max", "100000"],
        "k_max must be at most 1000",
    ),
    (
        ["fit", "{folder}", "--out", "{tmp}/cal.json", "--resamples", "5"],
        "resamples must be at least",
    ),
    (
        ["fit", "--table", "x", "--layers", "6", "--out", "{tmp}/cal.json", "--k-max", "3"],
        "--k-max must",
    ),
    (
        ["fit", "--table", "x", "--layers", "6", "--out", "{tmp}/cal.json", "--coupled"],
        "--coupled must",
    ),
    (
        ["fit", "--table", "x", "--layers", "6", "--out", "{tmp}/cal.json", "--prompt-lookup", "2"],
        "--prompt-lookup must",
    ),
    (
        ["fit", "{folder}", "--out", "{tmp}/cal.json", "--prompt-lookup", "2", "--coupled"],
        "prompt lookup needs recorded guesses, which are without coupled noise; got --coupled",
    ),
    (
        ["fit", "{folder}", "--out", "{tmp}/cal.json", "--prompt-lookup", "2"],
        "prompt lookup beside an exit needs what the model read and the exit's guesses; got a "
        "measurement without prompts; measure again, with guesses",
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
