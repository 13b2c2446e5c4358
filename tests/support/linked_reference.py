"""Units joined by a link, message by message: tensor parallelism and PPD, no formulas.

Works with floats or fractions; with fractions it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Time = Any  # float or Fraction
Clocks = list[Time]  # when each unit has its inputs


def recursive_doubling(clocks: Sequence[Time], link: Time) -> Clocks:
    """Pairs exchange sums at distances 1, 2, 4, ...; the number of units is a power of two."""
    now, distance = list(clocks), 1
    while distance < len(now):
        now = [max(now[i], now[i ^ distance]) + link for i in range(len(now))]
        distance *= 2
    return now


def tree(clocks: Sequence[Time], link: Time) -> Clocks:
    """Reduce to unit 0 along a binomial tree, then broadcast the total."""
    now, distances, distance = list(clocks), [], 1
    while distance < len(now):
        distances.append(distance)
        for i in range(0, len(now) - distance, 2 * distance):
            now[i] = max(now[i], now[i + distance] + link)
        distance *= 2
    for distance in reversed(distances):
        for i in range(0, len(now) - distance, 2 * distance):
            now[i + distance] = now[i] + link
    return now


def ring(clocks: Sequence[Time], link: Time) -> Clocks:
    """Ring all-reduce: a reduce-scatter, then an all-gather."""
    now = list(clocks)
    for _ in range(2 * (len(now) - 1)):
        now = [max(now[i], now[i - 1] + link) for i in range(len(now))]
    return now


@dataclass(frozen=True)
class Model:
    """The time of a token on one unit."""

    layers: int
    layer_time: Time
    head_time: Time = 0


def split(
    model: Model,
    units: int,
    all_reduce: Callable[[Sequence[Time], Time], Clocks],
    link: Time,
    *,
    efficiency: Time = 1,
    attention: Time = 0,
    tokens: int = 4,
) -> Clocks:
    """Verdict to verdict of tensor parallelism; attention is a share of the layer time."""
    now: Clocks = [0] * units
    verdicts = []
    for _ in range(tokens):
        for _ in range(model.layers):
            for share in (attention, 1 - attention):
                work = share * model.layer_time / (units * efficiency)
                now = all_reduce([t + work for t in now], link)
        now = all_reduce([t + model.head_time / (units * efficiency) for t in now], link)
        verdicts.append(max(now))
    return [after - before for before, after in pairwise(verdicts)]


@dataclass
class Process:
    """A process on a unit: when its layers end, and since when its unit knows that it is right."""

    unit: int
    begins: Time
    known: Time

    def ends(self, layer: int, model: Model) -> Time:
        return self.begins + layer * model.layer_time

    def keys_at_others(self, layer: int, model: Model, link: Time) -> Time:
        """When the other units have its keys and values of a layer, sent once it is verified."""
        return max(self.ends(layer, model), self.known) + link


def ppd(
    model: Model,
    exit_layer: int,
    exit_time: Time,
    units: int,
    link: Time,
    matches: Iterable[int | None],
) -> Clocks:
    """Verdict to verdict of PPD; `matches` holds the rank of the guess that is right, or None.

    Every other unit reads the exit itself and starts the guess of its rank. Processes run on while
    a verdict travels. A unit takes up an exit only when it is free.
    """
    root = Process(unit=0, begins=0, known=0)
    free: Clocks = [0] * units
    verdicts: Clocks = []
    for match in matches:
        others = [u for u in range(units) if u != root.unit]
        sent = max(root.ends(exit_layer, model), root.known)
        verdict = root.ends(model.layers, model) + model.head_time
        verdicts.append(verdict)
        started = {}
        for rank, unit in enumerate(others):
            assert free[unit] <= sent + link, "the unit still runs what was dropped"
            started[rank] = Process(unit, sent + link + exit_time, known=verdict + link)
        for process in started.values():
            _check_keys(root, process, model, link)
        promoted = None if match is None else started[match]
        if promoted is not None and promoted.begins >= verdict:
            promoted = None
        for unit in others:
            free[unit] = verdict + link
        if promoted is None:
            root = Process(root.unit, verdict, known=verdict)
        else:
            free[root.unit] = verdict
            root = promoted
    return [after - before for before, after in pairwise(verdicts)]


def _check_keys(parent: Process, child: Process, model: Model, link: Time) -> None:
    """A sub-process has its parent's keys and values of each layer when it begins that layer."""
    for layer in range(1, model.layers + 1):
        begins = child.ends(layer - 1, model)
        assert parent.keys_at_others(layer, model, link) <= begins
