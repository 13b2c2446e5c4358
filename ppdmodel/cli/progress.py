"""Progress of a long run on standard error, and the message on Ctrl-C."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .format import note

if TYPE_CHECKING:
    from ..progress import Progress

#: seconds between two lines where standard error is no terminal
LINE_S = 10
#: steps of the bar
STEPS = 1000


@contextmanager
def progress_bar(*, stays: bool = True) -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error: tokens, tokens/s, time left; lines where it is no terminal.

    At the end the bar stays, or makes place for the answer.
    """
    if not sys.stderr.isatty():
        yield _reporter(note, _lines())
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[tokens]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    console = Console(stderr=True, highlight=False)
    with Bar(*columns, console=console, transient=not stays) as bar:

        def show(progress: Progress, rate: float) -> None:
            done = round(STEPS * progress.share)
            about: dict[str, Any] = {
                "description": progress.stage,
                "tokens": _tokens(progress, rate),
            }
            # a resumed run starts at its earlier progress, so that the time left is right
            if not bar.tasks:
                bar.add_task(total=STEPS, completed=done, **about)
            bar.update(bar.task_ids[0], completed=done, **about)

        yield _reporter(bar.console.print, show)


def _lines() -> Callable[[Progress, float], None]:
    """Reports as lines, one every few seconds."""
    last = time.monotonic()

    def show(progress: Progress, rate: float) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_S:
            last = time.monotonic()
            said = f"{progress.share:.0%} done", _tokens(progress, rate)
            note(", ".join(filter(None, said)))

    return show


def _tokens(progress: Progress, rate: float) -> str:
    return f"{progress.tokens} tokens, {rate:.0f} tokens/s" if progress.tokens else ""


def _reporter(
    say: Callable[[str], None], show: Callable[[Progress, float], None]
) -> Callable[[Progress], None]:
    """Reports of the first process, with the tokens per second since the first of them."""
    first: tuple[float, int] | None = None

    def report(progress: Progress) -> None:
        nonlocal first
        if progress.stage == "loading":
            say("loading the model ...")
        elif is_first_process():
            now = time.monotonic()
            start, before = first = first or (now, progress.tokens)
            show(progress, (progress.tokens - before) / max(now - start, 1e-9))

    return report


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
