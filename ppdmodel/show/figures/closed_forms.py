"""Figures of the closed forms alone: the trade-off curves, and where PPD beats splitting layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ... import formulas
from ..._types import Floats
from ...checks import check_schedule
from .canvas import RATIOS, axes_of, figure_of, log_ticks, style

DEFAULT_P = tuple(round(0.1 * n, 1) for n in range(1, 10))


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
            **RATIOS,
            title=f"Theory: {layers} layers, k = {k}, depth {unlimited}; a dot per exit layer",
            ylim=(0, 1.08),
        )
        if depth != 1:
            ax.set_xscale("log")
            log_ticks(ax)
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


def _name_seconds(ax: Axes) -> None:
    low, high = ax.get_xlim()
    names = ("0.1 µs", "1 µs", "10 µs", "0.1 ms", "1 ms", "10 ms")
    ticks = {10.0 ** (n - 7): name for n, name in enumerate(names)}
    shown = {t: name for t, name in ticks.items() if 0.999 * low <= t <= 1.001 * high}
    ax.set_xticks(list(shown), list(shown.values()))
    ax.minorticks_off()
