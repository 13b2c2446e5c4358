"""`ppdmodel measure`, on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ppdmodel
from ppdmodel import load
from ppdmodel.cli import run
from ppdmodel.fitting.curves import FAMILIES
from ppdmodel.measure.store import UNFINISHED
from tests.support.commands import refused


def test_from_prompts_to_pictures(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cal = tmp_path / "m", tmp_path / "cal.json"
    measure = [
        "measure", "--model", str(tiny_model), "--prompts", str(prompt_file), "--out", str(out),
        "--max-new-tokens", "12", "--batch-size", "4", "--threads", "1",
    ]  # fmt: skip
    assert run(measure) == 0
    captured = capsys.readouterr()
    assert "exit layer" in captured.out
    assert "loading the model" in captured.err
    told = "16 tokens of 2 texts made again by Transformers' generate, each text alone: none differ"
    assert told in " ".join(captured.out.split()), "the last 8 of the longest text of each batch"
    assert run([*measure, "--json"]) == 0
    captured = capsys.readouterr()
    overview = json.loads(captured.out)
    assert (overview["layers"], overview["n_prompts"], overview["complete"]) == (5, 7, True)
    assert overview["repeated"] == {"n_texts": 2, "n_tokens": 16, "n_near_ties": 0}
    assert captured.err == "", "a finished measurement is reused without loading the model"

    assert run(["fit", str(out), "--out", str(cal), "--resamples", "40"]) == 0
    assert "root mean square" in capsys.readouterr().out
    assert run(["fit", str(out), "--out", str(cal), "--resamples", "40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curve"]["family"] in FAMILIES

    assert run(["optimize", str(cal), "--max-compute", "1.5", "--max-compute", "3"]) == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    assert "In layer units" in table
    assert run(["optimize", str(cal), "--max-depth", "2", "--max-units", "4", "--json"]) == 0
    decision = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert decision["settings"] > 0
    assert len(decision["choices"]) == 3

    for kind in ("match-rate", "trade-off"):
        for result in (out, cal):
            picture = tmp_path / f"{kind}.svg"
            assert run(["plot", str(result), "--kind", kind, "--out", str(picture)]) == 0
            assert picture.read_text("utf-8").count("<svg") == 1
            assert capsys.readouterr().out == f"{picture}\n"
    theory = tmp_path / "theory.png"
    assert run(["plot", "--kind", "theory", "--depth", "inf", "--out", str(theory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(theory), "kind": "theory"}


def test_ctrl_c_leaves_finished_prompts_and_says_how_to_go_on(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m"
    rows = [json.loads(line) for line in prompt_file.read_text("utf-8").splitlines()]
    many = [row | {"id": f"{row['id']}-{n}"} for n in range(2) for row in rows][:9]
    prompt_file.write_text("".join(json.dumps(row) + "\n" for row in many), encoding="utf-8")
    command = [
        sys.executable, "-m", "ppdmodel", "measure", "--model", str(tiny_model), "--prompts",
        str(prompt_file), "--out", str(out), "--max-new-tokens", "30", "--batch-size", "1",
        "--threads", "1",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list((out / UNFINISHED).glob("*.tokens.parquet")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"finished prompts are kept in {out}; the same command goes on from there" in err
    assert err.splitlines()[-1] == "error: the run was interrupted; got Ctrl-C"
    assert "Traceback" not in err
    found = load(out)
    assert isinstance(found, ppdmodel.Measurement)
    assert not found.complete
    done = len(found.prompt_ids)
    assert 1 <= done < len(many)
    assert run(command[3:]) == 0
    assert "exit layer" in capsys.readouterr().out
    again = load(out)
    assert isinstance(again, ppdmodel.Measurement)
    assert again.complete
    kept = again.prompt_index < done
    assert again.rank[kept].tolist() == found.rank.tolist()


def test_an_out_folder_with_another_measurement(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["measure", "--model", str(tiny_model), "--prompts", str(prompt_file)]
    command += ["--out", str(tmp_path / "m"), "--max-new-tokens", "2", "--threads", "1"]
    assert run(command) == 0
    capsys.readouterr()
    assert run([*command, "--limit", "3"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the out folder must hold this same measurement; got")
    assert err.count("\n") == 1


BAD: list[tuple[list[str], str]] = [
    (
        ["measure", "--model", "gpt-5", "--out", "{tmp}/m"],
        "model must be a known name (smollm2-135m, gemma3-270m), a GGUF file, a folder or a "
        "Hugging Face id (owner/name); got 'gpt-5'",
    ),
    (
        ["measure", "--model", "{tmp}/no.gguf", "--out", "{tmp}/m"],
        "model must be a known name (smollm2-135m, ",
    ),
    (
        ["measure", "--out", "{tmp}/m", "--prompts", "{tmp}/none.jsonl"],
        "the prompt file must exist; got",
    ),
    (
        ["measure", "--out", "{tmp}/m", "--max-new-tokens", "0"],
        "max_new_tokens must be a positive integer; got 0; give 1 or more",
    ),
    (
        ["measure", "--out", "{tmp}/m", "--limit", "1000"],
        "limit must not exceed the prompts; got 1000; there are",
    ),
    (
        ["measure", "--out", "{tmp}/m", "--dtype", "float64"],
        "dtype must be one of float32, bfloat16, float16",
    ),
    (["measure"], "Missing option '--out'"),
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
