"""What every figure needs: the style sheet, axes, ticks and files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...errors import InvalidInputError, visible
from ...results.intervals import IntervalEstimate

FORMATS = ("png", "svg", "pdf")
#: labels of a figure of latency against compute
RATIOS = {
    "xlabel": "compute per token, against plain decoding",
    "ylabel": "latency per token, against plain decoding",
}


def style() -> Any:
    """The package's style sheet, as a context manager."""
    text = resources.files("ppdmodel.show") / "ppdmodel.mplstyle"
    with resources.as_file(text) as path:
        return mpl.rc_context(mpl.rc_params_from_file(path, use_default_template=False))


def axes_of(ax: Axes | None, figsize: tuple[float, float] | None = None) -> Axes:
    """The axes that were given, or those of a new figure."""
    if ax is not None:
        return ax
    figure = Figure(figsize=figsize)
    FigureCanvasAgg(figure)
    return figure.subplots()


def figure_of(ax: Axes) -> Figure:
    """The figure that the axes are on."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def name(ax: Axes, title: str) -> None:
    """Give axes a title with a name in it: a dollar sign in that begins no formula."""
    ax.set_title(visible(title), parse_math=False)


def save(figure: Figure, out: Path) -> None:
    """Write a figure; the ending of `out` is the format.

    Raises:
        InvalidInputError: the ending is none of png, svg, pdf.
    """
    from ...results.files import atomic

    ending = out.suffix.lstrip(".").lower()
    if ending not in FORMATS:
        raise InvalidInputError(
            f"a plot must end in one of .{', .'.join(FORMATS)}; got {out.name}; rename --out"
        )
    drawn = BytesIO()
    with style():
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(drawn, format=ending, metadata=dated.get(ending, {}))
    with atomic(out) as part:
        part.write_bytes(drawn.getbuffer())


def error_bars(
    ax: Axes, x: Sequence[float], found: Sequence[IntervalEstimate], **look: Any
) -> None:
    """Draw numbers over `x` with their intervals."""
    below = [max(one.value - one.ci_low, 0) for one in found]
    above = [max(one.ci_high - one.value, 0) for one in found]
    ax.errorbar(x, [one.value for one in found], yerr=[below, above], **look)


def write_count(ax: Axes, tokens: int, prompts: int, *, side: str = "right") -> None:
    """Say in a lower corner how many tokens of how many prompts are behind the figure."""
    x, text = 0.99 if side == "right" else 0.01, f"n = {tokens} tokens of {prompts} prompts"
    ax.text(x, 0.01, text, transform=ax.transAxes, ha=side, va="bottom", fontsize=7)


def log_ticks(ax: Axes) -> None:
    """Name multiples of plain decoding on a logarithmic axis."""
    low, high = ax.get_xlim()
    ticks = [t for t in (1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000, 10000) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.minorticks_off()
