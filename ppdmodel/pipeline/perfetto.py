"""A run as a trace that Perfetto (ui.perfetto.dev) and Chrome open."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..results.files import atomic
from .unit import Did
from .worker_pool import Run

WAITS = {Did.AWAIT_EXIT, Did.AWAIT_LAYER, Did.AWAIT_VERDICT}
TITLES = {
    Did.PROMPT: "prompt",
    Did.HEAD: "head",
    Did.EXIT: "read the exit",
    Did.PROMOTE: "promote",
    Did.DROP: "drop",
    Did.AWAIT_EXIT: "wait for the exit",
    Did.AWAIT_LAYER: "wait for a layer",
    Did.AWAIT_VERDICT: "wait for the verdict",
}


def trace_events(run: Run, text_of: Callable[[int], str] = str) -> list[dict[str, Any]]:
    """What each unit did when, in the Trace Event Format; times in microseconds from the start.

    Args:
        run: from `Pipeline.ppd` or `Pipeline.greedy`.
        text_of: the text of a token id, for labels.
    """
    start = min(int(unit[0, 0]) for unit in run.events if len(unit))
    found: list[dict[str, Any]] = [_name("process_name", 0, "ppdmodel decode")]
    for number, unit in enumerate(run.events):
        found.append(_name("thread_name", number, f"unit {number}"))
        for begin, end, did, token, layer, rows in unit.tolist():
            found.append(
                {
                    "ph": "X",
                    "pid": 0,
                    "tid": number,
                    "ts": (begin - start) / 1e3,
                    "dur": (end - begin) / 1e3,
                    "name": f"layer {layer}" if did == Did.LAYER else TITLES[Did(did)],
                    "cat": _category(Did(did), rows),
                    "args": {"token": token, "rows": rows},
                }
            )
    for token, now in enumerate(run.verdict_ns.tolist()):
        next_matched = token + 1 < len(run.matched) and bool(run.matched[token + 1])
        found.append(
            {
                "ph": "i",
                "s": "p",
                "pid": 0,
                "tid": 0,
                "ts": (now - start) / 1e3,
                "name": "match" if next_matched else "no match",
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


def _category(did: Did, rows: int) -> str:
    if did in WAITS:
        return "wait"
    return "guesses" if did in (Did.EXIT, Did.DROP) or rows > 1 else "verified or single"


def _name(kind: str, unit: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 0, "tid": unit, "name": kind, "args": {"name": name}}
