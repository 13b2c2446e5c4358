"""How commands print numbers, intervals, tables, paragraphs and JSON documents."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import typer

from ..errors import visible

if TYPE_CHECKING:
    from ..results.intervals import IntervalEstimate

#: text is wrapped at this width, or at that of a narrower terminal
WIDTH = 80
ABSENT = "–"


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number with so many decimals, or a dash where there is none.

    >>> number(0.25), number(None), number(2, 1, signed=True)
    ('0.250', '–', '+2.0')
    """
    if value is None:
        return ABSENT
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def percent(share: float, digits: int = 0) -> str:
    """A share in percent.

    >>> percent(0.0457, 1)
    '4.6%'
    """
    return f"{100 * share:.{digits}f}%"


def bounds(low: float | None, high: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """The ends of an interval.

    >>> bounds(0.2, 0.3, 2)
    '[0.20, 0.30]'
    """
    return f"[{number(low, digits, signed=signed)}, {number(high, digits, signed=signed)}]"


def interval(estimate: IntervalEstimate, digits: int = 3, *, signed: bool = False) -> str:
    """A number and its interval; the number alone where no interval is known or it has no width."""
    middle = number(estimate.value, digits, signed=signed)
    low, high = estimate.ci_low, estimate.ci_high
    if math.isnan(low) or low == high:
        return middle
    return f"{middle} {bounds(low, high, digits, signed=signed)}"


def width() -> int:
    """Columns to print in."""
    return min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)


def echo(text: str, **look: Any) -> None:
    """Print text as it is, but for controls in names, which a terminal would obey."""
    typer.secho("\n".join(map(visible, text.split("\n"))), **look)


def say(text: str = "", *, bold: bool = False) -> None:
    """Print text, each of its lines wrapped between words; bold where it is a terminal."""
    for line in text.split("\n"):
        parts = wrap(visible(line), width(), break_long_words=False, break_on_hyphens=False)
        for part in parts or [""]:
            typer.secho(part, bold=bold or None)


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: Collection[int] = (),
    below: Sequence[str] = (),
) -> None:
    """Print rows below bold heads, each column as wide as its widest cell.

    Columns are two spaces apart, or one where the table would be too wide.

    Args:
        heads: of the columns, each of one or more lines; empty for a table without heads.
        rows: cells, shape [rows][columns].
        left: columns that are aligned on their left; the others are on their right.
        below: for each row a remark to print under it, or an empty text.
    """
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    upwards = (reversed(head.split("\n")) for head in heads)
    top = list(zip_longest(*upwards, fillvalue=""))[::-1]
    widths = [max(map(len, column)) for column in zip(*top, *cells, strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width() else " "

    def line(row: Sequence[str]) -> str:
        sized = (
            cell.ljust(size) if n in left else cell.rjust(size)
            for n, (cell, size) in enumerate(zip(row, widths, strict=True))
        )
        return gap.join(sized).rstrip()

    for lines in top:
        typer.secho(line(lines), bold=True)
    for n, row in enumerate(cells):
        typer.echo(line(row))
        if below and below[n]:
            echo(f"  {below[n]}", dim=True)


def print_json(document: Any) -> None:
    """Print one JSON document on standard output; a text is one already."""
    import json

    is_text = isinstance(document, str)
    echo(
        document if is_text else json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    )


def answer(as_json: bool, document: Any, render: Callable[..., None], *about: Any) -> None:
    """Print a result as one JSON document, or by calling `render` with what it is `about`."""
    if as_json:
        print_json(document)
    else:
        render(*about)


def note(text: str) -> None:
    """Print a remark beside the result, on standard error."""
    echo(text, err=True)
