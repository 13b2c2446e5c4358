"""`ppdmodel explore`: one offline page to try settings by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from .format import answer, echo
from .options import Json, rates_in


def explore_command(
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RESULT...", help="Measurements and calibrations to start from."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")
    ] = Path("explorer.html"),
    as_json: Json = False,
) -> None:
    """Write a page with sliders for every number, the curves, and the pipeline token by token.

    Open it in a browser: it is one file and loads nothing. With results it starts from their
    measured match rates and marks the best setting.

    Example: ppdmodel explore results/full.json -o explorer.html
    """
    from ..results.files import atomic, check_writable

    check_writable(out)
    for path in results or []:
        if out.resolve() == path.resolve() or path.resolve() in out.resolve().parents:
            raise InvalidInputError(
                f"the page must not be written over a RESULT; got {out}; choose another name"
            )
    sources = [rates_in(path) for path in results or []]
    from ..show.explorer import explore

    page = explore(*sources)
    with atomic(out) as part:
        part.write_text(page, encoding="utf-8")
    document = {"out": str(out), "bytes": len(page.encode()), "results": len(sources)}
    answer(as_json, document, echo, str(out))
