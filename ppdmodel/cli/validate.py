"""`ppdmodel validate`: predict a grid of settings, run it, and compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from .format import bounds, note, number, print_json, print_table, say
from .options import (
    DATA,
    DECODING,
    MACHINE,
    Dtype,
    Exits,
    Json,
    Limit,
    Model,
    Prompts,
    Raw,
    Units,
    UnitsDevice,
    check_seed,
    chosen_prompts,
    model_with_exits,
    whole_list,
    whole_or_none,
    wholes,
)
from .progress import resumable

#: prompts without --limit
FEW = 11


def validate_command(
    calibration: Annotated[
        Path, typer.Option("--calibration", metavar="FILE", help="Match rates, from: ppdmodel fit.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the runs.")],
    timing: Annotated[
        Path | None,
        typer.Option("--timing", metavar="FILE", help="Times from ppdmodel time, if not in CAL."),
    ] = None,
    model: Model = "smollm2-135m",
    dtype: Dtype = "float32",
    exits: Exits = None,
    prompts: Prompts = None,
    limit: Limit = None,
    raw: Raw = False,
    fit_prompts: Annotated[
        str,
        typer.Option(
            "--fit-prompts",
            metavar="N",
            help="Prompts for fitting; the rest are held out.",
            rich_help_panel=DATA,
        ),
    ] = "3",
    exit_layers: Annotated[
        str | None,
        typer.Option(
            "--exit-layers",
            metavar="E",
            help="With commas; default six from the middle on.",
            rich_help_panel=DECODING,
        ),
    ] = None,
    k: Annotated[
        str, typer.Option("--k", metavar="K", help="With commas.", rich_help_panel=DECODING)
    ] = "1,3,5",
    max_new_tokens: Annotated[
        str,
        typer.Option(
            "--max-new-tokens", metavar="N", help="Most tokens per text.", rich_help_panel=DECODING
        ),
    ] = "64",
    units: Units = "2",
    device: UnitsDevice = "cpu",
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", help="Run order.", rich_help_panel=MACHINE)
    ] = 0,
    as_json: Json = False,
) -> None:
    """Predict PPD's latency on a grid of settings, then run it for real.

    If interrupted, runs are kept; the same command resumes.

    Example: ppdmodel validate --calibration cal.json --timing timing.json --out results/validation
    """
    numbers = wholes(fit_prompts=fit_prompts, max_new_tokens=max_new_tokens, units=units)
    ks, most = whole_list("k", k), whole_or_none("limit", limit)
    given = whole_list("exit_layers", exit_layers) if exit_layers else None
    check_seed(seed)
    from ..measure import default_prompts, load_model
    from ..pipeline import ValidationGrid, Workers, validate
    from ..pipeline.devices import machine
    from ..pipeline.timing import model_provenance
    from ..pipeline.worker_pool import placements
    from ..results.compatibility import check_runs
    from ..results.io import load_calibration, load_timing

    names = [place.device for place in placements(numbers["units"], device=device)]
    rates = load_calibration(calibration)
    times = load_timing(timing) if timing else rates.timing
    if times is None:
        raise InvalidInputError(
            f"validate needs costs; got none, and {calibration} has none; give --timing FILE"
        )
    source, trained = model_with_exits(model, exits)
    running = {**model_provenance(source, dtype, trained), "machine": machine(names)}
    for warning in check_runs(running, rates, times):
        note(warning)
    chosen = chosen_prompts(prompts, most, default_prompts)[: most or FEW]
    with resumable("finished runs are", out):
        report = validate(
            load_model(source, dtype),
            chosen,
            rates,
            times,
            out,
            ValidationGrid(
                exit_layers=given or _from_the_middle(rates.layers),
                ks=ks,
                fit_prompts=numbers["fit_prompts"],
                max_new_tokens=numbers["max_new_tokens"],
                raw=raw,
                seed=seed,
            ),
            exits=trained,
            workers=Workers(numbers["units"], device),
            on_progress=lambda stage, share: note(f"{stage}: {share:.0%}"),
        )
    if as_json:
        print_json(report)
    else:
        render(report, out)


def _from_the_middle(layers: int) -> list[int]:
    """Six exit layers from the middle of the model to near its end, or as many as there are."""
    first, last = -(-layers // 2), layers - max(layers // 8, 1)
    return sorted({round(first + n * (last - first) / 5) for n in range(6)})


def render(report: Mapping[str, Any], out: Path) -> None:
    """Print every setting, and a summary."""
    say(
        f"{report['settings']['model']}: latency of PPD over plain decoding on one unit "
        f"({1e3 * report['plain_latency_s']:.1f} ms a token)",
        bold=True,
    )
    print_table(
        ("exit", "k", "predicted", "95%", "measured", "error", "match", "time", ""),
        [
            (
                row["exit_layer"],
                row["k"],
                number(row["predicted"]),
                bounds(row["ci_low"], row["ci_high"]),
                number(row["measured"]),
                *(f"{row[name]:+.1%}" for name in ("error", "match_part", "latency_part")),
                "" if row["held_out"] else "fitted",
            )
            for row in report["cells"]
        ],
    )
    held = report["held_out"]
    if held["n_cells"]:
        say(
            f"{held['n_cells']} settings not fitted: error {held['median_error']:.1%} median, "
            f"{held['p90_error']:.1%} at the 90th percentile "
            f"(uncalibrated {held['median_error_uncalibrated']:.1%}); {held['within']} in their "
            "interval"
        )
    best = min(report["cells"], key=lambda row: row["measured"])
    say(
        f"fastest: exit {best['exit_layer']}, k = {best['k']}, {1 / best['measured']:.2f} times as "
        f"fast as plain decoding on one unit; {report['n_other_text']} of {report['n_runs']} texts "
        "differ from it"
    )
    typer.echo(f"Every run: {out}")
