"""What every command looks like in a terminal of 80 columns, and through a pipe."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from ppdmodel import save
from ppdmodel.cli import run
from ppdmodel.cli.app import app_of
from ppdmodel.errors import visible
from tests.conftest import make_measurement

DATA = Path(__file__).parents[2] / "data"
CALIBRATION = str(DATA / "smollm2-135m-trained.calibration.json")
MEASUREMENT = str(DATA / "smollm2-135m-trained")


def commands(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name)


COMMANDS = list(commands(typer.main.get_command(app_of())))


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_has_an_example_of_that_very_command(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert run([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    (example,) = re.findall(r"Example: ppdmodel (.*?) ╭", " ".join(out.split()))
    words = shlex.split(example)
    assert tuple(words[: len(command)]) == command
    found: Any = typer.main.get_command(app_of())
    for name in command:
        found = found.commands[name]
    options = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if re.match("--?[a-z]", word)} <= options


LAST_LINES = {
    "estimate --p-correct 0.7 --layers 40 --tokens 64": r"At p = .* off the latency for .*\.",
    f"estimate --from {CALIBRATION} --exit-layer 20 --k 5": r"At p = .* off the latency for .*\.",
    f"optimize {CALIBRATION}": r".*[a-z]\.",
    f"optimize {CALIBRATION} --price 3 --max-units 4": r".*[a-z]\.",
    f"compare {CALIBRATION}": r".*[a-z0-9]\.",
    f"compare {MEASUREMENT} --max-units 4 --max-compute 1.5": r".*[a-z0-9]\.",
    f"replay {MEASUREMENT} --exit-layer 20 --k 3": r".*[a-z0-9]\.",
    f"replay {MEASUREMENT} --price 3": r".*[a-z0-9]\.",
}


@pytest.mark.parametrize("line", LAST_LINES, ids=range(len(LAST_LINES)))
def test_tables_fit_and_end_in_plain_words(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert run(shlex.split(line)) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    paragraph = " ".join(out.rstrip().splitlines()[-4:])
    assert re.search(LAST_LINES[line] + "$", paragraph)


def test_colour_is_for_terminals_only() -> None:
    command = [sys.executable, "-m", "ppdmodel", "optimize", CALIBRATION]
    piped = subprocess.run(command, capture_output=True, check=True).stdout
    assert b"\x1b" not in piped


HOSTILE = "a$b$\x1b[31m\x9b1m\u202e<b>"
SHOWN = "a$b$\\u001b[31m\\u009b1m\\u202e<b>"
NAMED = (
    "estimate --from {at}/m --exit-layer 2",
    "compare {at}/m",
    "replay {at}/m --exit-layer 2",
    "differ {at}/m --by-category --k 1",
    "fit {at}/m --k-max 2 --resamples 400 --family 'rank tail' --out {at}/cal.json",
    "optimize {at}/cal.json",
    "estimate --from {at}/other",
    "merge {at}/m --out {at}/merged",
)


def test_names_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model, prompts, categories and files: as escapes, which a terminal does not obey."""
    made = make_measurement(prompts=4, tokens=8, layers=4)
    ids = tuple(f"{HOSTILE}{n}" for n in range(4))
    about = {**made.provenance, "model": HOSTILE}
    categories = (HOSTILE, HOSTILE, "b", "b")
    at = tmp_path / HOSTILE.replace("/", "")
    save(replace(made, prompt_ids=ids, categories=categories, provenance=about), at / "m")
    shown = []
    for line in NAMED:
        words = [word.format(at=at) for word in shlex.split(line)]
        for more in ([], ["--json"]):
            for path in (at / "merged").glob("*"):
                path.unlink()
            run([*words, *more])
            out, err = capsys.readouterr()
            for text in (out, err):
                assert all(visible(one) == one for one in text.split("\n"))
            if more and out:
                json.loads(out)
            elif SHOWN in out + err:
                shown.append(line)
    assert len(shown) >= 6


def test_an_output_that_is_full_is_one_line() -> None:
    command = [sys.executable, "-m", "ppdmodel", "estimate", "--p-correct", "0.7", "--layers", "40"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    words = "error: the output must be writable; got No space left on device\n"
    assert (done.returncode, done.stderr) == (1, words)
