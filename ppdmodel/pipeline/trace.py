"""What a unit did, and when: the events of its trace."""

from __future__ import annotations

import time
from enum import IntEnum, unique

import numpy as np


@unique
class EventKind(IntEnum):
    """What a unit did during an event of its trace."""

    PROMPT = 0
    LAYER = 1
    HEAD = 2
    EXIT = 3
    PROMOTE = 4
    DROP = 5
    AWAIT_EXIT = 6
    AWAIT_LAYER = 7
    AWAIT_VERDICT = 8


#: columns of a trace: nanoseconds on the monotonic clock; token, layer (from 1) and rows, or 0
EVENT = ("start_ns", "end_ns", "kind", "token", "layer", "rows")


class Trace:
    """The events of one text so far."""

    def __init__(self) -> None:
        self.events: list[tuple[int, int, int, int, int, int]] = []

    def record(self, begin: int, kind: EventKind, token: int, layer: int, rows: int) -> int:
        """Add an event that began at that time and ends now; returns its nanoseconds."""
        end = time.monotonic_ns()
        self.events.append((begin, end, int(kind), token, layer, rows))
        return end - begin

    def array(self) -> np.ndarray:
        """All events, [events, len(EVENT)]."""
        return np.array(self.events, dtype=np.int64).reshape(-1, len(EVENT))
