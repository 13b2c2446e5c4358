"""Discrete-event simulator of the PPD schedule of theory/01-setting.md.

The formulas are tested against it, so it uses none of them. Wrong sub-processes that were started
together behave alike and are stored as one group with a count. So a million tokens, or 5**79
sub-processes, can be simulated.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import NamedTuple

import numpy as np

from ..checks import check_schedule, positive_integer, real_number
from ..errors import InvalidInputError
from .policy import Policy
from .runs import ProcessRecord, Simulation

#: kinds of event; simultaneous events are processed in this order
_VERIFIED, _EXIT, _START = 0, 1, 2


class ScheduleTimes(NamedTuple):
    """The layer times and delays of a schedule.

    `after[n]` is when a process that runs without a pause has finished n layers; a sub-process
    begins `start_delay` after its exit is read, and a promoted one pauses for `promotion_delay`.
    """

    after: list[float]
    start_delay: float
    promotion_delay: float


def schedule_times(
    layers: int, layer_times: Sequence[float] | None, start_delay: float, promotion_delay: float
) -> ScheduleTimes:
    """The times of a model whose layers take `layer_times`, 1 each by default.

    Raises:
        InvalidInputError: not one positive time per layer, or a negative delay.
    """
    layers = positive_integer("layers", layers)
    times = [1] * layers if layer_times is None else layer_times
    if not hasattr(times, "__len__") or len(times) != layers:
        got = f"{len(times)} for {layers} layers" if hasattr(times, "__len__") else repr(times)
        raise InvalidInputError(
            f"layer_times must have one value per layer; got {got}; give a time for each"
        )
    for index, time in enumerate(times):
        if real_number(f"layer_times[{index}]", time, 0, "give the time of each layer") == 0:
            raise InvalidInputError(
                f"layer_times must be positive; got 0 at index {index}; give the time of each layer"
            )
    for name, delay in (("start_delay", start_delay), ("promotion_delay", promotion_delay)):
        real_number(name, delay, 0, "give it in layer times")
    return ScheduleTimes(list(accumulate(times, initial=0)), start_delay, promotion_delay)


@dataclass(slots=True, eq=False)
class _Group:
    """One true process, or wrong processes that were started together and behave alike.

    `line` is the token of its last true ancestor, or its own `token` if it is true.
    """

    token: int
    line: int
    count: int
    started: float
    begins: float  # when its first layer begins; later if a promotion made it pause
    children: list[_Group] = field(default_factory=list)
    alive: bool = True


class Schedule:
    """One generation, simulated on construction."""

    def __init__(
        self,
        policy: Policy,
        times: ScheduleTimes,
        first_hit: list[int],
        passes: list[bool] | None,
        *,
        wrong_gate: Callable[[int], int] | None,
        record: bool,
    ) -> None:
        check_schedule(len(times.after) - 1, policy.exits[-1])
        self.start_delay, self.promotion_delay = times.start_delay, times.promotion_delay
        self.guesses = policy.guesses
        self.exit_times = [times.after[e] for e in policy.exits]
        self.whole = times.after[-1]
        self.first_hit = first_hit
        self.passes = passes
        self.wrong_gate = wrong_gate
        self.depth = len(first_hit) if policy.depth is None else policy.depth
        self.events: list[tuple[float, int, int, _Group, int]] = []
        self.order = count()
        self.held: dict[int, list[tuple[_Group, int]]] = {}
        self.live = self.peak = 0
        self.records: list[ProcessRecord] | None = [] if record else None
        try:
            self._run()
        except OverflowError:
            raise InvalidInputError(
                "the layer executions must fit a float; got more than 1e308; lower k or depth"
            ) from None

    def result(self) -> Simulation:
        """The result of the simulation."""
        return Simulation(
            first_hit=np.array(self.first_hit, dtype=np.int64),
            finish_times=self.finish_times,
            work_done=self.work_done,
            peak_units=self.peak,
            processes=None if self.records is None else tuple(self.records),
        )

    def _run(self) -> None:
        self.root = self._enter(0, 0, 1, 0, 0)
        self._await_verification(self.root.begins)
        finish_times: list[float] = []
        work_done: list[float] = [0]
        while len(finish_times) <= len(self.first_hit):
            now, kind, _, group, exit_number = heapq.heappop(self.events)
            if not group.alive:
                continue
            if kind == _VERIFIED:
                work_done.append(work_done[-1] + self._verify(now, group))
                finish_times.append(now)
            elif kind == _EXIT:
                self._at_exit(now, group, exit_number)
            else:
                self._start(now, group, exit_number)
        self.finish_times = np.array(finish_times, dtype=float)
        self.work_done = np.array(work_done[1:], dtype=float)

    def _enter(
        self, token: int, line: int, processes: int, started: float, begins: float
    ) -> _Group:
        """Add processes; schedule their first exit unless the depth rules out guesses.

        A wrong process is dropped when the token of its line is verified, and until then has at
        least `token - line` unverified ancestors.
        """
        group = _Group(token, line, processes, started, begins)
        self.live += processes
        self.peak = max(self.peak, self.live)
        if token - line < self.depth and token < len(self.first_hit):
            self._await_exit(group, 0)
        return group

    def _await_exit(self, group: _Group, exit_number: int) -> None:
        at = group.begins + self.exit_times[exit_number]
        heapq.heappush(self.events, (at, _EXIT, next(self.order), group, exit_number))

    def _await_verification(self, earliest: float) -> None:
        at = max(self.root.begins + self.whole, earliest)
        heapq.heappush(self.events, (at, _VERIFIED, next(self.order), self.root, 0))

    def _at_exit(self, now: float, group: _Group, exit_number: int) -> None:
        if group.begins + self.exit_times[exit_number] > now:  # delayed by its promotion
            self._await_exit(group, exit_number)
            return
        if group.token - self.root.token < self.depth:
            self._start(now, group, exit_number)
        else:
            self.held.setdefault(group.token, []).append((group, exit_number))
        if exit_number + 1 < len(self.exit_times):
            self._await_exit(group, exit_number + 1)

    def _start(self, now: float, group: _Group, exit_number: int) -> None:
        """Start the sub-processes of one exit: a true one on its own, the wrong ones as a group."""
        token, line, passing = group.token, group.line, group.count
        is_true = token == line
        if is_true:
            if self.passes is not None and not self.passes[token]:
                return
        elif self.wrong_gate is not None:
            passing = self.wrong_gate(passing)
        wrong = passing * self.guesses[exit_number]
        begins = now + self.start_delay
        if is_true and self.first_hit[token] == exit_number + 1:
            group.children.append(self._enter(token + 1, token + 1, 1, now, begins))
            wrong -= 1
        if wrong > 0:
            group.children.append(self._enter(token + 1, line, wrong, now, begins))

    def _verify(self, now: float, root: _Group) -> float:
        """Verify the root's token: promote, drop, and return the work of the ended processes."""
        work = self.whole
        promoted = None
        for child in root.children:
            if child.token == child.line:
                promoted = child
            else:
                work += self._drop(child, now)
        root.alive = False
        self.live -= 1
        if self.records is not None:
            self.records.append(_record(root, now, verified=True))
        token, resumes = root.token + 1, now
        if token > len(self.first_hit):
            return work
        if promoted is None:
            self.root = self._enter(token, token, 1, now, now)
        else:
            resumes = now + self.promotion_delay
            begun = min(promoted.begins, now)
            promoted.begins = max(promoted.begins, begun + self.promotion_delay)
            self.root = promoted
        self._await_verification(resumes)
        for group, exit_number in self.held.pop(token + self.depth - 1, ()):
            at = resumes if group is self.root else now
            heapq.heappush(self.events, (at, _START, next(self.order), group, exit_number))
        return work

    def _drop(self, group: _Group, now: float) -> float:
        """End wrong processes and all their descendants, and return their work."""
        work: float = 0
        family = [group]
        for member in family:
            member.alive = False
            self.live -= member.count
            work += member.count * min(max(now - member.begins, 0), self.whole)
            family += member.children
            if self.records is not None:
                self.records.append(_record(member, now, verified=False))
        return work


def _record(group: _Group, now: float, *, verified: bool) -> ProcessRecord:
    generation = group.token - group.line
    return ProcessRecord(group.token, generation, group.count, group.started, now, verified)
