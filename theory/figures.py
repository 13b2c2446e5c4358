"""Draw the figures of the theory pages: python theory/figures.py, or make figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import ppdmodel as ppd
from ppdmodel.decide.hardware import device, models, shape
from ppdmodel.decide.roofline import ideal_times
from ppdmodel.show.plots import regime, save, style
from ppdmodel.show.timeline import timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parent / "images"


def axes(width: float = 6.2, height: float = 3.4, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(1, columns)))


def pipeline() -> Figure:
    """Which process runs when: six tokens, the fourth and the sixth after a miss."""
    return timeline([True, True, False, True, False], layers=12, exit_layer=6, k=2)


def latency() -> Figure:
    """Latency against the exit layer, at several depths."""
    figure, panels = axes(7.0, 3.0, columns=2)
    layers, exits = 48, np.linspace(0.5, 48, 400)
    for ax, p in zip(panels, (0.6, 0.9), strict=True):
        for number, depth in enumerate((1, 2, 4, None)):
            ratio = ppd.normalized_latency(p, layers, exits, depth)
            label = "unlimited" if depth is None else f"D = {depth}"
            ax.plot(exits / layers, ratio, color=f"C{number}", label=label)
        ax.set(xlabel="relative exit layer  e/d", title=f"p = {p}", ylim=(0, 1.02), xlim=(0, 1))
    panels[0].set_ylabel("latency against plain decoding")
    panels[1].legend(loc="lower right")
    return figure


def total_latency() -> Figure:
    """The exact distribution of 100 tokens, and simulated generations."""
    figure, (ax,) = axes()
    p, layers, exit_layer, tokens, runs = 0.7, 40, 12, 100, 4000
    exact = ppd.total_latency(p, layers, exit_layer, tokens)
    totals = [
        ppd.simulate(p, layers, exit_layer, tokens=tokens, seed=seed).finish_times[-1]
        for seed in range(runs)
    ]
    width = 20.0
    edges = np.arange(min(totals) - width, max(totals) + 2 * width, width)
    heights = np.histogram(exact.times, edges, weights=exact.probabilities)[0]
    ax.stairs(heights, edges, color="C0", lw=1.5, label="exact")
    counts = np.histogram(totals, edges)[0] / runs
    ax.plot(edges[:-1] + width / 2, counts, "k.", ms=4, label=f"{runs} simulated generations")
    for q in (0.05, 0.5, 0.95):
        ax.axvline(exact.quantile(q), color="C3", lw=0.8, ls="--")
        ax.text(exact.quantile(q), max(heights) * 1.04, f"{100 * q:g}%", fontsize=7.5, ha="center")
    ax.set(
        xlabel="total latency, in layer times",
        ylabel=f"probability per {width:g} layer times",
        ylim=(0, max(heights) * 1.12),
        title=f"{tokens} tokens, p = {p}, d = {layers}, e = {exit_layer}, D = 1",
    )
    ax.legend(loc="center left", fontsize=8)
    return figure


def correlation() -> Figure:
    """What autocorrelation does to the mean and to the spread."""
    figure, (left, right) = axes(7.0, 3.0, columns=2)
    rho = np.linspace(-0.6, 0.95, 100)
    points = (-0.5, -0.2, 0.0, 0.3, 0.6, 0.9)
    p, layers = 0.6, 24
    for number, (exit_layer, depth) in enumerate(((3, 1), (3, 2), (12, 1))):
        curve = ppd.correlated_latency(p, layers, exit_layer, depth, rho)
        label = f"e = {exit_layer}, D = {depth}"
        left.plot(rho, curve / layers, color=f"C{number}", label=label)
        for r in points:
            run = ppd.simulate(
                p, layers, exit_layer, depth=depth, tokens=300_000, autocorrelation=r, seed=2
            )
            left.plot(r, run.latency_per_token / layers, ".", color=f"C{number}")
    left.set(xlabel="autocorrelation ρ", ylabel="latency against plain decoding")
    left.set(title=f"mean: p = {p}, d = {layers}")
    left.legend(fontsize=8)
    tokens, runs = 100, 600
    spread = np.sqrt(ppd.total_latency_variance(p, layers, 12, tokens, rho))
    right.plot(rho, spread / (layers * tokens), color="C2")
    for r in points:
        totals = [
            ppd.simulate(p, layers, 12, tokens=tokens, autocorrelation=r, seed=seed).finish_times[
                -1
            ]
            for seed in range(runs)
        ]
        right.plot(r, np.std(totals) / (layers * tokens), ".", color="C2")
    right.set(xlabel="autocorrelation ρ", ylabel="standard deviation / plain latency")
    right.set(title=f"spread of {tokens} tokens, e = 12, D = 1", ylim=(0, None))
    return figure


def best_exit() -> Figure:
    """Latency against the exit for match rates that are powers of the relative depth."""
    figure, (ax,) = axes()
    x = np.linspace(0.005, 1, 400)
    for number, exponent in enumerate((0.5, 1, 2, 4, 8)):
        latencies = ppd.latency_per_token(x**exponent, 1, x, None)
        ax.plot(x, latencies, color=f"C{number}", label=f"a = {exponent:g}")
        best = ppd.best_relative_exit(exponent)
        least = ppd.latency_per_token(best**exponent, 1, best, None)
        ax.plot(best, least, "o", color=f"C{number}", ms=5)
    ax.set(
        xlabel="relative exit layer  x = e/d",
        ylabel="latency against plain decoding",
        title="match rate xᵃ, unlimited depth; dots: x = a/(a+1)",
        xlim=(0, 1),
    )
    ax.legend(loc="lower right", fontsize=8)
    return figure


def methods() -> Figure:
    """Every method at one acceptance rate, along its own knob."""
    figure, (ax,) = axes(6.6, 4.0)
    layers, alpha = 40, 0.8
    draft, counts = 0.05, np.arange(1, 13)
    curves: list[tuple[str, object, object, str]] = [
        (
            "PPD, k = 1, unlimited depth",
            ppd.compute_per_token(alpha, layers, exits := np.arange(5, 41), 1, None),
            ppd.latency_per_token(alpha, layers, exits, None),
            "o-",
        ),
        (
            "PPD, k = 1, depth 1",
            ppd.compute_per_token(alpha, layers, late := np.arange(20, 41)),
            ppd.latency_per_token(alpha, layers, late),
            "+-",
        ),
        (
            "speculative, draft 1/20",
            ppd.speculative_compute(alpha, layers, counts, draft),
            ppd.speculative_latency(alpha, layers, counts, draft),
            "s-",
        ),
        (
            "self-speculative, e = 10",
            ppd.self_speculative_compute(alpha, layers, 10, counts),
            ppd.self_speculative_latency(alpha, layers, 10, counts),
            "^-",
        ),
        (
            "parallel drafting, draft 1/20",
            ppd.parallel_draft_compute(alpha, layers, counts, draft),
            ppd.parallel_draft_latency(alpha, layers, counts, draft),
            "v-",
        ),
    ]
    for number, (label, compute, latency_curve, marker) in enumerate(curves):
        ax.plot(
            np.asarray(compute) / layers,
            np.asarray(latency_curve) / layers,
            marker,
            color=f"C{number}",
            ms=6 if marker == "+-" else 3,
            lw=1,
            label=label,
        )
    units = np.array([1, 2, 4, 8])
    ideal = ppd.tensor_parallel_latency(layers, units) / layers
    ax.plot(np.ones(4), ideal, "kD", ms=3.5, label="tensor parallel, ideal, 1 to 8 devices")
    ax.set(
        xscale="log",
        xlim=(0.93, 4.6),
        ylim=(0, 1.05),
        xlabel="compute against plain decoding (log scale)",
        ylabel="latency against plain decoding",
        title=f"rate {alpha} for all; 1 to 12 drafted tokens; PPD exits 5 (20) to 40 of {layers}",
    )
    ticks = (1, 1.5, 2, 3, 4)
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=7.5, loc="lower right")
    return figure


def regimes() -> Figure:
    """The link time above which PPD beats splitting over two and over four units."""
    figure, panels = axes(7.8, 3.1, columns=2)
    p, speed = np.linspace(0, 1, 201), device("H100 SXM")
    for ax, (units, messages) in zip(panels, ((2, 1), (4, 2)), strict=True):
        starts, ends = {}, {}
        for name in models():
            model = shape(name)
            layer, head = ideal_times(model, speed)
            starts[name] = ppd.link_break_even(
                p, model.layers, model.layers / 2, units, layer, head, head, 1, messages
            )
            ends[name] = model.layers / 2 * layer
        regime(p, starts, ends, title=f"{units} units, k = {units - 1}, e = d/2", ax=ax)
    legend = panels[0].get_legend()
    assert legend is not None
    legend.remove()  # the other panel's is the same
    panels[1].set_ylabel("")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "01-pipeline": pipeline,
    "02-latency": latency,
    "04-total-latency": total_latency,
    "05-correlation": correlation,
    "07-best-exit": best_exit,
    "08-methods": methods,
    "11-regimes": regimes,
}


def main() -> None:
    """Write every figure."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        with style():
            figure = draw()
        save(figure, FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
