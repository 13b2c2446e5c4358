"""A run as a trace that Perfetto (ui.perfetto.dev) and Chrome open."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..results.files import atomic
from .trace import EventKind
from .worker_pool import Run

WAITS = {EventKind.AWAIT_EXIT, EventKind.AWAIT_LAYER, EventKind.AWAIT_VERDICT}
TITLES = {
    EventKind.PROMPT: "prompt",
    EventKind.HEAD: "head",
    EventKind.EXIT: "read the exit",
    EventKind.PROMOTE: "promote",
    EventKind.DROP: "drop",
    EventKind.AWAIT_EXIT: "wait for the exit",
    EventKind.AWAIT_LAYER: "wait for a layer",
    EventKind.AWAIT_VERDICT: "wait for the verdict",
}


def trace_events(run: Run, text_of: Callable[[int], str] = str) -> list[dict[str, Any]]:
    """The units' events in the Trace Event Format; times in microseconds from the first event.

    Args:
        run: from `Pipeline.ppd` or `Pipeline.greedy`.
        text_of: the text of a token id, for labels.
    """
    start = min(int(unit[0, 0]) for unit in run.events if len(unit))
    found: list[dict[str, Any]] = [_name("process_name", 0, "ppdmodel decode")]
    for number, unit in enumerate(run.events):
        found.append(_name("thread_name", number, f"unit {number}"))
        for begin, end, kind, token, layer, rows in unit.tolist():
            found.append(
                {
                    "ph": "X",
                    "pid": 0,
                    "tid": number,
                    "ts": (begin - start) / 1e3,
                    "dur": (end - begin) / 1e3,
                    "name": TITLES.get(EventKind(kind), f"layer {layer}"),
                    "cat": _category(EventKind(kind), rows),
                    "args": {"token": token, "rows": rows},
                }
            )
    for token, now in enumerate(run.verdict_ns.tolist()):
        found.append(
            {
                "ph": "i",
                "s": "p",
                "pid": 0,
                "tid": 0,
                "ts": (now - start) / 1e3,
                "name": _verdict(run, token),
                "cat": "verdict",
                "args": {"token": token, "text": text_of(run.token_ids[token])},
            }
        )
    return found


def write_trace(path: Path, run: Run, text_of: Callable[[int], str] = str) -> None:
    """Write a run's trace as JSON."""
    document = {"traceEvents": trace_events(run, text_of), "displayTimeUnit": "ms"}
    with atomic(path) as part:
        part.write_text(json.dumps(document), encoding="utf-8")


def _verdict(run: Run, token: int) -> str:
    """What the guesses of a token were worth."""
    if run.matched[token + 1 : token + 2].any():
        return "match"
    return "late guess" if run.late[token + 1 : token + 2].any() else "no match"


def _category(kind: EventKind, rows: int) -> str:
    if kind in WAITS:
        return "wait"
    guesses = kind in (EventKind.EXIT, EventKind.DROP) or (kind == EventKind.LAYER and rows > 1)
    return "guesses" if guesses else "verified or single"


def _name(kind: str, unit: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 0, "tid": unit, "name": kind, "args": {"name": name}}
