"""Predicted against measured latency of real PPD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...errors import visible
from ...results.intervals import IntervalEstimate
from .canvas import axes_of, error_bars, figure_of, style


def predicted(reports: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Figure:
    """Predicted against measured latency of real PPD, over plain decoding on one unit.

    Args:
        reports: of `ppdmodel validate`, as `validation.json` holds them; a colour for each.
        ax: where to draw; None makes a figure.
    """
    with style():
        ax = axes_of(ax)
        low, high = _draw_reports(ax, reports)
        for share, form in ((0.0, "-"), (0.03, ":"), (-0.03, ":")):
            line = [end * (1 + share) for end in (low, high)]
            ax.plot((low, high), line, form, color="0.5", linewidth=1)
        ax.set(
            xlabel="measured latency / plain decoding on one unit",
            ylabel="predicted, 95% prediction intervals",
            xlim=(low, high),
            title="Real PPD, predicted and measured (dotted: 3%)",
        )
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure_of(ax)


def _draw_reports(ax: Axes, reports: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Draw every setting and its interval, filled if held out; returns the measured range."""
    seen: list[float] = []
    for number, report in enumerate(reports):
        kind = visible(str(report["provenance"]["exit_kind"]))
        for held_out in (True, False):
            rows = [row for row in report["cells"] if row["held_out"] is held_out]
            names = ("predicted", "ci_low", "ci_high")
            error_bars(
                ax,
                [row["measured"] for row in rows],
                [IntervalEstimate(*(row[name] for name in names)) for row in rows],
                fmt="o",
                color=f"C{number}",
                markerfacecolor=f"C{number}" if held_out else "none",
                elinewidth=0.6,
                markersize=4,
                label=f"{kind} exits, " + ("not fitted" if held_out else "fitted"),
            )
            seen += [row["measured"] for row in rows]
    return min(seen) - 0.02, max(seen) + 0.02
