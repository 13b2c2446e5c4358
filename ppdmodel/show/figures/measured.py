"""Figures of a measured model: its match rates, and latency against compute of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...decide.costs import Grid, LayerCosts
from ...decide.optimize import optimize
from ...errors import InvalidInputError
from ...fitting.curve_fit import curve_values
from ...results.calibration import Calibration
from .canvas import RATIOS, axes_of, error_bars, figure_of, log_ticks, name, style, write_count

DEFAULT_K = (1, 3, 5, 10)


def match_rate(
    calibration: Calibration, *, k: Sequence[int] | None = None, ax: Axes | None = None
) -> Figure:
    """p_correct against the exit layer: measured with 95% bands, and the fitted curve.

    Args:
        calibration: from `fit`.
        k: numbers of guesses; by default those of 1, 3, 5 and 10 that were counted, or all.
        ax: where to draw.

    Raises:
        InvalidInputError: a k beyond what the calibration recorded.
    """
    counted = calibration.ks or range(1, calibration.k_max + 1)
    k = k or [value for value in DEFAULT_K if value in counted] or counted
    for value in k:
        if not 1 <= value <= calibration.k_max:
            raise InvalidInputError(
                f"k must lie in 1...{calibration.k_max}, what the calibration recorded; got {value}"
            )
    with style():
        ax = axes_of(ax)
        every = np.arange(1, calibration.layers + 1)
        fine = np.linspace(1, calibration.layers, 200)
        for number, value in enumerate(k):
            color, column = f"C{number}", value - 1
            layers = every[calibration.has(every, value) | (every == calibration.layers)]
            rates = (calibration.ci_low, calibration.ci_high, calibration.p_correct)
            low, high, p_correct = (table[layers - 1, column] for table in rates)
            ax.fill_between(layers, low, high, color=color, alpha=0.2, linewidth=0)
            ax.plot(layers, p_correct, "o", color=color, label=f"k = {value}")
            fitted = curve_values(calibration.curve, fine / calibration.layers, value)
            ax.plot(fine, fitted, color=color, linewidth=1.2)
        ax.set(
            xlabel="exit layer",
            ylabel="match rate  p_correct",
            ylim=(0, 1.02),
            xlim=(0, calibration.layers + 0.5),
        )
        name(ax, f"{calibration.title}: measured (95% bands) and fitted")
        ax.legend(loc="upper left")
        write_count(ax, int(calibration.tokens.sum()), len(calibration.tokens))
        return figure_of(ax)


def trade_off(calibration: Calibration, *, max_depth: int = 1, ax: Axes | None = None) -> Figure:
    """Latency against compute of every setting of a measured model, with the frontier marked."""
    decision = optimize(calibration, max_compute=(), max_depth=max_depth, ideal=True)
    grid = Grid.of(calibration.layers, calibration.k_max, max_depth)
    grid = grid.only(calibration.has(grid.exit_layer, grid.k))
    p_correct, costs = grid.rates(calibration.p_correct), LayerCosts()
    latency, compute = costs.ratios(grid, p_correct)
    with style():
        ax = axes_of(ax)
        points = ax.scatter(
            compute,
            latency,
            c=grid.exit_layer,
            s=5,
            alpha=0.6,
            cmap="viridis",
            linewidths=0,
            rasterized=True,
        )
        figure_of(ax).colorbar(points, ax=ax, label="exit layer", pad=0.01)
        best = decision.frontier
        error_bars(
            ax,
            [setting.normalized_compute.value for setting in best],
            [setting.normalized_latency for setting in best],
            fmt="o-",
            color="C3",
            ms=3,
            elinewidth=0.8,
            zorder=3,
            label="frontier (95% intervals)",
        )
        _label_frontier(ax, best)
        ax.plot(1, 1, "ks", label="plain decoding", zorder=4)
        ax.set(
            xscale="log",
            xlabel=f"{RATIOS['xlabel']} (log scale)",
            ylabel=RATIOS["ylabel"],
        )
        name(ax, f"{calibration.title}: every exit layer and k = 1…{calibration.k_max}")
        ax.set_xlim(left=0.65)
        log_ticks(ax)
        ax.legend(loc="lower left")
        write_count(ax, int(calibration.tokens.sum()), len(calibration.tokens))
        return figure_of(ax)


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
