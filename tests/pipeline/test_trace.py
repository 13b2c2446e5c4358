"""Events of a trace: when they began and ended, and what they were."""

from __future__ import annotations

import time

from ppdmodel.pipeline.trace import EVENT, EventKind, Trace


def test_events_in_their_order() -> None:
    trace = Trace()
    assert trace.array().shape == (0, len(EVENT))
    begins = []
    for layer in (1, 2):
        begins.append(time.monotonic_ns())
        assert trace.record(begins[-1], EventKind.LAYER, 5, layer, 3) >= 0
    found = trace.array()
    assert found[:, 0].tolist() == begins
    assert (found[:, 1] >= found[:, 0]).all()
    assert found[:, 2:].tolist() == [[EventKind.LAYER, 5, 1, 3], [EventKind.LAYER, 5, 2, 3]]
