"""What a long run says on standard error while it works and when it is interrupted."""

from __future__ import annotations

import json
import os
import pty
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ppdmodel import fit, save
from ppdmodel.cli import progress as module
from ppdmodel.cli import run
from ppdmodel.cli.progress import progress_bar, resumable
from ppdmodel.progress import Progress
from ppdmodel.results.io import read_measurement


def test_lines_where_it_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_S", 0)
    with progress_bar() as report:
        report(Progress("loading", 0, 0))
        report(Progress("decoding", 500, 0.5))
        report(Progress("decoding", 500, 0.75))
        report(Progress("fitting resamples", 0, 0.9))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "loading the model ...",
        "50% done, 500 tokens, 0 tokens/s",
        "75% done, 500 tokens, 0 tokens/s",
        "90% done",
    ]


COUNTS = "exit_layer,k,hits,n,prompt_id\n" + "".join(
    f"{e},{k},{e + k + n},20,p{n}\n" for n in range(4) for e in (2, 3) for k in (1, 2)
)


@pytest.mark.parametrize(
    ("words", "least"),
    [
        ("fit {m} --k-max 2 --family 'rank tail' --resamples 400 --out {out}/cal.json", 8),
        ("fit --table {counts} --layers 4 --resamples 400 --out {out}/cal.json", 1),
        ("optimize {cal}", 18),
        ("compare {m}", 25),
        ("replay {m} --price 1 --price 4", 22),
        ("plot {m} --kind compare --out {out}/p.svg", 25),
        ("merge {m} --out {out}/merged", 1),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_command_that_resamples_or_joins_tells_its_progress(
    words: str,
    least: int,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the beginning to the end, never back, and not on standard output."""
    monkeypatch.setattr(module, "LINE_S", 0)
    counts, cal = tmp_path / "counts.csv", tmp_path / "cal.json"
    counts.write_text(COUNTS)
    if "{cal}" in words:
        save(fit(read_measurement(folder), k_max=2, family="rank tail", resamples=400), cal)
    places = {"m": folder, "counts": counts, "cal": cal, "out": tmp_path}
    assert run([*(word.format(**places) for word in shlex.split(words)), "--json"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    shares = [int(line.split("%")[0]) for line in captured.err.splitlines() if "% done" in line]
    assert len(shares) >= least
    assert shares == sorted(shares)
    assert shares[-1] >= 90


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
