"""Whole runs for the tests: commands, comparison of folders, and processes killed midway."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import io
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow.parquet as pq

from ppdmodel import cli
from ppdmodel.results.files import GUESSES_FILE, MEASUREMENT, SUMMARY_FILE, TOKENS_FILE
from tests.conftest import TEXT

if TYPE_CHECKING:
    from ppdmodel.measure import ModelSource, Prompt, TrainedExits
    from ppdmodel.results.measurement import Measurement

T = TypeVar("T")
#: remarks on standard error beside a result or an error
NOTES = re.compile(
    r"loading the model \.\.\.|\d+% done.*|.* (is|are) kept in .*goes on from there"
    r"|only first turns are used; .*"
)
#: what a process does to files, as Python's audit events name it
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
KILLED = -signal.SIGKILL

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "ppdmodel.cli.app",
        "ppdmodel.measure.run",
        "ppdmodel.measure.training.train",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
    ]
)


def write_prompts(path: Path, count: int = 7) -> Path:
    """Prompts of different lengths, every third a conversation of two turns."""
    words = TEXT.split()
    rows = [
        {
            "id": f"p{n}",
            "turns": [" ".join(words[: 1 + 2 * (n % 6)]), "and then"][: 2 - bool(n % 3)],
            "category": "ab"[n % 2],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---------------------------------------------------------------- commands


class Outcome(NamedTuple):
    """The outcome of a command."""

    code: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        """Lines on standard error that are no progress."""
        return [line for line in self.err.splitlines() if not NOTES.fullmatch(line)]

    @property
    def error(self) -> str:
        """The package's one-line error message."""
        assert self.code in (1, 2), self
        assert self.out == "", self
        assert len(self.notes) == 1, self
        assert self.notes[0].startswith("error: "), self
        assert "the run failed; got" not in self.notes[0], self
        return self.notes[0]


def command(*words: object) -> Outcome:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(word) for word in words])
    return Outcome(code, out.getvalue(), err.getvalue())


def measuring(model: Path, prompts: Path, out: Path, *more: object) -> list[str]:
    """The arguments of a short measurement."""
    numbers = ["--max-new-tokens", "4", "--batch-size", "2", "--threads", "1", "--device", "cpu"]
    paths = ["--model", model, "--prompts", prompts, "--out", out]
    return [str(word) for word in ("measure", *numbers, *paths, *more)]


def training(model: Path, prompts: Path, out: Path, *more: object) -> list[str]:
    """The arguments of a short training of one exit."""
    return ["train-exits", *measuring(model, prompts, out, "--exit-layers", 2, *more)[1:]]


# ---------------------------------------------------------------- runs in this process


def options_of(kind: Callable[..., T], flat: dict[str, Any]) -> T:
    """An object of options from the keywords that belong to it, which are taken out of `flat`."""
    mine = inspect.signature(kind).parameters.keys() & flat.keys()
    return kind(**{name: flat.pop(name) for name in mine})


def measure_flat(
    source: ModelSource, prompts: Sequence[Prompt], out: Path, **flat: Any
) -> Measurement:
    """`measure` with all options as keywords."""
    from ppdmodel.measure import GenerationOptions, HardwareOptions, measure

    generation = options_of(GenerationOptions, flat)
    return measure(source, prompts, out, generation, options_of(HardwareOptions, flat), **flat)


def train_flat(
    source: ModelSource, prompts: Sequence[Prompt], out: Path, **flat: Any
) -> TrainedExits:
    """`train_exits` with all options as keywords."""
    from ppdmodel.measure import GenerationOptions, HardwareOptions, TrainingOptions, train_exits

    training = options_of(TrainingOptions, flat)
    generation = options_of(GenerationOptions, flat)
    hardware = options_of(HardwareOptions, flat)
    return train_exits(source, prompts, out, training, generation, hardware, **flat)


# ---------------------------------------------------------------- folders


def contents(folder: Path) -> dict[str, Any]:
    """The contents of a measurement's folder without provenance, by file and part."""
    found: dict[str, Any] = {"files": sorted(path.name for path in folder.iterdir())}
    for name in (TOKENS_FILE, GUESSES_FILE):
        if (folder / name).exists():
            table = pq.read_table(folder / name)
            about = json.loads(table.schema.metadata[MEASUREMENT.encode()])
            about.pop("provenance", None)
            found[f"{name}: about"] = about
            found[f"{name}: types"] = [(field.name, str(field.type)) for field in table.schema]
            for column in table.column_names:
                found[f"{name}: {column}"] = table.column(column).to_pylist()
    summary = json.loads((folder / SUMMARY_FILE).read_text("utf-8"))
    return found | {f"summary: {k}": v for k, v in summary.items() if k != "provenance"}


def assert_same(folder: Path, expected: Path) -> None:
    """Two measurements' folders are bitwise equal, except for provenance."""
    mine, theirs = contents(folder), contents(expected)
    assert list(mine) == list(theirs)
    for part, value in mine.items():
        assert value == theirs[part], part


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------- processes of their own


def start(target: Callable[..., None], *args: object) -> Any:
    """Start a function in a process of its own."""
    process = _FORKS.Process(target=target, args=args)
    process.start()
    return process


def ended(process: Any) -> int:
    """Wait for a process and return its exit code, negative after a signal."""
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return int(process.exitcode)


def alone(words: list[str], prepare: Callable[[], None] = lambda: None) -> Outcome | None:
    """Run a command in a process of its own, after a preparation; None where it was killed."""
    receiver, sender = _FORKS.Pipe(duplex=False)
    process = start(_send_outcome, sender, words, prepare)
    sender.close()
    with receiver:
        try:
            outcome = Outcome(*receiver.recv())
        except EOFError:
            outcome = None
    code = ended(process)
    assert code == (KILLED if outcome is None else 0)
    return outcome


def _send_outcome(sender: Connection, words: list[str], prepare: Callable[[], None]) -> None:
    prepare()
    outcome = command(*words)
    sender.send(tuple(outcome))
    sender.close()


def run_until_killed(words: list[str]) -> None:
    """Run a command without its output, in a process that will be killed."""
    command(*words)


def before_changes(folder: Path, call: Callable[[int], None]) -> None:
    """Have this process call before it changes a file below a folder, with the change's number."""
    count = itertools.count(1)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(args[0]).startswith(str(folder)):
            return
        if event == "os.mkdir" or os.path.lexists(args[0]):
            call(next(count))

    sys.addaudithook(watch)


def die_at(folder: Path, nth: int) -> None:
    """Have this process killed just before it changes a file below a folder for the nth time."""

    def die(number: int) -> None:
        if number == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    before_changes(folder, die)


def copy_before(environment: dict[str, str], folder: Path, copies: Path, every: int) -> None:
    """Have this process copy a folder before the first change below it, and every few after it.

    The variables of the environment are those that such a process has from its server otherwise.
    """
    os.environ.update(environment)

    def copy(number: int) -> None:
        if number % every == 1 % every:
            replace_folder(copies / f"{number:04d}", folder)

    before_changes(folder, copy)


def replace_folder(folder: Path, by: Path) -> None:
    """Make one folder a copy of another; gone where that is."""
    shutil.rmtree(folder, ignore_errors=True)
    if by.exists():
        shutil.copytree(by, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)


def deaths(
    words: list[str], folder: Path, copies: Path, every: int = 2, **environment: str
) -> Iterator[int]:
    """A folder as a command leaves it that is killed at its first, third, ... change of a file.

    The command runs once, from what the folder holds, in a process of its own; a copy is made
    before each change, which is what SIGKILL at that moment leaves: the kernel has all that was
    written, and what the process had not written yet is lost in both. Yields the number of the
    change, and restores the finished folder at the end. At every change with EVERY_MOMENT=1 in
    the environment.

    Args:
        words: the command.
        folder: below which changes count.
        copies: a folder that does not exist yet, outside of that one.
        every: which changes are looked at.
        environment: variables that the command must have.
    """
    every = 1 if os.environ.get("EVERY_MOMENT") else every
    copies.mkdir()
    prepare = functools.partial(copy_before, environment, folder, copies, every)
    outcome = alone(words, prepare)
    assert outcome is not None
    assert outcome.code == 0, outcome
    replace_folder(copies / "finished", folder)
    for nth in itertools.count(1, every):
        found = copies / f"{nth:04d}"
        if nth > 1 and not found.exists():
            break
        replace_folder(folder, found)
        yield nth
    replace_folder(folder, copies / "finished")


def fill_disk_at(name: str) -> None:
    """Have this process fail to write one file, by a limit on sizes that the system enforces."""
    from ppdmodel.measure.training import hidden_states as states
    from ppdmodel.results import files
    from ppdmodel.results import parquet as tables
    from ppdmodel.results import parquet_merge as joining

    whole = files.atomic

    @contextlib.contextmanager
    def narrow(path: Path) -> Iterator[Path]:
        with whole(path) as part:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            if path.name == name:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
            try:
                yield part
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    for module in (files, joining, tables, states):
        module.atomic = narrow  # type: ignore[attr-defined]


def limit_files(count: int) -> None:
    """Let this process have no more than so many files open."""
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (count, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def be_nobody() -> None:
    """Drop root's privilege to write to read-only files; other users have none."""
    if os.geteuid() == 0:
        version, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version, nothing) == 0
