"""What a long run says on standard error while it works and when it is interrupted."""

from __future__ import annotations

import os
import pty
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ppdmodel.cli import progress as module
from ppdmodel.cli.progress import progress_bar, resumable
from ppdmodel.measure.progress import Progress


def test_lines_where_it_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_S", 0)
    with progress_bar() as report:
        report(Progress("loading", 0, 0))
        report(Progress("decoding", 500, 0.5))
        report(Progress("decoding", 500, 0.75))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "loading the model ...",
        "50% done, 500 tokens, 0 tokens/s",
        "75% done, 500 tokens, 0 tokens/s",
    ]


def test_only_the_first_of_several_processes_reports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_S", 0)
    monkeypatch.setenv("RANK", "1")
    with progress_bar() as report:
        report(Progress("decoding", 500, 0.5))
    assert capsys.readouterr().err == ""


def test_the_bar_of_a_run_that_goes_on_does_not_start_at_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar() as report:
            report(Progress("loading", 0, 0))
            report(Progress("decoding", 500, 0.6))
            report(Progress("decoding", 900, 1.0))
    written = []
    with suppress(OSError):  # the terminal is closed, and all of it is read
        while part := os.read(ours, 100_000):
            written.append(part)
    os.close(ours)
    shown = b"".join(written).decode()
    assert "loading the model ..." in shown
    assert "100%" in shown
    assert "900 tokens" in shown
    assert "  0%" not in shown


def test_an_interrupted_run_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), resumable("finished prompts are", Path("some/out")):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == (
        "finished prompts are kept in some/out; the same command goes on from there\n"
    )
    with resumable("finished prompts are", Path("some/out")):
        pass
    assert capsys.readouterr().err == ""
