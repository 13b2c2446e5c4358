"""`ppdmodel differ`: whether match rates differ between measurements or categories of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .format import interval, number, print_json, print_table, say
from .options import Json, checked_seed, measurement_in, option, whole_list

if TYPE_CHECKING:
    from ..fitting.group_differences import Differences


def differ_command(
    measurements: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Measurement folders; first: baseline.")
    ],
    by_category: Annotated[
        bool, option("--by-category", "Compare one folder's prompt categories.")
    ] = False,
    k: Annotated[str, option("--k", "Numbers of guesses, with commas.", "K")] = "1,5",
    relative_depths: Annotated[
        list[float] | None, option("--relative-depth", "Exit layer / layers; may repeat.", "X")
    ] = None,
    seed: Annotated[int, option("--seed", "Seed of the bootstrap.", callback=checked_seed)] = 0,
    as_json: Json = False,
) -> None:
    """Compare match rates of measurements, or of one measurement's categories of prompts.

    Example: ppdmodel differ results/full results/trained
    """
    ks = whole_list("k", k)
    from ..fitting.group_differences import DEFAULT_DEPTHS, differences

    result = differences(
        [measurement_in(folder, "differ") for folder in measurements],
        by_category=by_category,
        relative_depths=relative_depths or DEFAULT_DEPTHS,
        ks=ks,
        names=None if by_category else [folder.name or str(folder) for folder in measurements],
        seed=seed,
    )
    print_json(result.to_json()) if as_json else render(result)


def render(result: Differences) -> None:
    """Print a row per group, depth and k, and which differ."""
    say(f"Match rates beside those of {result.first}\n")
    print_table(
        ("", "depth", "k", "p", "first", "difference", ""),
        [
            (
                row.name[:20],
                number(row.relative_depth, 2),
                row.k,
                number(row.p_correct),
                number(row.p_first),
                interval(row.difference, signed=True),
                "differs" if row.differs else "",
            )
            for row in result.rows
        ],
        left=(0, 5, 6),
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
    say("\n" + words)
    say(f"Different: {', '.join(different)}." if different else "None differs.")
