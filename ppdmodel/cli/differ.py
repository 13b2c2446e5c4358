"""`ppdmodel differ`: whether match rates differ between measurements or categories of prompts."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError
from ..results.measurement import Measurement
from .options import Json, note, whole_list

if TYPE_CHECKING:
    from ..fitting.group_differences import Differences

WIDTH = 80


def differ_command(
    measurements: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Measurement folders, the first beside.")
    ],
    by_category: Annotated[
        bool, typer.Option("--by-category", help="Of one folder, its categories of prompts.")
    ] = False,
    k: Annotated[
        str, typer.Option("--k", metavar="K", help="Numbers of guesses, with commas.")
    ] = "1,5",
    relative_depths: Annotated[
        list[float] | None,
        typer.Option("--relative-depth", metavar="X", help="Exit layer over layers; may repeat."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare match rates of measurements, or of one measurement's categories of prompts.

    Example: ppdmodel differ results/full results/trained
    """
    ks = whole_list("k", k)
    if seed < 0:
        raise InvalidInputError(f"seed must be 0 or more; got {seed}; give another")
    from ..fitting.group_differences import DEFAULT_DEPTHS, differences
    from ..results.io import load_rates

    found = []
    for folder in measurements:
        source = load_rates(folder)
        if not isinstance(source, Measurement):
            raise InvalidInputError(
                f"differ must be given measurement folders; got {folder}; give the folder of "
                "ppdmodel measure"
            )
        if not source.complete:
            note(f"{folder} is unfinished: {len(source.prompt_ids)} prompts of it are used")
        found.append(source)
    result = differences(
        found,
        by_category=by_category,
        relative_depths=relative_depths or DEFAULT_DEPTHS,
        ks=ks,
        names=None if by_category else [folder.name or str(folder) for folder in measurements],
        seed=seed,
    )
    typer.echo(result.to_json()) if as_json else render(result)


def render(result: Differences) -> None:
    """Print a row per group, depth and k, and which differ."""
    line = "{:<20} {:>5} {:>3} {:>6} {:>6}  {:<24} {:<7}"
    typer.echo(f"Match rates beside those of {result.first}\n")
    typer.echo(line.format("", "depth", "k", "p", "first", "difference", "").rstrip())
    for row in result.rows:
        value = row.difference
        typer.echo(
            line.format(
                row.name[:20],
                f"{row.relative_depth:.2f}",
                row.k,
                f"{row.p_correct:.3f}",
                f"{row.p_first:.3f}",
                f"{value.value:+.3f} [{value.ci_low:+.3f}, {value.ci_high:+.3f}]",
                "differs" if row.differs else "",
            ).rstrip()
        )
    different = [
        name for name in result.groups if any(r.differs for r in result.rows if r.name == name)
    ]
    paired = [name for name, same in zip(result.groups, result.paired, strict=True) if same]
    words = (
        "Intervals are 95%, by resampling prompts"
        + (f"; the same prompts are compared for {', '.join(paired)}" if paired else "")
        + ". 'Differs' holds for all rows at once: were all rates equal, 95% of such tables would "
        "say so nowhere."
    )
    typer.echo("\n" + fill(words, WIDTH))
    typer.echo(fill(f"Different: {', '.join(different)}." if different else "None differs.", WIDTH))
