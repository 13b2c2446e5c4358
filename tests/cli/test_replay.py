"""`ppdmodel replay`: a policy, and the threshold rule at prices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ppdmodel.cli.replay import sentence
from ppdmodel.decide.replay_report import replay_report
from ppdmodel.simulation.policy import Policy
from tests.conftest import make_measurement
from tests.support.commands import document, refused, said


def test_replay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "replay", folder, "--exit-layer", "4", "--k", "2")
    assert "independent matches" in shown
    assert "off the latency" in shown
    assert document(capsys, "replay", folder, "--exit-layer", "3,5", "--k", "1,2", "--depth", "inf")
    shown = said(capsys, "replay", folder, "--price", "1", "--price", "4")
    assert "The rule beats the best fixed setting at" in shown
    assert "The best two exits, each with a fixed k" in shown
    assert "Reading an exit counts as nothing" in shown
    shown = said(capsys, "replay", folder, "--price", "0.01")
    assert shown.count("plain") >= 2, "where time is worth nothing, no exit is read"
    shown = said(capsys, "replay", folder, "--price", "4", "--exit-cost", "0.5")
    assert "Reading an exit counts as 0.5 layer executions" in shown
    prices = document(capsys, "replay", folder, "--price", "4", "--price", "1")["prices"]
    assert [row["price"] for row in prices] == [1, 4]


def test_matches_that_come_in_runs_are_warned_of() -> None:
    measurement = make_measurement(tokens=120)
    rank = measurement.rank.copy()
    rank[:, 0] = 1 + (measurement.position // 20) % 2  # twenty matches, then twenty misses
    report = replay_report(replace(measurement, rank=rank), Policy(1, depth=2))
    assert report.misleads is not None
    assert sentence(report).endswith("off here, outside the interval: matches come in runs.")
    one = replay_report(make_measurement(prompts=1), Policy(3))
    assert sentence(one).endswith("% off; one prompt gives no interval.")
    several = sentence(replay_report(make_measurement(), Policy((3, 5), depth=None)))
    assert several.endswith("% off the latency."), "no formula is compared"


BAD: list[tuple[list[str], str]] = [
    (["replay", "{folder}"], "replay needs a policy; got none"),
    (["replay", "{folder}", "--exit-layer", "3", "--price", "1"], "replay needs a policy; got two"),
    (["replay", "{folder}", "--exit-layer", "9"], "exit_layer"),
    (["replay", "{folder}", "--price", "-1"], "price"),
    (["replay", "{folder}", "--exit-layer", "3", "--seed", "-1"], "seed must be 0 or more"),
    (["replay", "{folder}", "--exit-layer", "6"], "exit_layer must lie below layer 6, the last"),
    (["replay", "{folder}", "--price", "1", "--k", "2"], "--k must come with --exit-layer"),
    (["replay", "{folder}", "--price", "1", "--depth", "2"], "--depth must come with --exit"),
    (["replay", "{folder}", "--price", "1", "--gate", "0.5"], "--gate must come with --exit"),
    (
        ["replay", "{folder}", "--exit-layer", "3", "--exit-cost", "1"],
        "--exit-cost must come with --price",
    ),
    (
        ["replay", "{folder}", "--exit-layer", "3", "--timing", "{timing}"],
        "--timing must come with --price",
    ),
    (["replay", "{folder}", "--price", "1", "--exit-cost", "-1"], "exit_cost"),
    (
        ["replay", "{folder}", "--price", "1", "--exit-cost", "1", "--timing", "{timing}"],
        "the cost of reading must be given once",
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
