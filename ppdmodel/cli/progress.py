"""Progress of a long run on standard error, and the message on Ctrl-C."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .format import note

if TYPE_CHECKING:
    from ..measure.progress import Progress

#: seconds between two lines where standard error is no terminal
LINE_S = 10
#: steps of the bar
STEPS = 1000


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error: tokens, tokens/s, time left; lines where it is no terminal."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[tokens]} tokens"),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=Console(stderr=True, highlight=False)) as bar:
        rate = _Rate()
        tasks: list[TaskID] = []

        def report(progress: Progress) -> None:
            if progress.stage == "loading":
                bar.console.print("loading the model ...")
            elif is_first_process():
                # a resumed run starts at its earlier progress, so that the time left is right
                done, tokens = round(STEPS * progress.share), progress.tokens
                if not tasks:
                    tasks.append(
                        bar.add_task("", total=STEPS, completed=done, tokens=tokens, rate=0.0)
                    )
                bar.update(
                    tasks[0],
                    completed=done,
                    description=progress.stage,
                    tokens=tokens,
                    rate=rate.of(tokens),
                )

        yield report


def _lines() -> Callable[[Progress], None]:
    """Reports as lines, one every few seconds."""
    rate, last = _Rate(), time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        if progress.stage == "loading":
            note("loading the model ...")
        elif is_first_process():
            per_second, now = rate.of(progress.tokens), time.monotonic()
            if now - last >= LINE_S:
                last = now
                note(
                    f"{progress.share:.0%} done, {progress.tokens} tokens, {per_second:.0f} "
                    "tokens/s"
                )

    return report


class _Rate:
    """Tokens per second since the first report, which may be of a resumed run."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def of(self, tokens: int) -> float:
        """The rate at this number of tokens."""
        now = time.monotonic()
        start, before = self.first = self.first or (now, tokens)
        return (tokens - before) / max(now - start, 1e-9)


@contextmanager
def resumable(kept: str, out: Path) -> Iterator[None]:
    """Say on Ctrl-C what is kept in a folder, and that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"{kept} kept in {out}; the same command goes on from there")
        raise


def is_first_process() -> bool:
    """Whether this is rank 0 of the processes that a launcher started."""
    return os.environ.get("RANK", "0") == "0"
