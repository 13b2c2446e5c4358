"""Figures: each function takes results or numbers, draws on `ax` if given, returns the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .. import formulas
from ..checks import check_schedule
from ..decide.costs import Grid, LayerCosts
from ..decide.optimize import optimize
from ..decide.outcomes import Comparison, Method
from ..errors import InvalidInputError
from ..fitting.curve_fit import curve_values
from ..results.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .._types import Floats
    from ..decide.threshold_rule import ThresholdReport

FORMATS = ("png", "svg", "pdf")
DEFAULT_K = (1, 3, 5, 10)
DEFAULT_P = tuple(round(0.1 * n, 1) for n in range(1, 10))


def style() -> Any:
    """The package's style sheet, as a context manager."""
    text = resources.files(__package__) / "ppdmodel.mplstyle"
    with resources.as_file(text) as path:
        return mpl.rc_context(mpl.rc_params_from_file(path, use_default_template=False))


def axes_of(ax: Axes | None, figsize: tuple[float, float] | None = None) -> Axes:
    """The axes that were given, or those of a new figure."""
    if ax is not None:
        return ax
    figure = Figure(figsize=figsize)
    FigureCanvasAgg(figure)
    return figure.subplots()


def match_rate(
    calibration: Calibration, *, k: Sequence[int] = DEFAULT_K, ax: Axes | None = None
) -> Figure:
    """p_correct against the exit layer: measured with 95% bands, and the fitted curve.

    Raises:
        InvalidInputError: a k beyond what the calibration recorded.
    """
    for value in k:
        if not 1 <= value <= calibration.k_max:
            raise InvalidInputError(
                f"k must lie in 1...{calibration.k_max}, what the calibration recorded; got {value}"
            )
    with style():
        ax = axes_of(ax)
        layers = np.arange(1, calibration.layers + 1)
        fine = np.linspace(1, calibration.layers, 200)
        for number, value in enumerate(k):
            color, column = f"C{number}", value - 1
            low, high = calibration.ci_low[:, column], calibration.ci_high[:, column]
            ax.fill_between(layers, low, high, color=color, alpha=0.2, linewidth=0)
            ax.plot(
                layers, calibration.p_correct[:, column], "o", color=color, label=f"k = {value}"
            )
            fitted = curve_values(calibration.curve, fine / calibration.layers, value)
            ax.plot(fine, fitted, color=color, linewidth=1.2)
        ax.set(
            xlabel="exit layer",
            ylabel="match rate  p_correct",
            ylim=(0, 1.02),
            xlim=(0, calibration.layers + 0.5),
            title=f"{calibration.title}: measured (95% bands) and fitted",
        )
        ax.legend(loc="upper left")
        _count(ax, calibration)
        return figure_of(ax)


def trade_off(calibration: Calibration, *, max_depth: int = 1, ax: Axes | None = None) -> Figure:
    """Latency against compute of every setting of a measured model, with the frontier marked."""
    decision = optimize(calibration, max_compute=(), max_depth=max_depth, ideal=True)
    grid = Grid.of(calibration.layers, calibration.k_max, max_depth)
    every_latency, every_compute = LayerCosts().ratios(grid, grid.rates(calibration.p_correct))
    with style():
        ax = axes_of(ax)
        points = ax.scatter(
            every_compute,
            every_latency,
            c=grid.exit_layer,
            s=5,
            alpha=0.6,
            cmap="viridis",
            linewidths=0,
            rasterized=True,
        )
        figure_of(ax).colorbar(points, ax=ax, label="exit layer", pad=0.01)
        best = decision.frontier
        compute = [setting.normalized_compute.value for setting in best]
        latency = [setting.normalized_latency for setting in best]
        errors = [
            [middle.value - middle.ci_low for middle in latency],
            [middle.ci_high - middle.value for middle in latency],
        ]
        values = [middle.value for middle in latency]
        ax.errorbar(
            compute,
            values,
            yerr=errors,
            fmt="o-",
            color="C3",
            ms=3,
            elinewidth=0.8,
            zorder=3,
            label="frontier (95% intervals)",
        )
        _label_frontier(ax, decision.frontier)
        ax.plot(1, 1, "ks", label="plain decoding", zorder=4)
        ax.set(
            xscale="log",
            xlabel="compute per token, against plain decoding (log scale)",
            ylabel="latency per token, against plain decoding",
            title=f"{calibration.title}: every exit layer and k = 1…{calibration.k_max}",
        )
        ax.set_xlim(left=0.65)
        _plain_log_ticks(ax)
        ax.legend(loc="lower left")
        _count(ax, calibration)
        return figure_of(ax)


def theory(
    *,
    layers: int = 40,
    k: int = 1,
    depth: int | None = 1,
    p_correct: Sequence[float] = DEFAULT_P,
    ax: Axes | None = None,
) -> Figure:
    """Latency against compute by the closed forms: a curve per match rate, along the exit layer.

    The match rate is held fixed along a curve; on a real model it grows with the exit layer.
    """
    check_schedule(layers, layers, k, depth)
    with style():
        ax = axes_of(ax)
        exits = np.arange(1, layers + 1)
        for p in p_correct:
            color = mpl.colormaps["viridis"](0.95 * (1 - p))
            compute = formulas.normalized_compute(p, layers, exits, k, depth)
            latency = formulas.normalized_latency(p, layers, exits, depth)
            ax.plot(compute, latency, color=color, marker=".", ms=2.5, lw=1.1, label=f"{p:g}")
        ax.plot(1, 1, "ks", zorder=4)
        ax.annotate("plain decoding", (1, 1), xytext=(6, 3), textcoords="offset points")
        unlimited = "unlimited" if depth is None else depth
        ax.set(
            xlabel="compute per token, against plain decoding",
            ylabel="latency per token, against plain decoding",
            title=f"Theory: {layers} layers, k = {k}, depth {unlimited}; a dot per exit layer",
            ylim=(0, 1.08),
        )
        if depth != 1:
            ax.set_xscale("log")
            _plain_log_ticks(ax)
        ax.legend(title="p_correct", ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure_of(ax)


def regime(
    p_correct: Floats,
    starts_s: Mapping[str, Floats],
    ends_s: Mapping[str, float],
    *,
    title: str = "",
    limits_s: tuple[float, float] = (1e-7, 1e-3),
    ax: Axes | None = None,
) -> Figure:
    """Where PPD beats splitting every layer over the same units: link time against match rate.

    Args:
        p_correct: match rates, shape [points].
        starts_s: for each name the link time in seconds above which PPD wins, shape [points]:
            `formulas.link_break_even`.
        ends_s: for each name the link time from which PPD saves nothing; a dotted line.
        title: of the axes.
        limits_s: shortest and longest link time shown.
        ax: axes to draw on.
    """
    with style():
        ax = axes_of(ax)
        for number, (name, start) in enumerate(starts_s.items()):
            color, first = f"C{number}", np.clip(start, *limits_s)
            last = min(max(ends_s[name], limits_s[0]), limits_s[1])
            inside = first <= last
            ax.fill_betweenx(p_correct, first, last, where=inside, color=color, alpha=0.12, lw=0)
            ax.plot(first, p_correct, color=color, label=name)
            if last < limits_s[1]:
                ax.axvline(last, color=color, ls=":", lw=1.2)
        ax.set(
            xscale="log",
            xlim=limits_s,
            ylim=(min(p_correct), max(p_correct)),
            xlabel="time of a message on the link",
            ylabel="match rate  p_correct",
            title=title,
        )
        _name_seconds(ax)
        ax.legend(title="PPD wins from", loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure_of(ax)


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
    """Every cell with its interval, filled if it was not fitted; the range of what was measured."""
    seen: list[float] = []
    for number, report in enumerate(reports):
        kind = report["provenance"]["exit_kind"]
        for held_out in (True, False):
            rows = [row for row in report["cells"] if row["held_out"] is held_out]
            made = [row["predicted"] for row in rows]
            bars = [
                [row["predicted"] - row["ci_low"] for row in rows],
                [row["ci_high"] - row["predicted"] for row in rows],
            ]
            ax.errorbar(
                [row["measured"] for row in rows],
                made,
                yerr=bars,
                fmt="o",
                color=f"C{number}",
                markerfacecolor=f"C{number}" if held_out else "none",
                elinewidth=0.6,
                markersize=4,
                label=f"{kind} exits, " + ("not fitted" if held_out else "fitted"),
            )
            seen += [row["measured"] for row in rows]
    return min(seen) - 0.02, max(seen) + 0.02


#: colour and marker of what a number rests on
BASES = {"measured": ("C0", "o"), "fitted": ("C2", "D"), "ideal": ("C7", "s")}


def comparison(result: Comparison, *, ax: Axes | None = None) -> Figure:
    """Latency against compute of the best of each method, with 95% intervals and its basis."""
    with style():
        ax = axes_of(ax)
        for basis, (color, marker) in BASES.items():
            methods = [m for m in result.methods if m.basis == basis]
            if not methods:
                continue
            values = [m.held_out or m.latency for m in methods]
            ax.errorbar(
                [m.compute.value for m in methods],
                [v.value for v in values],
                yerr=[
                    [max(v.value - v.ci_low, 0) for v in values],
                    [max(v.ci_high - v.value, 0) for v in values],
                ],
                fmt=marker,
                color=color,
                ms=5,
                elinewidth=1,
                label=basis,
            )
        ax.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        ax.set(
            xlabel="compute per token, against plain decoding",
            ylabel="latency per token, against plain decoding",
            title=f"{result.title}: the best of each method within {result.max_compute:g}× compute",
        )
        low, high = ax.get_xlim()
        ax.set_xlim(low, high + 0.25 * (high - low))
        _label_methods(ax, result.methods)
        ax.legend(loc="center", title="latency is")
        text = f"n = {result.n_tokens} tokens of {result.n_prompts} prompts"
        ax.text(0.99, 0.01, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=7)
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
            values = [getattr(row, latency) for row in rows]
            ax.errorbar(
                [getattr(row, compute).value for row in rows],
                [v.value for v in values],
                yerr=[[v.value - v.ci_low for v in values], [v.ci_high - v.value for v in values]],
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
        ax.set(
            xlabel="compute per token, against plain decoding",
            ylabel="latency per token, against plain decoding",
            title=f"{report.title}: what is started at a price (held-out prompts)",
        )
        ax.margins(x=0.15)
        ax.legend()
        text = f"n = {report.n_tokens} tokens of {report.n_prompts} prompts"
        ax.text(0.01, 0.01, text, transform=ax.transAxes, va="bottom", fontsize=7)
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


def save(figure: Figure, out: Path) -> None:
    """Write a figure; the ending of `out` is the format.

    Raises:
        InvalidInputError: the ending is none of png, svg, pdf.
    """
    from ..results.files import atomic

    if out.suffix.lstrip(".").lower() not in FORMATS:
        raise InvalidInputError(
            f"a plot must end in one of .{', .'.join(FORMATS)}; got {out.name}; rename --out"
        )
    with style(), atomic(out) as part:
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        metadata = dated.get(out.suffix.lstrip(".").lower(), {})
        figure.savefig(part, metadata=metadata)


def _label_frontier(ax: Axes, frontier: Sequence[Any]) -> None:
    """Name a few settings along the frontier: those nearest to round budgets, not on each other."""
    for budget in (1.5, 2.0, 3.0, 6.0, 12.0):
        below = [s for s in frontier if s.normalized_compute.value <= budget]
        if below:
            chosen = below[-1]
            at = (chosen.normalized_compute.value, chosen.normalized_latency.value)
            text = f"layer {chosen.exit_layer}, k = {chosen.k}"
            ax.annotate(
                text, at, xytext=(-4, -11), textcoords="offset points", fontsize=7, ha="right"
            )


def _plain_log_ticks(ax: Axes) -> None:
    low, high = ax.get_xlim()
    ticks = [t for t in (1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000, 10000) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.minorticks_off()


def _name_seconds(ax: Axes) -> None:
    low, high = ax.get_xlim()
    names = ("0.1 µs", "1 µs", "10 µs", "0.1 ms", "1 ms", "10 ms")
    ticks = {10.0 ** (n - 7): name for n, name in enumerate(names)}
    shown = {t: name for t, name in ticks.items() if 0.999 * low <= t <= 1.001 * high}
    ax.set_xticks(list(shown), list(shown.values()))
    ax.minorticks_off()


def _count(ax: Axes, calibration: Calibration) -> None:
    text = f"n = {int(calibration.tokens.sum())} tokens of {len(calibration.tokens)} prompts"
    ax.text(0.99, 0.01, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=7)


def figure_of(ax: Axes) -> Figure:
    """The figure that the axes are on."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure
