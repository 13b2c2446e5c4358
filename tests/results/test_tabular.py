"""Results as JSON, as a DataFrame and as a table of a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppdmodel.results.intervals import METHOD, Interval
from ppdmodel.results.tabular import Frame, flat


@dataclass(frozen=True)
class Row:
    name: str
    rate: Interval | None
    times: Mapping[str, float]


@dataclass(frozen=True)
class Rows(Frame):
    title: str
    rows: tuple[Any, ...]

    def _rows(self) -> Sequence[Any]:
        return self.rows


FULL = Row("a<b", Interval(0.5, 0.25, math.nan, 9, 2, METHOD), {"mean": 1.23456789})
EMPTY = Row("none", None, {"mean": 2.0})


def test_a_row_is_flat() -> None:
    found = flat(FULL)
    assert list(found) == ["name", "rate", "rate_low", "rate_high", "times_mean"]
    assert (found["rate"], found["rate_low"]) == (0.5, 0.25)
    assert flat(EMPTY) == {"name": "none", "rate": None, "times_mean": 2.0}


def test_json_has_no_nan() -> None:
    text = Rows("ä", (FULL, EMPTY)).to_json()
    document = json.loads(text)
    assert "ä" in text
    assert document["rows"][0]["rate"] == {
        "value": 0.5, "ci_low": 0.25, "ci_high": None, "n_tokens": 9, "n_prompts": 2,
        "method": METHOD,
    }  # fmt: skip
    assert document["rows"][1]["rate"] is None


def test_a_frame_has_a_row_per_row() -> None:
    frame = Rows("", (FULL, EMPTY)).to_frame()
    assert list(frame.columns) == ["name", "rate", "rate_low", "rate_high", "times_mean"]
    assert frame.rate_low[0] == 0.25
    assert math.isnan(frame.rate_low[1])


def test_a_page_escapes_and_rounds() -> None:
    html = Rows("", (FULL, EMPTY))._repr_html_()
    heads = ["name", "rate", "rate_low", "rate_high", "times_mean"]
    assert html.startswith("<table><thead><tr>" + "".join(f"<th>{h}</th>" for h in heads))
    assert "<td>a&lt;b</td><td>0.5</td><td>0.25</td><td>nan</td><td>1.235</td>" in html
    assert "<td>none</td><td>–</td><td>–</td><td>–</td><td>2</td>" in html
