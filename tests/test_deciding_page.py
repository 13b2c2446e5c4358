"""What docs/deciding.md shows is what happens: every command with its output, the table, Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ppdmodel import (
    Measurement,
    compare,
    load,
    load_guesses,
    threshold_report,
)
from ppdmodel.cli import run
from ppdmodel.results import Timing
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
