"""Traces in the Trace Event Format."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline.options import PpdSetting, RunOptions
from ppdmodel.pipeline.perfetto import trace_events, write_trace
from ppdmodel.pipeline.pipeline import Pipeline
from ppdmodel.pipeline.trace import EventKind
from ppdmodel.pipeline.worker_pool import Run
from tests.pipeline.conftest import TWO_CPUS

TOKENS = 24


def test_the_events_of_a_run_by_hand(tmp_path: Path) -> None:
    events = (
        np.array(
            [
                (5000, 9000, EventKind.PROMPT, 0, 0, 3),
                (9000, 9500, EventKind.HEAD, 0, 0, 1),
                (9500, 11500, EventKind.LAYER, 1, 2, 1),
            ]
        ),
        np.array(
            [
                (6000, 9600, EventKind.AWAIT_VERDICT, 0, 0, 0),
                (10000, 10500, EventKind.EXIT, 1, 1, 1),
                (10500, 11000, EventKind.LAYER, 2, 1, 2),
                (11000, 11100, EventKind.PROMOTE, 2, 1, 1),
            ]
        ),
    )
    matched, late = np.array([False, True, False]), np.array([False, False, True])
    run = Run((7, 8, 9), np.array([9500, 12000, 13000]), matched, late, events)
    path = tmp_path / "trace.json"
    write_trace(path, run, lambda token_id: f"<{token_id}>")
    document = json.loads(path.read_text())
    assert document["displayTimeUnit"] == "ms"
    found = document["traceEvents"]
    assert {e["pid"] for e in found} == {0}, "one process"
    assert [(e["tid"], e["args"]["name"]) for e in found if e["ph"] == "M"] == [
        (0, "ppdmodel decode"), (0, "unit 0"), (1, "unit 1"),
    ]  # fmt: skip
    slices = [
        (e["tid"], e["ts"], e["dur"], e["name"], e["cat"], e["args"]["token"], e["args"]["rows"])
        for e in found
        if e["ph"] == "X"
    ]
    assert slices == [
        (0, 0.0, 4.0, "prompt", "verified or single", 0, 3),
        (0, 4.0, 0.5, "head", "verified or single", 0, 1),
        (0, 4.5, 2.0, "layer 2", "verified or single", 1, 1),
        (1, 1.0, 3.6, "wait for the verdict", "wait", 0, 0),
        (1, 5.0, 0.5, "read the exit", "guesses", 1, 1),
        (1, 5.5, 0.5, "layer 1", "guesses", 2, 2),
        (1, 6.0, 0.1, "promote", "verified or single", 2, 1),
    ]
    verdicts = [(e["tid"], e["ts"], e["name"], e["args"]) for e in found if e["ph"] == "i"]
    assert verdicts == [
        (0, 4.5, "match", {"token": 0, "text": "<7>"}),
        (0, 7.0, "late guess", {"token": 1, "text": "<8>"}),
        (0, 8.0, "no match", {"token": 2, "text": "<9>"}),
    ]


@TWO_CPUS
def test_a_trace_says_what_happened(deep: LoadedModel, pipeline: Pipeline) -> None:
    run = pipeline.ppd([5, 6, 7, 8], TOKENS, PpdSetting(2, 3), RunOptions(stops=False))
    events = json.loads(json.dumps(trace_events(run, lambda i: deep.decode([i]))))
    of_unit = [[e for e in events if e["ph"] == "X" and e["tid"] == unit] for unit in range(2)]
    assert sum(map(len, of_unit)) > 2 * TOKENS
    for slices in of_unit:
        assert slices
        for one, following in pairwise(slices):
            assert one["ts"] + one["dur"] <= following["ts"] + 1e-3, "one thing at a time"
    verdicts = [e["name"] for e in events if e.get("cat") == "verdict"]
    assert len(verdicts) == TOKENS
    assert verdicts.count("match") == run.matched.sum()
    assert verdicts.count("late guess") == run.late.sum()
    promoted = [e for e in events if e["name"] == "promote"]
    assert len(promoted) == run.matched.sum()
    done = np.concatenate(run.events)
    heads = done[done[:, 2] == EventKind.HEAD]
    assert sorted(heads[:, 3].tolist()) == list(range(TOKENS))
