"""Progress reports of long runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of a run: its stage, finished tokens (0: none are made), and share in [0, 1]."""

    stage: str
    tokens: int
    share: float


OnProgress = Callable[[Progress], None]


def no_report(_progress: Progress) -> None:
    """Report nothing."""


def part_of(on_progress: OnProgress, start: float, end: float, tokens: int = 0) -> OnProgress:
    """Convert progress of one part of a run into progress of the whole run.

    Args:
        on_progress: called with the progress of the whole.
        start: share of the whole that was done before the part.
        end: share of the whole that is done when the part is.
        tokens: tokens that were done before the part.

    >>> part_of(print, 0.2, 0.6, tokens=100)(Progress("decoding", 10, 0.5))
    Progress(stage='decoding', tokens=110, share=0.4)
    """

    def report(part: Progress) -> None:
        share = start * (1 - part.share) + end * part.share  # exactly `end` at the part's end
        on_progress(Progress(part.stage, tokens + part.tokens, share))

    return report


def parts_of(on_progress: OnProgress, number: int) -> Iterator[OnProgress]:
    """What each of a number of equal parts of a run, one after the other, reports to."""
    return (part_of(on_progress, n / number, (n + 1) / number) for n in range(number))
