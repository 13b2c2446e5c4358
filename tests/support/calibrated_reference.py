"""PPD at depth 1 on two units, simulated layer by layer in whole layers, without formulas.

Works with floats or fractions; with fractions it is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

Time = Any  # float or Fraction


@dataclass(frozen=True)
class Terms:
    """A schedule and the durations of its parts."""

    layers: int
    exit_layer: int
    layer_time: Time
    busy_layer_time: Time
    batch_layer_time: Time
    head_time: Time = 0
    exit_time: Time = 0
    token_time: Time = 0
    start_delay: Time = 0
    promotion_delay: Time = 0

    def named(self, *leave_out: str) -> dict[str, Time]:
        """The terms as arguments of a closed form."""
        return {n: x for n, x in vars(self).items() if n not in leave_out}

    def with_(self, **changes: Time) -> Terms:
        return replace(self, **changes)


@dataclass
class Run:
    """What happened to each token after the first."""

    #: verdict to verdict, whether its guess was used, layers that sub-processes had begun
    steps: list[Time] = field(default_factory=list)
    used: list[bool] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    #: layers executed, and work of both units, up to the last verdict
    executed: list[int] = field(default_factory=list)
    busy: list[Time] = field(default_factory=list)


@dataclass
class Unit:
    """A device: when it has finished what it was given, and for how long it has worked."""

    free_at: Time = 0
    worked: Time = 0

    def work(self, begin: Time, duration: Time) -> Time:
        assert begin >= self.free_at, "a unit does one thing at a time"
        self.free_at = begin + duration
        self.worked += duration
        return self.free_at


def run(terms: Terms, matches: Iterable[bool], k: int = 1) -> Run:
    """Tokens one after another; `matches` says of each whether its exit's guesses hold the next."""
    happened, verdict = Run(), None
    main, sub = Unit(), Unit()
    done, now = 0, main.work(0, terms.token_time)
    begun = 0
    for match in matches:
        executed = 0
        exit_ready = now  # a promoted process may be past its exit
        for layer in range(done + 1, terms.layers + 1):
            time = terms.layer_time if layer <= terms.exit_layer else terms.busy_layer_time
            now = main.work(now, time)
            executed += 1
            if layer == terms.exit_layer:
                exit_ready = now
        now = main.work(now, terms.head_time)
        if verdict is not None:
            happened.steps.append(now - verdict)
        verdict = now

        guesses_at = sub.work(exit_ready + terms.start_delay, terms.exit_time)
        begun, ended = 0, guesses_at
        while begun < terms.layers and ended < verdict:
            ended = sub.work(ended, terms.batch_layer_time)
            begun += 1
            executed += k
        happened.begun.append(begun)
        happened.used.append(match and begun > 0)
        happened.executed.append(executed)
        happened.busy.append(main.worked + sub.worked)
        if match and begun > 0:
            main, sub = sub, main
            done, now = begun, max(ended, verdict) + terms.promotion_delay
        else:
            done, now = 0, main.work(verdict, terms.token_time)
    return happened
