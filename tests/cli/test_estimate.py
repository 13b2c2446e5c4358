"""`ppdmodel estimate` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ppdmodel import Measurement, fit, save
from ppdmodel.cli import run
from ppdmodel.cli.estimate import _sentence

KEYS = (
    "p_correct", "layers", "exit_layer", "k", "depth", "latency_per_token", "normalized_latency",
    "speedup", "compute_per_token", "normalized_compute", "mean_units", "peak_units",
    "exchange_rate",
)  # fmt: skip


def ppdmodel(command: str) -> int:
    return run(command.split())


def test_the_table_is_worth_reading(capsys: pytest.CaptureFixture[str]) -> None:
    assert ppdmodel("estimate --p-correct 0.7 --layers 40") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for words in ("26.00", "0.650", "1.54", "46.00", "1.150", "52.00"):
        assert words in out
    last = out.splitlines()[-1]
    assert last == "At p = 0.700, PPD takes 35% off the latency for 15% more compute."


def test_json_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert ppdmodel("estimate --p-correct 0.7 --layers 40 --json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert set(KEYS) <= set(result)
    assert result["latency_per_token"] == 26.0
    assert result["normalized_latency"] == 0.65
    assert result["compute_per_token"] == 46.0
    assert result["normalized_compute"] == 1.15
    assert result["peak_units"] == 2


def test_unlimited_depth_is_null_and_what_is_infinite_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ppdmodel("estimate --p-correct 0 --layers 40 --exit-layer 10 --depth inf --json") == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["depth"] is None
    assert result["exchange_rate"] is None
    assert result["peak_units"] == 4


def test_several_match_rates_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    command = "estimate --p-correct 0.3 --p-correct 0.9 --layers 32 --k 3"
    assert ppdmodel(command) == 0
    out = capsys.readouterr().out
    assert "0.300" in out
    assert "0.900" in out
    assert ppdmodel(f"{command} --json") == 0
    assert [r["p_correct"] for r in json.loads(capsys.readouterr().out)] == [0.3, 0.9]


def test_every_option_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        "estimate --p-correct 0.5 --layers 32 --exit-layer 8 --k 2 --depth 2 --tokens 100 "
        "--layer-time-s 0.001 --overhead 1 --target-speedup 1.2"
    )
    assert ppdmodel(command) == 0
    out = capsys.readouterr().out
    assert "100 tokens, p95" in out
    assert "match rate for 1.2×" in out
    assert ppdmodel(f"{command} --json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["total_latency"]) == {"mean", "std", "p50", "p95", "p99"}
    assert result["tokens"] == 100


@pytest.mark.parametrize("kind", ["measurement", "calibration"])
def test_from_a_result(
    measurement: Measurement, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / ("m" if kind == "measurement" else "cal.json")
    save(measurement if kind == "measurement" else fit(measurement, resamples=40), path)
    assert ppdmodel(f"estimate --from {path} --exit-layer 4 --k 2 --json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(KEYS) <= set(result)
    assert set(result["p_correct"]) == {
        "value", "ci_low", "ci_high", "n_tokens", "n_prompts", "method",
    }  # fmt: skip
    assert ppdmodel(f"estimate --from {path}") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80


def test_a_setting_that_does_not_pay_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert ppdmodel("estimate --p-correct 0 --layers 40") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "At p = 0.000, PPD saves no time and costs 50% more compute."
    result = {"p_correct": 0.25, "normalized_latency": 1.25, "normalized_compute": 1.5}
    assert _sentence(result) == "At p = 0.250, PPD costs 25% more time per token and does not pay."
    result = {"p_correct": 0.25, "normalized_latency": 0.75}
    words = _sentence(result | {"normalized_compute": None})
    assert words.endswith("the latency for more compute than can be counted.")


BAD = [
    ("--p-correct 1.5 --layers 40", "p_correct must lie in [0, 1]; got 1.5; give a probability"),
    ("--p-correct nan --layers 40", "p_correct must lie in [0, 1]; got nan; give a probability"),
    ("--p-correct 0.7 --layers 0", "layers must be a positive integer; got 0; give 1 or more"),
    ("--p-correct 0.7 --layers 4.5", "layers must be a positive integer; got 4.5; give 1 or more"),
    (
        "--p-correct 0.7 --layers 40 --exit-layer -1",
        "exit_layer must be a positive integer; got -1; give 1 or more",
    ),
    (
        "--p-correct 0.7 --layers 40 --exit-layer 41",
        "exit_layer must not exceed layers; got 41; exit layers run from 1 to 40",
    ),
    ("--p-correct 0.7 --layers 40 --k 0", "k must be a positive integer; got 0; give 1 or more"),
    (
        "--p-correct 0.7 --layers 40 --depth 0",
        "depth must be a positive integer; got 0; give 1 or more",
    ),
    (
        "--p-correct 0.7 --layers 40 --depth deep",
        "depth must be a positive integer; got deep; give 1 or more",
    ),
    (
        "--p-correct 0.7 --layers 40 --tokens none",
        "tokens must be a positive integer; got none; give 1 or more",
    ),
    (
        "--p-correct 0.7 --layers 40 --overhead -1",
        "overhead must be a number of at least 0; got -1.0; give it in layer units",
    ),
    ("--layers 40", "estimate must know the match rate and the layers; got too little;"),
    ("--from nowhere.json", "the result must exist; got nowhere.json; check the path"),
    ("--from x.json --layers 3", "--from must stand alone; got --p-correct or --layers too;"),
    ("--p-correct many --layers 40", "Invalid value for '--p-correct'"),
    ("--colour", "No such option: --colour"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    assert ppdmodel(f"estimate {options}") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {words}")
    assert captured.err.count("\n") == 1


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "ppdmodel", "estimate", "--p-correct", "2", "--layers", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: p_correct must lie in [0, 1]; got 2.0; give a probability\n"


def test_piped_output_has_no_colour_and_survives_a_closed_pipe() -> None:
    command = f"{sys.executable} -m ppdmodel estimate --p-correct 0.7 --layers 40"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
