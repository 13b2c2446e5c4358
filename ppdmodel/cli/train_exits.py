"""`ppdmodel train-exits`: affine maps that raise early exits' match rates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from . import options
from .format import answer, echo, number, print_table, say
from .options import option, whole_option
from .progress import progress_bar, resumable

if TYPE_CHECKING:
    from ..measure import TrainedExits


def train_exits_command(
    out: Annotated[Path, option("--out", "Folder for the exits.", "DIR")],
    model: options.Model = "smollm2-135m",
    dtype: options.Dtype = "float32",
    prompts: options.Prompts = None,
    limit: options.Limit = None,
    raw: options.Raw = False,
    system: options.System = None,
    template_arg: options.TemplateArgs = None,
    objective: Annotated[
        str, option("--objective", "ridge, or kl: initialized from it.", panel="Training")
    ] = "ridge",
    exit_layers: Annotated[
        str | None,
        option("--exit-layers", "Layers to train; default all but the last.", "E,E", "Training"),
    ] = None,
    max_tokens: Annotated[
        int | None,
        whole_option("--max-tokens", "Train on about N tokens at most.", "N", "Training"),
    ] = None,
    epochs: Annotated[int, whole_option("--epochs", "Passes with kl.", "N", "Training")] = 3,
    max_new_tokens: options.MaxNewTokens = 128,
    batch_size: options.BatchSize = 24,
    threads: options.Threads = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Fit an affine map per exit layer on the model's own text, for: ppdmodel measure --exits.

    The 144 default prompts are not in the default measurement. If interrupted, finished work is
    kept; the same command resumes.

    Example: ppdmodel train-exits --model smollm2-135m --out results/exits
    """
    layers = None if exit_layers is None else options.whole_list("exit_layers", exit_layers)
    from .. import measure

    generation = measure.GenerationOptions(
        max_new_tokens,
        batch_size,
        raw=raw,
        system=system,
        template_args=options.template_args(template_arg),
    )
    chosen = options.chosen_prompts(prompts, limit, measure.training_prompts, all_turns=False)
    with progress_bar() as report, resumable("what is done is", out):
        result = measure.train_exits(
            measure.locate(model),
            chosen,
            out,
            measure.TrainingOptions(objective, layers, max_tokens, epochs),
            generation,
            measure.HardwareOptions(dtype, device, n_threads=options.thread_count(threads)),
            on_progress=report,
        )
    answer(as_json, {"out": str(out), **overview(result)}, render, result, out)


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
    echo(f"ppdmodel measure --exits {out}")
