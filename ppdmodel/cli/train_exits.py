"""`ppdmodel train-exits`: affine maps that make early exits guess better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .measure import (
    BatchSize,
    Device,
    Dtype,
    Limit,
    MaxNewTokens,
    Model,
    Prompts,
    Raw,
    Threads,
    available_cpus,
    chosen_prompts,
    progress_bar,
)
from .options import Json, note, print_json, whole, whole_or_none

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
            "--objective", help="ridge, or kl: descent from there.", rich_help_panel="Training"
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

    The default prompts are 144 that the default measurement does not hold. Interrupted, it keeps
    what is done; the same command goes on.

    Example: ppdmodel train-exits --model smollm2-135m --out results/exits
    """
    layers = _layers(exit_layers)
    tokens, size = whole("max_new_tokens", max_new_tokens), whole("batch_size", batch_size)
    passes, token_limit = whole("epochs", epochs), whole_or_none("max_tokens", max_tokens)
    n_threads = whole_or_none("threads", threads) or available_cpus()
    most = whole_or_none("limit", limit)
    from ..measure import (
        GenerationOptions,
        HardwareOptions,
        TrainingOptions,
        locate,
        train_exits,
        training_prompts,
    )

    chosen = chosen_prompts(prompts, most, training_prompts)
    with progress_bar() as report:
        try:
            result = train_exits(
                locate(model),
                chosen,
                out,
                TrainingOptions(objective, layers, token_limit, passes),
                GenerationOptions(tokens, size, raw),
                HardwareOptions(dtype, device, n_threads=n_threads),
                on_progress=report,
            )
        except KeyboardInterrupt:
            note(f"what is done is kept in {out}; the same command goes on from there")
            raise
    if as_json:
        print_json({"out": str(out), **_overview(result)})
    else:
        _render(result, out)


def _layers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InvalidInputError(
            f"exit_layers must be layers separated by commas; got {text!r}; write 15,20,24"
        )
    return [int(part) for part in parts]


def _overview(result: TrainedExits) -> dict[str, Any]:
    keys = ("layers", "objective", "n_tokens", "n_prompts", "n_choosing", "by_layer", "sha256")
    return {key: result.document[key] for key in keys}


def _render(result: TrainedExits, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    document = result.document
    console = Console(highlight=False, markup=False)
    console.print(
        f"{document['provenance']['model']}: exits trained on {document['n_tokens']} tokens of "
        f"{document['n_prompts']} prompts, {document['n_choosing']} of which chose the penalties",
        style="bold",
    )
    table = Table(box=None, pad_edge=False)
    for label in ("exit layer", "penalty", "k = 1", "before", "k = 5", "before"):
        table.add_column(label, justify="right")
    by_layer = document["by_layer"]
    step = max(1, len(by_layer) // 10)
    for layer, about in list(by_layer.items())[step - 1 :: step]:
        penalty = about["penalty"]
        cells = [
            f"{about[name][k - 1]:.3f}"
            for k in (1, 5)
            for name in ("validation_hits", "validation_hits_logit")
        ]
        table.add_row(layer, "none" if penalty is None else f"{penalty:g}", *cells)
    console.print(table)
    console.print(
        "These rates chose the penalties; honest ones come from prompts that were not used: "
        f"ppdmodel measure --exits {out}",
        soft_wrap=True,
    )
