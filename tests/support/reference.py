"""Reference simulation of theory/01-setting.md: every process an object, one tick at a time.

Slow, and written independently of `ppdmodel.simulation`, so that the tests can compare
the two. Times are whole ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Process:
    """One run of the decoder on one token: true, or a guess that will be dropped."""

    token: int
    parent: Process | None
    is_true: bool
    pause: int
    ticks: int = 0
    exits_read: int = 0
    children: list[Process] = field(default_factory=list)

    def unverified_ancestors(self) -> int:
        count, ancestor = 0, self.parent
        while ancestor is not None:
            count, ancestor = count + 1, ancestor.parent
        return count

    def family(self) -> list[Process]:
        found = [self]
        for process in found:
            found.extend(process.children)
        return found


@dataclass(frozen=True)
class Run:
    """When each token was verified, what the processes that had ended executed, the peak."""

    finish_times: list[int]
    work_done: list[int]
    peak_units: int


def tick_by_tick(
    first_hit: Sequence[int],
    layer_ticks: Sequence[int],
    exits: Sequence[int],
    k: Sequence[int],
    depth: int | None = 1,
    passes: Sequence[bool] | None = None,
    start_delay: int = 0,
    promotion_delay: int = 0,
) -> Run:
    """Run one generation; wrong processes all pass the gate."""
    whole = sum(layer_ticks)
    exit_ticks = [sum(layer_ticks[:e]) for e in exits]
    most_ancestors = len(first_hit) if depth is None else depth - 1
    root = Process(0, None, True, 0)
    time = ended = peak = 0
    finish_times: list[int] = []
    work_done: list[int] = []
    while True:
        if root.ticks == whole and root.pause == 0:
            survivor = next((c for c in root.children if c.is_true), None)
            dropped = [c for c in root.children if c is not survivor]
            ended += root.ticks + sum(p.ticks for c in dropped for p in c.family())
            finish_times.append(time)
            work_done.append(ended)
            if root.token == len(first_hit):
                return Run(finish_times, work_done, peak)
            if survivor is None:
                root = Process(root.token + 1, None, True, 0)
            else:
                root, survivor.parent = survivor, None
                survivor.pause = max(survivor.pause, promotion_delay)
        live = root.family()
        for process in live:
            _start_what_is_due(
                process, live, first_hit, exit_ticks, k, most_ancestors, passes, start_delay
            )
        peak = max(peak, len(live))
        for process in live:
            if process.pause:
                process.pause -= 1
            elif process.ticks < whole:
                process.ticks += 1
        time += 1


def _start_what_is_due(
    process: Process,
    live: list[Process],
    first_hit: Sequence[int],
    exit_ticks: Sequence[int],
    k: Sequence[int],
    most_ancestors: int,
    passes: Sequence[bool] | None,
    start_delay: int,
) -> None:
    """Append to `live` what this process starts now; a paused process starts nothing."""
    while (
        process.exits_read < len(exit_ticks)
        and process.ticks >= exit_ticks[process.exits_read]
        and process.pause == 0
        and process.token < len(first_hit)
        and process.unverified_ancestors() <= most_ancestors
    ):
        process.exits_read += 1
        closed = process.is_true and passes is not None and not passes[process.token]
        if closed:
            continue
        hit = process.is_true and first_hit[process.token] == process.exits_read
        for guess in range(k[process.exits_read - 1]):
            child = Process(process.token + 1, process, hit and guess == 0, start_delay)
            process.children.append(child)
            live.append(child)
