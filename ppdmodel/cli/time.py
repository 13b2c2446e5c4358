"""`ppdmodel time`: what layers, heads, starts and promotions cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..results.timing import Timed, Timing
from . import options
from .format import answer, bounds, echo, note, number, print_table, say
from .options import option, whole_option

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
    out: Annotated[Path, option("--out", "File for the timing.", "FILE")],
    model: options.Model = options.DEFAULT_MODEL,
    config: options.Config = None,
    random_weights: options.RandomWeights = False,
    dtype: options.Dtype = "float32",
    exits: options.Exits = None,
    k: Annotated[str, option("--k", "Numbers of guesses, with commas.", "K")] = "1,2,3,5,8",
    rounds: Annotated[int, whole_option("--rounds", "Repetitions, at least 4.", "N")] = 8,
    units: options.Units = 2,
    device: options.UnitsDevice = "cpu",
    as_json: options.Json = False,
) -> None:
    """Profile the parts of a decoding step, in end-to-end decoding.

    With --random-weights the costs of a shape whose weights are not at hand.

    Example: ppdmodel time --model smollm2-135m --out results/timing.json
    """
    ks = options.whole_list("k", k)
    from ..pipeline import Workers, time_model
    from ..pipeline.worker_pool import placements
    from ..results.files import check_writable
    from ..results.io import save

    check_writable(out)
    placements(units, device=device)
    source, trained = options.model_or_shape(model, config, random_weights, exits)
    note("loading the model ...")
    result = time_model(
        options.loaded_model(source, dtype),
        ks=ks,
        rounds=rounds,
        workers=Workers(units, device),
        exits=trained,
        on_progress=lambda share: note(f"{share:.0%} done"),
    )
    save(result, out)
    answer(as_json, overview(result, out), render, result, out)


def overview(result: Timing, out: Path) -> dict[str, Any]:
    """The terms, without their samples."""
    from dataclasses import asdict

    found = asdict(result)
    for name in ("samples", "provenance"):
        del found[name]
    about = {"machine": result.machine, "random_weights": result.has_random_weights}
    return {"out": str(out), **found, **about}


def render(result: Timing, out: Path) -> None:
    """Print the terms in milliseconds."""
    say(
        f"{result.model} on {result.provenance['machine']}, {result.units} units of one thread",
        bold=True,
    )
    if result.has_random_weights:
        say("RANDOM WEIGHTS: times of this shape; match rates of a model do not belong to them.")
    print_table(
        ("in milliseconds", "median", "95% interval"),
        [(label, *_cells(result.terms[name])) for name, label in TERMS.items()],
        left=(0,),
    )
    say(
        "\nPPD, medians in milliseconds: a layer before and after the exit, the head, reading the "
        "exit, a layer of the guesses, and a match's pause"
    )
    print_table(
        ("k", "exit layer", *PPD_TERMS.values()),
        [
            (k, exit_layer, *(number(1e3 * terms[name][place].value) for name in PPD_TERMS))
            for k, terms in result.by_k.items()
            for place, exit_layer in enumerate(result.exit_layers)
        ],
    )
    head, layer = result.terms["head_time_s"].value, result.terms["layer_time_s"].value
    echo(f"One head takes as long as {head / layer:.1f} layers. All samples: {out}")


def _cells(term: Timed) -> tuple[str, str]:
    return number(1e3 * term.value), bounds(1e3 * term.ci_low, 1e3 * term.ci_high)
