"""Try the tests on a sample of small changes of the package: `make mutants`.

Each change is tried on the tests of its own module, in a copy of the checkout. A change that no
test finds is listed; a room where too few are found ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path

from quality.mutations import Mutant, key, sample
from quality.trial import Checkout, limit_s, tests_of

SETTINGS = Path(__file__).with_name("mutants.toml")


class Outcome(StrEnum):
    """The outcome of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    UNTESTED = "no test file"
    EQUIVALENT = "equivalent"
    UNTRIED = "not tried"


#: the outcomes of mutants that no test found
ALIVE = (Outcome.SURVIVED, Outcome.UNTESTED)


@dataclass(frozen=True)
class Room:
    """A folder of the package.

    Attributes:
        name: the folder's.
        size: how many mutants to try.
        limit: the share that must be killed.
        workers: how many to try at once; 1 where the tests need every core.
    """

    name: str
    size: int
    limit: float
    workers: int = 2


@dataclass(frozen=True)
class Settings:
    """The settings in quality/mutants.toml."""

    package: str
    rooms: tuple[Room, ...]
    equivalent: dict[tuple[str, str, str], str]
    also: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read the settings; an equivalent mutant needs a reason."""
        found = tomllib.loads(path.read_text())
        rooms = tuple(Room(name, **values) for name, values in found["rooms"].items())
        return cls(
            found["package"],
            rooms,
            {
                key(one["module"], one["line"], one["becomes"]): one["reason"]
                for one in found.get("equivalent", [])
            },
            found.get("tests", {}),
        )

    def tests_of(self, root: Path, module: str) -> list[str]:
        """The files that pytest runs for a module."""
        return tests_of(root, self.package, module) + self.also.get(module, [])


@dataclass(frozen=True)
class Tally:
    """The mutants of a room and their outcomes."""

    room: Room
    outcomes: dict[Mutant, Outcome]

    def count(self, outcome: Outcome) -> int:
        """How many mutants had this outcome."""
        return list(self.outcomes.values()).count(outcome)

    @property
    def rate(self) -> float:
        """The share that tests killed; 1 where none was tried."""
        killed = self.count(Outcome.KILLED)
        alive = sum(map(self.count, ALIVE))
        return killed / (killed + alive) if killed + alive else 1.0

    @property
    def passes(self) -> bool:
        """Whether enough were killed."""
        return self.rate >= self.room.limit


class Trials:
    """Runs mutants in copies of the checkout, each test file once without a change first."""

    def __init__(self, settings: Settings, checkouts: list[Checkout], until: float):
        self.settings, self.checkouts, self.until = settings, checkouts, until
        self.root = checkouts[0].root
        self.free: queue.Queue[Checkout] = queue.Queue()
        for checkout in checkouts:
            self.free.put(checkout)

    def outcomes(
        self, mutants: list[Mutant], on_done: Callable[[int, Mutant, Outcome], None]
    ) -> list[Outcome]:
        """The outcome of each mutant; `on_done` is called with how many have one, and the last."""
        modules = sorted({mutant.place.module for mutant in self._to_try(mutants)})
        with self._executor() as executor:
            times = dict(zip(modules, executor.map(self._unchanged, modules), strict=True))
            runs = {executor.submit(self._one, m, times.get(m.place.module)): m for m in mutants}
            for done, run in enumerate(as_completed(runs), start=1):
                on_done(done, runs[run], run.result())
            return [run.result() for run in runs]

    @contextmanager
    def _executor(self) -> Iterator[ThreadPoolExecutor]:
        executor = ThreadPoolExecutor(len(self.checkouts))
        try:
            yield executor
        finally:  # also when interrupted
            executor.shutdown(wait=False, cancel_futures=True)
            for checkout in self.checkouts:
                checkout.stop()

    def _to_try(self, mutants: list[Mutant]) -> list[Mutant]:
        return [m for m in mutants if m.key not in self.settings.equivalent]

    def _unchanged(self, module: str) -> float | None:
        tests = self.settings.tests_of(self.root, module)
        if not tests or time.monotonic() > self.until:
            return None
        with self._checkout() as checkout:
            seconds = checkout.seconds(tests)
        if seconds is None:
            raise SystemExit(
                f"error: the tests must pass before anything is changed; {' '.join(tests)} fails; "
                "run make test"
            )
        return seconds

    def _one(self, mutant: Mutant, seconds: float | None) -> Outcome:
        if mutant.key in self.settings.equivalent:
            return Outcome.EQUIVALENT
        tests = self.settings.tests_of(self.root, mutant.place.module)
        if not tests:
            return Outcome.UNTESTED
        if seconds is None or time.monotonic() > self.until:
            return Outcome.UNTRIED
        with self._checkout() as checkout:
            killed = checkout.kills(mutant, tests, limit_s(seconds))
        return Outcome.KILLED if killed else Outcome.SURVIVED

    @contextmanager
    def _checkout(self) -> Iterator[Checkout]:
        checkout = self.free.get()
        try:
            yield checkout
        finally:
            self.free.put(checkout)


def run(root: Path, settings: Settings, seed: int, minutes: float) -> list[Tally]:
    """Draw mutants of every room, try them, the rooms in turn, and count."""
    drawn = {
        room: sample(root, settings.package, room.name, room.size, seed) for room in settings.rooms
    }
    until = time.monotonic() + 60 * minutes
    outcomes: dict[Mutant, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        most = min(max(room.workers for room in settings.rooms), os.cpu_count() or 1)
        checkouts = [
            Checkout.copy(root, Path(folder) / f"checkout-{n}", settings.package)
            for n in range(most)
        ]
        for workers in sorted({room.workers for room in settings.rooms}, reverse=True):
            of_rooms = [some for room, some in drawn.items() if room.workers == workers]
            # in turn, so that every room gets its share if time runs out
            mutants = [m for row in zip_longest(*of_rooms) for m in row if m is not None]
            found = Trials(settings, checkouts[:workers], until).outcomes(
                mutants, _progress(len(mutants))
            )
            outcomes |= dict(zip(mutants, found, strict=True))
    return [Tally(room, {m: outcomes[m] for m in some}) for room, some in drawn.items()]


def report(tallies: list[Tally]) -> str:
    """A table of the rooms, and the mutants that no test found."""
    heads = "".join(f"{outcome:>14}" for outcome in Outcome)
    lines = [f"{'room':12}{'mutants':>8}{heads}{'rate':>8}{'limit':>7}"]
    for tally in tallies:
        counts = "".join(f"{tally.count(outcome):14}" for outcome in Outcome)
        shares = f"{tally.rate:8.1%}{tally.room.limit:7.0%}"
        verdict = "" if tally.passes else "  too few killed"
        lines.append(f"{tally.room.name:12}{len(tally.outcomes):8}{counts}{shares}{verdict}")
    for tally in tallies:
        for mutant in sorted(tally.outcomes, key=lambda m: (m.place.module, m.place.line)):
            outcome = tally.outcomes[mutant]
            if outcome in ALIVE:
                lines.append("\n" + described(mutant, outcome))
    return "\n".join(lines)


def described(mutant: Mutant, outcome: Outcome) -> str:
    """Where a mutant is, and what it changes."""
    place = mutant.place
    return f"{place.module}:{place.line} {outcome}\n  - {mutant.before}\n  + {mutant.after}"


def _progress(total: int) -> Callable[[int, Mutant, Outcome], None]:
    """Show how many are done, and at once what lives: an interrupted run has said it."""

    def show(done: int, mutant: Mutant, outcome: Outcome) -> None:
        if outcome in ALIVE:
            print(f"\n{described(mutant, outcome)}", file=sys.stderr)
        print(f"\r{done} of {total} mutants", end="", file=sys.stderr, flush=True)

    return show


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 where too few mutants of a room are killed."""
    parser = argparse.ArgumentParser(prog="python -m quality.mutants", description=__doc__)
    parser.add_argument("--room", action="append", help="only this room; may be repeated")
    parser.add_argument("--sample", type=int, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument(
        "--minutes", type=float, default=120, help="begin no mutant after this time"
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout")
    parser.add_argument(
        "--settings", type=Path, default=SETTINGS, help="rooms, limits, equivalents"
    )
    options = parser.parse_args(arguments)
    settings = Settings.read(options.settings)
    known = [room.name for room in settings.rooms]
    for name in options.room or []:
        if name not in known:
            parser.error(f"--room must be one of {', '.join(known)}; got {name}; give another")
    rooms = [room for room in settings.rooms if room.name in (options.room or known)]
    if options.sample:
        rooms = [replace(room, size=options.sample) for room in rooms]
    tallies = run(
        options.root.resolve(), replace(settings, rooms=tuple(rooms)), options.seed, options.minutes
    )
    print(file=sys.stderr)
    print(report(tallies))
    return 0 if all(tally.passes for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
