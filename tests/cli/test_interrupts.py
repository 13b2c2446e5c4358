"""Commands that are stopped: by a signal at any import, by SIGKILL at any change of a file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ppdmodel.results.files import GUESSES_FILE, SUMMARY_FILE, TOKENS_FILE
from ppdmodel.results.io import read_measurement
from ppdmodel.results.locks import LOCK_FILE
from tests.support.commands import a_measurement
from tests.support.runs import command, snapshot

KILLED_EACH = """
import json, os, signal, sys
from ppdmodel import cli
import ppdmodel.cli.explore, ppdmodel.cli.fit, ppdmodel.cli.plot, ppdmodel.cli.merge
import ppdmodel.fitting.counts_file, ppdmodel.measure.shards, ppdmodel.show.explorer
import ppdmodel.show.plots

def die_at(nth, folder):
    count = 0
    def watch(event, about):
        nonlocal count
        change = event in ("os.rename", "os.remove") and str(about[0]).startswith(folder)
        count += change and os.path.exists(about[0])
        if change and count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)

for words, folder, nth in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        die_at(nth, folder)
        cli.main(words)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_measurement(tmp_path_factory.mktemp("measured") / "m")


def test_a_killed_command_leaves_nothing_that_blocks_or_stays(
    measured: Path, tmp_path: Path
) -> None:
    """SIGKILL before each rename; the same command then ends as if there had been none."""
    rows = [f"{e},{k},{e + k + n},20,p{n}\n" for n in range(4) for e in (2, 3) for k in (1, 2)]
    counts = tmp_path / "counts.csv"
    counts.write_text("exit_layer,k,hits,n,prompt_id\n" + "".join(rows))
    fit = ["fit", "--table", str(counts), "--layers", "4", "--out"]
    single = [fit, ["plot", "--kind", "theory", "--out"], ["explore", "-o"]]
    names = ["cal.json", "p.pdf", "page.html"]
    files = [(words, tmp_path / f"{n}" / names[n]) for n, words in enumerate(single)]
    merges = [(["merge", str(measured), "--out"], tmp_path / f"merged-{n}") for n in range(1, 5)]
    cases = [([*words, str(out)], out.parent, 1) for words, out in files]
    cases += [([*words, str(out)], out, n) for n, (words, out) in enumerate(merges, 1)]
    told = [(words, str(folder), moment) for words, folder, moment in cases]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EACH, json.dumps(told)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["-9"] * len(cases)
    for words, out in files:
        (left,) = out.parent.iterdir()
        assert ".part-" in left.name
        assert command(*words, out).code == 0
        assert [path.name for path in out.parent.iterdir()] == [out.name]
    for words, out in merges:
        assert (out / LOCK_FILE).exists()
        if (out / SUMMARY_FILE).exists():  # it was killed when it had done its work
            assert read_measurement(out).complete
        else:
            assert command(*words, out).code == 0
        assert snapshot(out).keys() - {LOCK_FILE} == {GUESSES_FILE, SUMMARY_FILE, TOKENS_FILE}


def test_a_merge_is_not_made_over_tokens_that_are_not_of_a_merge(
    measured: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    shutil.copytree(measured, out)
    (out / SUMMARY_FILE).unlink()
    before = snapshot(out)
    outcome = command("merge", measured, "--out", out)
    assert outcome.code == 2
    assert "the out folder must be new or empty; got" in outcome.error
    assert snapshot(out) == before


AT_AN_IMPORT = """
import os, signal, sys
from ppdmodel import cli

def interrupt_at(nth, number):
    count = 0
    def watch(event, _):
        nonlocal count
        count += event == "import"
        if event == "import" and count == nth:
            signal.raise_signal(number)
    sys.addaudithook(watch)

ends = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    for nth in map(int, sys.argv[1].split(",")):
        child = os.fork()
        if child == 0:
            interrupt_at(nth, number)
            cli.main(sys.argv[2:])
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(*ends)
"""


def test_a_signal_at_any_import_is_one_line(tmp_path: Path) -> None:
    """Of the command line itself, of its parser, of a command, and of what the command needs."""
    moments = (1, 2, 20, 60, 150)
    out = tmp_path / "out.png"
    words = [",".join(map(str, moments)), "plot", "--kind", "theory", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", AT_AN_IMPORT, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["130"] * (3 * len(moments))
    assert done.stderr.splitlines() == [
        f"error: the run was interrupted; got {name}"
        for name in ("Ctrl-C", "SIGTERM", "SIGHUP")
        for _ in moments
    ]
    assert list(tmp_path.iterdir()) == []


WITH_SIGNALS = """
import signal, sys
from ppdmodel import cli
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def run(argv):
    signal.raise_signal(signal.SIGHUP)
    print("ignored", flush=True)
    try:
        if argv == ["twice"]:
            raise KeyboardInterrupt
        if argv == ["dropped"]:
            Dropped()
            signal.pause()
        if argv == ["mangled"]:
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                raise ImportError("a C extension says that it was not initialized")
    finally:
        if argv == ["twice"]:
            signal.raise_signal(signal.SIGTERM)

def app_for(argv):
    return lambda argv, **_: run(argv)

import ppdmodel.cli.app
ppdmodel.cli.app.app_for = app_for
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("how", "name"), [("twice", "SIGTERM"), ("dropped", "Ctrl-C"), ("mangled", "SIGTERM")]
)
def test_an_interrupt_is_told_whatever_becomes_of_it(how: str, name: str) -> None:
    """During the end of another, inside a destructor, or turned into another error."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_SIGNALS, how],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == f"error: the run was interrupted; got {name}\n"
    assert (done.returncode, done.stdout) == (130, "ignored\n")
