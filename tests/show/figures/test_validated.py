"""Predicted against measured latency: every cell of the reports, where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdmodel.show import plots

DATA = Path(__file__).parents[3] / "data"


def report(name: str) -> dict[str, Any]:
    path = DATA / f"{name}-validation" / "validation.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_every_cell_is_drawn_with_its_interval() -> None:
    one = report("smollm2-135m")
    (ax,) = plots.predicted([one]).axes
    points, bars = [], []
    for container in ax.containers:
        data, _, (line,) = container
        points += np.transpose(data.get_data()).tolist()
        bars += [segment[:, 1].tolist() for segment in line.get_segments()]
    cells = sorted(one["cells"], key=lambda row: not row["held_out"])
    assert points == [[row["measured"], row["predicted"]] for row in cells]
    assert np.array(bars) == pytest.approx(
        np.array([[row["ci_low"], row["ci_high"]] for row in cells])
    )


def test_reports_and_fitted_cells_have_names_of_their_own() -> None:
    both = [report(name) for name in ("smollm2-135m", "smollm2-135m-trained")]
    legend = plots.predicted(both).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "logit exits, not fitted", "logit exits, fitted",
        "trained exits, not fitted", "trained exits, fitted",
    ]  # fmt: skip
