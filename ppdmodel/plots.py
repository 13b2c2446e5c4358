"""Figures: each function takes results or numbers, draws on `ax` if given, returns the figure."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import formulas
from .checks import check_schedule
from .errors import InvalidInputError
from .fitting import curve_values
from .optimization import Grid, optimize
from .results import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
DEFAULT_K = (1, 3, 5, 10)
DEFAULT_P = tuple(round(0.1 * n, 1) for n in range(1, 10))


def style() -> Any:
    """The package's style sheet, as a context manager."""
    text = resources.files("ppdmodel") / "ppdmodel.mplstyle"
    with resources.as_file(text) as path:
        return mpl.rc_context(mpl.rc_params_from_file(path, use_default_template=False))


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    figure = Figure()
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
        ax = _axes(ax)
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
        return _figure(ax)


def trade_off(calibration: Calibration, *, max_depth: int = 1, ax: Axes | None = None) -> Figure:
    """Latency against compute of every setting of a measured model, with the frontier marked."""
    decision = optimize(calibration, max_compute=(), max_depth=max_depth)
    grid = Grid.of(calibration.layers, calibration.k_max, max_depth)
    p_correct = grid.rates(calibration.p_correct)
    with style():
        ax = _axes(ax)
        points = ax.scatter(
            grid.compute(p_correct),
            grid.latency(p_correct),
            c=grid.exit_layer,
            s=5,
            alpha=0.6,
            cmap="viridis",
            linewidths=0,
            rasterized=True,
        )
        _figure(ax).colorbar(points, ax=ax, label="exit layer", pad=0.01)
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
        return _figure(ax)


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
        ax = _axes(ax)
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
        return _figure(ax)


def save(figure: Figure, out: Path) -> None:
    """Write a figure; the ending of `out` is the format.

    Raises:
        InvalidInputError: the ending is none of png, svg, pdf.
    """
    from .files import atomic

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


def _count(ax: Axes, calibration: Calibration) -> None:
    text = f"n = {int(calibration.tokens.sum())} tokens of {len(calibration.tokens)} prompts"
    ax.text(0.99, 0.01, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=7)


def _figure(ax: Axes) -> Figure:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure
