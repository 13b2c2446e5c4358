"""Draw the picture of docs/architecture.md: python docs/flow.py, or make figures.

A box is a room of the package, with the commands that use it; an arrow is what travels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ppdmodel.show.plots import save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = Path(__file__).parent / "images" / "architecture.svg"
WIDTH, HEIGHT = 1.95, 1.0
COLUMNS = (1.55, 4.6, 7.65, 10.7)
TOP, MIDDLE, LOW = 3.05, 1.3, 0.1
#: room -> column, bottom edge, what it does, its commands, colour
ROOMS = {
    "measure": (0, TOP, "match rates of a model", "measure merge\ntrain-exits models", "C0"),
    "fitting": (1, TOP, "rates with intervals", "fit differ", "C2"),
    "decide": (2, TOP, "estimates, best setting", "estimate optimize\ncompare replay", "C3"),
    "show": (3, TOP, "figures, explorer page", "plot explore", "C4"),
    "pipeline": (1, MIDDLE, "real PPD, run and timed", "time decode\nvalidate", "C1"),
    "formulas": (2, MIDDLE, "closed forms", "formulas", "C5"),
    "simulation": (3, MIDDLE, "the schedule, by events", "", "0.3"),
}


def flow() -> Figure:
    """The rooms, and what travels from one to the next."""
    figure = Figure(figsize=(8.6, 3.1))
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.set(xlim=(-0.15, 12.8), ylim=(0, 4.2), aspect="equal")
    ax.axis("off")
    ax.text(0.5, TOP + HEIGHT / 2, "model,\nprompts", ha="center", va="center", style="italic")
    for name, (column, y, does, commands, color) in ROOMS.items():
        middle = COLUMNS[column] + WIDTH / 2
        _box(ax, COLUMNS[column], y, WIDTH, HEIGHT, color)
        ax.text(middle, y + 0.82, name, ha="center", va="center", weight="bold")
        ax.text(middle, y + 0.57, does, ha="center", va="center", fontsize=6.3)
        ax.text(
            middle, y + 0.26, commands, ha="center", va="center", fontsize=6, family="monospace"
        )
    _box(ax, COLUMNS[0], LOW, COLUMNS[3] + WIDTH - COLUMNS[0], 0.8, "0.55")
    held = "measurement · timing · calibration · validation: what the arrows carry, and its files"
    ax.text(7.1, LOW + 0.56, "results", ha="center", va="center", weight="bold")
    ax.text(7.1, LOW + 0.24, held, ha="center", va="center", fontsize=6.5)
    _arrows(ax)
    return figure


def _arrows(ax: Axes) -> None:
    """What travels between the rooms."""
    half, low, upper = TOP + HEIGHT / 2, MIDDLE + HEIGHT / 2, MIDDLE + HEIGHT
    measure, fitting, decide, show = COLUMNS
    _arrow(ax, (0.95, half), (measure, half))
    _arrow(ax, (measure + WIDTH, half), (fitting, half), "measurement")
    _arrow(ax, (fitting + WIDTH, half), (decide, half), "calibration")
    _arrow(ax, (decide + WIDTH, half), (show, half), "decisions")
    _arrow(ax, (fitting + 0.8, upper), (fitting + 0.8, TOP), "timing", (fitting + 0.47, 2.63))
    _arrow(ax, (decide + 0.2, TOP), (fitting + 1.8, upper), "predictions", (decide - 0.05, 2.4))
    _arrow(ax, (decide + 1.0, upper), (decide + 1.0, TOP))
    _arrow(ax, (show + 0.2, upper), (decide + 1.8, TOP))
    ax.plot([0.5, 0.5], [half - 0.35, low], color="0.35", lw=1)
    _arrow(ax, (0.5, low), (fitting, low), "the same model, on real devices")


def _box(ax: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    rounded = "round,pad=0,rounding_size=0.1"
    ax.add_patch(FancyBboxPatch((x, y), width, height, rounded, fc="white", ec=color, lw=1.6))


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    label: str = "",
    place: tuple[float, float] | None = None,
) -> None:
    """An arrow; its label stands above its middle unless it has a place of its own."""
    arrow = {"arrowstyle": "-|>", "color": "0.35", "lw": 1, "shrinkA": 0, "shrinkB": 1}
    ax.annotate("", end, start, arrowprops=arrow)
    x, y = place or ((start[0] + end[0]) / 2, start[1] + 0.1)
    ax.text(x, y, label, ha="center", fontsize=6.3, color="0.25")


def main() -> None:
    """Write the picture."""
    with style():
        figure = flow()
    save(figure, FILE)


if __name__ == "__main__":
    main()
