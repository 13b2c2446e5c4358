"""`ppdmodel train-exits`: affine maps that raise early exits' match rates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .format import number, print_json, print_table, say
from .options import (
    BatchSize,
    Device,
    Dtype,
    Json,
    Limit,
    MaxNewTokens,
    Model,
    Prompts,
    Raw,
    Threads,
    chosen_prompts,
    thread_count,
    whole_list,
    whole_or_none,
    wholes,
)
from .progress import progress_bar, resumable

if TYPE_CHECKING:
    from ..measure import TrainedExits


def train_exits_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the exits.")],
    model: Model = "smollm2-135m",
    dtype: Dtype = "float32",
    prompts: Prompts = None,
    limit: Limit = None,
    raw: Raw = False,
    objective: Annotated[
        str,
        typer.Option(
            "--objective", help="ridge, or kl: initialized from it.", rich_help_panel="Training"
        ),
    ] = "ridge",
    exit_layers: Annotated[
        str | None,
        typer.Option(
            "--exit-layers",
            metavar="E,E",
            help="Layers to train; default all but the last.",
            rich_help_panel="Training",
        ),
    ] = None,
    max_tokens: Annotated[
        str | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            help="Train on about N tokens at most.",
            rich_help_panel="Training",
        ),
    ] = None,
    epochs: Annotated[
        str,
        typer.Option("--epochs", metavar="N", help="Passes with kl.", rich_help_panel="Training"),
    ] = "3",
    max_new_tokens: MaxNewTokens = "128",
    batch_size: BatchSize = "24",
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Fit an affine map per exit layer on the model's own text, for: ppdmodel measure --exits.

    The 144 default prompts are not in the default measurement. If interrupted, finished work is
    kept; the same command resumes.

    Example: ppdmodel train-exits --model smollm2-135m --out results/exits
    """
    layers = None if exit_layers is None else whole_list("exit_layers", exit_layers)
    numbers = wholes(max_new_tokens=max_new_tokens, batch_size=batch_size)
    passes = wholes(epochs=epochs)["epochs"]
    token_limit = whole_or_none("max_tokens", max_tokens)
    most, n_threads = whole_or_none("limit", limit), thread_count(threads)
    from ..measure import (
        GenerationOptions,
        HardwareOptions,
        TrainingOptions,
        locate,
        train_exits,
        training_prompts,
    )

    chosen = chosen_prompts(prompts, most, training_prompts)
    with progress_bar() as report, resumable("what is done is", out):
        result = train_exits(
            locate(model),
            chosen,
            out,
            TrainingOptions(objective, layers, token_limit, passes),
            GenerationOptions(**numbers, raw=raw),
            HardwareOptions(dtype, device, n_threads=n_threads),
            on_progress=report,
        )
    if as_json:
        print_json({"out": str(out), **overview(result)})
    else:
        render(result, out)


def overview(result: TrainedExits) -> dict[str, Any]:
    """Summary of a training, without its provenance."""
    keys = ("layers", "objective", "n_tokens", "n_prompts", "n_choosing", "by_layer", "sha256")
    return {key: result.document[key] for key in keys}


def render(result: TrainedExits, out: Path) -> None:
    """Print the match rates of a few layers, before and after."""
    document = result.document
    say(
        f"{document['provenance']['model']}: exits trained on {document['n_tokens']} tokens of "
        f"{document['n_prompts']} prompts, {document['n_choosing']} of which chose the penalties",
        bold=True,
    )
    by_layer = document["by_layer"]
    step = max(1, len(by_layer) // 10)
    rates = ("validation_hits", "validation_hits_logit")
    print_table(
        ("exit layer", "penalty", "k = 1", "before", "k = 5", "before"),
        [
            (
                layer,
                "none" if about["penalty"] is None else f"{about['penalty']:g}",
                *(number(about[name][k - 1]) for k in (1, 5) for name in rates),
            )
            for layer, about in list(by_layer.items())[step - 1 :: step]
        ],
    )
    say("In-sample: these prompts also chose the penalties. For unbiased rates, on other prompts:")
    typer.echo(f"ppdmodel measure --exits {out}")
