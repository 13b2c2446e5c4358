"""Latency against compute of methods, and of policies at a price."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...decide.outcomes import Comparison, Method
from ...decide.threshold_rule import ThresholdReport
from .canvas import RATIOS, axes_of, error_bars, figure_of, name, style, write_count

#: colour and marker by the basis of a number
BASES = {"measured": ("C0", "o"), "fitted": ("C2", "D"), "ideal": ("C7", "s")}


def comparison(result: Comparison, *, ax: Axes | None = None) -> Figure:
    """Latency against compute of the best of each method, with 95% intervals and its basis."""
    with style():
        ax = axes_of(ax)
        for basis, (color, marker) in BASES.items():
            methods = [m for m in result.methods if m.basis == basis]
            if not methods:
                continue
            error_bars(
                ax,
                [m.compute.value for m in methods],
                [m.held_out or m.latency for m in methods],
                fmt=marker,
                color=color,
                ms=5,
                elinewidth=1,
                label=basis,
            )
        ax.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        ax.set(**RATIOS)
        name(ax, f"{result.title}: the best of each method within {result.max_compute:g}× compute")
        low, high = ax.get_xlim()
        ax.set_xlim(low, high + 0.25 * (high - low))
        _label_methods(ax, result.methods)
        ax.legend(loc="center", title="latency is")
        write_count(ax, result.n_tokens, result.n_prompts)
        return figure_of(ax)


def thresholds(report: ThresholdReport, *, ax: Axes | None = None) -> Figure:
    """Latency against compute of the threshold rule and of the best fixed settings, by price."""
    curves = (
        ("five exits, a threshold each", "several_latency", "several_compute", "o-"),
        ("one exit, a threshold", "latency", "compute", "s-"),
        ("two exits, a fixed k each", "two_latency", "two_compute", "d-"),
        ("one exit, fixed k", "fixed_latency", "fixed_compute", "^-"),
    )
    with style():
        ax = axes_of(ax)
        for number, (label, latency, compute, form) in enumerate(curves):
            rows = sorted(report.prices, key=lambda row: row.price)
            error_bars(
                ax,
                [getattr(row, compute).value for row in rows],
                [getattr(row, latency) for row in rows],
                fmt=form,
                color=f"C{number}",
                ms=4,
                elinewidth=0.8,
                label=label,
            )
        for row in report.prices:
            ax.annotate(
                f"price {row.price:g}",
                (row.several_compute.value, row.several_latency.value),
                xytext=(-5, -10),
                textcoords="offset points",
                ha="right",
                fontsize=7,
            )
        ax.set(**RATIOS)
        name(ax, f"{report.title}: what is started at a price (held-out prompts)")
        ax.margins(x=0.15)
        ax.legend()
        write_count(ax, report.n_tokens, report.n_prompts, side="left")
        return figure_of(ax)


def _label_methods(ax: Axes, methods: Sequence[Method]) -> None:
    """Name each point, on its left where another one is close on its right."""
    (x_0, x_1), (y_0, y_1) = ax.get_xlim(), ax.get_ylim()
    points = [(m.compute.value, (m.held_out or m.latency).value) for m in methods]
    for method, (x, y) in zip(methods, points, strict=True):
        crowded = any(
            0 < (other - x) / (x_1 - x_0) < 0.25 and abs(height - y) / (y_1 - y_0) < 0.03
            for other, height in points
        )
        units = "" if method.units == 1 else f" ({method.units} units)"
        ax.annotate(
            f"{method.name}{units}",
            (x, y),
            xytext=(-6 if crowded else 6, 3),
            textcoords="offset points",
            ha="right" if crowded else "left",
            fontsize=7,
        )
