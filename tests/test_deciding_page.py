"""What docs/deciding.md shows is what happens: every command with its output, the table, Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ppdmodel import (
    Calibration,
    Measurement,
    load,
    load_guesses,
    optimize,
    threshold_report,
)
from ppdmodel.cli import run
from ppdmodel.shapes import shape

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "deciding.md").read_text("utf-8")
SHOWN = re.findall(r"```sh\n(ppdmodel [^\n]+)\n```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed results where the page has them, and the config of a 70B model."""
    at = tmp_path_factory.mktemp("deciding")
    (at / "results").mkdir()
    name = "smollm2-135m-trained"
    (at / "results" / "trained").symlink_to(ROOT / "data" / name)
    (at / "results" / "timing.json").symlink_to(ROOT / "data" / f"{name}.timing.json")
    big = shape("Llama 2 70B")
    config = {
        "num_hidden_layers": big.layers,
        "hidden_size": big.width,
        "intermediate_size": big.inner,
        "num_attention_heads": big.heads,
        "num_key_value_heads": big.kv_heads,
        "vocab_size": big.vocabulary,
    }
    (at / "results" / "config.json").write_text(json.dumps(config))
    return at


def test_every_command_prints_what_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    assert [command.split()[1] for command, _ in SHOWN] == [
        "fit", "optimize", "optimize", "optimize", "compare", "replay", "replay"
    ]  # fmt: skip
    for command, shown in SHOWN:
        assert run(command.split()[1:]) == 0
        printed = capsys.readouterr().out
        assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines(), command


def test_what_is_said_of_several_exits() -> None:
    """20% off for 20% more, beside 19% off for 91% more, on this page and in the README."""
    name = ROOT / "data" / "smollm2-135m-trained"
    measurement, calibration = load(name), load(f"{name}.calibration.json")
    assert isinstance(measurement, Measurement)
    assert isinstance(calibration, Calibration)
    (row,) = threshold_report(measurement, load_guesses(name), prices=(8,)).prices
    (choice,) = optimize(calibration, max_compute=2).choices
    assert choice.setting is not None
    pairs = (
        (row.several_latency, row.several_compute),
        (choice.setting.normalized_latency, choice.setting.normalized_compute),
    )
    saved, more = zip(*((1 - a.value, b.value - 1) for a, b in pairs), strict=True)
    assert [round(100 * x) for x in (*saved, *more)] == [20, 19, 20, 91]
    for page in (PAGE, (ROOT / "README.md").read_text("utf-8")):
        words = " ".join(page.split())
        assert "takes 20% off the latency for 20% more" in words
        assert "the best fixed exit and k needs 91% more for 19%" in words


def test_the_python_block_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(code, {})


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
