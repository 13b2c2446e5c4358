"""`ppdmodel time`: what layers, heads, starts and promotions cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..results.timing import Timed, Timing
from .measure import MACHINE, MODEL, Dtype, Model
from .options import Json, note, print_json, whole, whole_list

Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="File for the timing.")]
Exits = Annotated[
    Path | None,
    typer.Option("--exits", metavar="DIR", help="Trained exits to read.", rich_help_panel=MODEL),
]
UnitsOption = Annotated[
    str, typer.Option("--units", metavar="U", help="Units, each with a CPU of its own.")
]
UnitsDevice = Annotated[
    str,
    typer.Option(
        "--device",
        help="cpu; cuda, a GPU for each unit; or by name: cuda:0,cuda:1.",
        rich_help_panel=MACHINE,
    ),
]
TERMS = {
    "layer_time_s": "a layer",
    "head_time_s": "the head",
    "token_time_s": "the rest of a token",
    "plain_latency_s": "a token, on one unit",
    "split_latency_s": "a token, on all units together",
}
PPD_TERMS = {
    "layer_time_s": "layer before",
    "busy_layer_time_s": "after",
    "head_time_s": "head",
    "exit_time_s": "reading",
    "batch_layer_time_s": "guesses' layer",
    "promotion_delay_s": "promotion",
}


def time_command(
    out: Out,
    model: Model = "smollm2-135m",
    dtype: Dtype = "float32",
    exits: Exits = None,
    k: Annotated[
        str, typer.Option("--k", metavar="K", help="Numbers of guesses, with commas.")
    ] = "1,2,3,5,8",
    rounds: Annotated[
        str, typer.Option("--rounds", metavar="N", help="Repetitions, at least 4.")
    ] = "8",
    units: UnitsOption = "2",
    device: UnitsDevice = "cpu",
    as_json: Json = False,
) -> None:
    """Time what PPD and plain decoding are made of, inside whole tokens.

    Example: ppdmodel time --model smollm2-135m --out results/timing.json
    """
    ks = whole_list("k", k)
    repetitions, n_units = whole("rounds", rounds), whole("units", units)
    from ..measure import load_exits, load_model, locate
    from ..pipeline import Workers, time_model
    from ..pipeline.worker_pool import placements
    from ..results.files import check_writable
    from ..results.io import save

    check_writable(out)
    placements(n_units, device=device)
    source = locate(model)
    trained = load_exits(exits, source) if exits else None
    note("loading the model ...")
    result = time_model(
        load_model(source, dtype),
        ks=ks,
        rounds=repetitions,
        workers=Workers(n_units, device),
        exits=trained,
        on_progress=lambda share: note(f"{share:.0%} done"),
    )
    save(result, out)
    if as_json:
        print_json(overview(result, out))
    else:
        render(result, out)


def overview(result: Timing, out: Path) -> dict[str, Any]:
    """The terms, without their samples."""
    from dataclasses import asdict

    found = asdict(result)
    for name in ("samples", "provenance"):
        del found[name]
    return {"out": str(out), **found, "machine": result.provenance["machine"]}


def render(result: Timing, out: Path) -> None:
    """Print the terms in milliseconds."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(
        f"{result.model} on {result.provenance['machine']}, {result.units} units of one thread",
        style="bold",
    )
    table = Table(box=None, pad_edge=False)
    for name in ("in milliseconds", "median", "95% interval"):
        table.add_column(name, justify="left" if name.startswith("in") else "right")
    for name, label in TERMS.items():
        table.add_row(label, *_cells(result.terms[name]))
    console.print(table)
    console.print(
        "\nPPD, medians in milliseconds: a layer before and after the exit, the head, reading the "
        "exit, a layer of the guesses, and a match's pause",
    )
    table = Table(box=None, pad_edge=False)
    for column in ("k", "exit layer", *PPD_TERMS.values()):
        table.add_column(column, justify="right")
    for k, terms in result.by_k.items():
        for place, exit_layer in enumerate(result.exit_layers):
            row = [f"{1e3 * terms[name][place].value:.3f}" for name in PPD_TERMS]
            table.add_row(str(k), str(exit_layer), *row)
    console.print(table)
    head, layer = result.terms["head_time_s"].value, result.terms["layer_time_s"].value
    console.print(f"One head takes as long as {head / layer:.1f} layers. All samples: {out}")


def _cells(term: Timed) -> tuple[str, str]:
    return f"{1e3 * term.value:.3f}", f"[{1e3 * term.ci_low:.3f}, {1e3 * term.ci_high:.3f}]"
