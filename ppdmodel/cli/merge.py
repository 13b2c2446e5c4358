"""`ppdmodel merge`: join shards of one measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .format import answer, note
from .measure import overview, render
from .options import Json, option
from .progress import progress_bar


def merge_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Measurement folders.")],
    out: Annotated[Path, option("--out", "Output folder.", "DIR")],
    as_json: Json = False,
) -> None:
    """Join the shards of one measurement, made on any machines, into what one run would give.

    Example: ppdmodel merge results/shard-1 results/shard-2 --out results/full
    """
    from ..measure import merge

    with progress_bar(stays=False) as report:
        result = merge(folders, out, on_progress=report)
    if not result.complete:
        note(
            f"{len(result.prompt_ids)} of {result.provenance['n_prompts']} prompts: the rest is "
            f"missing; merge all shards, or go on with: ppdmodel measure ... --out {out}"
        )
    answer(as_json, overview(result, out), render, result, out)
