"""What every figure needs: the style sheet, axes, ticks and files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")


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


def save(figure: Figure, out: Path) -> None:
    """Write a figure; the ending of `out` is the format.

    Raises:
        InvalidInputError: the ending is none of png, svg, pdf.
    """
    from ...results.files import atomic

    if out.suffix.lstrip(".").lower() not in FORMATS:
        raise InvalidInputError(
            f"a plot must end in one of .{', .'.join(FORMATS)}; got {out.name}; rename --out"
        )
    with style(), atomic(out) as part:
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        metadata = dated.get(out.suffix.lstrip(".").lower(), {})
        figure.savefig(part, metadata=metadata)


def log_ticks(ax: Axes) -> None:
    """Name multiples of plain decoding on a logarithmic axis."""
    low, high = ax.get_xlim()
    ticks = [t for t in (1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000, 10000) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.minorticks_off()
