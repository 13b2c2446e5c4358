"""The application: its version and help, groups, missing extras, unexpected failures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ppdmodel
from ppdmodel.cli import run
from ppdmodel.cli.app import COMMANDS
from tests.support.commands import refused


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"ppdmodel {ppdmodel.__version__}\n"
    for option in ("-h", "--help"):
        assert run([option]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in COMMANDS)


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


BAD: list[tuple[list[str], str]] = [
    (["measure-all"], "No such command 'measure-all'"),
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


def test_a_closed_pipe_is_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("ppdmodel.cli.estimate.estimate", closed)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert run(["estimate", "--p-correct", "0.7", "--layers", "40"]) == 1
    assert sys.stderr.closed


def test_a_package_that_is_missing_deeper_down_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("no", name="accelerate")

    monkeypatch.setattr("ppdmodel.cli.estimate.estimate", missing)
    assert run(["estimate", "--p-correct", "0.7", "--layers", "40"]) == 2
    assert "got no package 'accelerate'; install it with: pip" in capsys.readouterr().err
