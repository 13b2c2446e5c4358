"""The explorer: one page that loads nothing, to try settings by hand."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from string import Template
from typing import Any

from ... import __version__
from ...checks import MOST_LAYERS
from ...errors import InvalidInputError
from ...results.calibration import Calibration
from ...results.hit_counts import HitCounts
from ...results.intervals import rate_ends
from ...results.measurement import Measurement

#: the page's formulas, generated from SymPy expressions, see `ppdmodel.symbolic.javascript`
FORMULAS = (
    "latency_per_token",
    "compute_per_token",
    "peak_units",
    "expected_total_latency",
    "generation_time",
    "calibrated_speedup",
    "calibrated_compute",
    "calibrated_break_even",
    "calibrated_head_start",
    "calibrated_plain_compute",
)
SCRIPTS = ("schedule.js", "distribution.js", "model.js", "svg.js", "figures.js", "app.js")


def explore(*sources: Measurement | Calibration) -> str:
    """The explorer as one HTML page: sliders, numbers, curves and the pipeline, token by token.

    It needs no network and may be opened from disk; its content security policy forbids it to load
    or send anything.

    Args:
        sources: measurements and calibrations to start from; without one every number is given by
            hand.

    Returns:
        The page's text; write it to a file and open that in a browser.

    Raises:
        InvalidInputError: a model has more than 1000 layers.

    >>> page = explore()
    >>> page[:15], "latency_per_token" in page
    ('<!doctype html>', True)
    """
    from ...formulas.symbolic import javascript

    parts = [_text(name) for name in SCRIPTS]
    script = "\n".join(['"use strict";', javascript(*FORMULAS), *parts])
    style = _text("style.css")
    policy = (
        f"default-src 'none'; img-src data:; script-src {_hashed(script)}; "
        f"style-src {_hashed(style)}; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps([_embedded(source) for source in sources], allow_nan=False)
    return Template(_text("page.html")).substitute(
        policy=policy,
        version=__version__,
        style=style,
        script=script,
        data=data.replace("<", "\\u003c"),  # no name can close the script element
    )


def _text(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _hashed(text: str) -> str:
    """The source expression that allows exactly this text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _embedded(source: Measurement | Calibration) -> dict[str, Any]:
    """A result as the page reads it: hits out of tokens by exit layer and k, None: not measured."""
    if source.layers > MOST_LAYERS:
        raise InvalidInputError(
            f"the explorer must be given at most {MOST_LAYERS} layers; got {source.layers}; "
            "use: ppdmodel estimate --from"
        )
    counts = HitCounts.of(source, with_recorded=False)
    hits, low, high = _rates(source, counts)
    return {
        "title": counts.title,
        "layers": counts.layers,
        "tokens": int(counts.tokens.sum()),
        "prompts": len(counts.prompt_ids),
        "note": "Intervals are 95%, from the differences between prompts."
        if low is not None
        else "One prompt: no interval can be given.",
        "hits": hits,
        "low": low,
        "high": high,
    }


def _rates(source: Measurement | Calibration, counts: HitCounts) -> tuple[Any, ...]:
    """Hits of all prompts, and the ends of the intervals, each [layers][k]."""
    import numpy as np

    total: Any = counts.hits.sum(0)
    if isinstance(source, Calibration):
        e, k = np.arange(1, source.layers + 1)[:, None], np.arange(1, source.k_max + 1)
        there = source.has(e, k)
        found: list[Any] = [total, *rate_ends(counts.hits, counts.tokens)]
        return tuple(np.where(there, x.astype(object), np.array(None)).tolist() for x in found)
    if len(counts.tokens) < 2:
        return total.tolist(), None, None
    low, high = rate_ends(counts.hits, counts.tokens)
    return total.tolist(), low.tolist(), high.tolist()
