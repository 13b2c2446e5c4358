"""`ppdmodel train-exits`: affine maps that raise early exits' match rates."""

from __future__ import annotations

from collections.abc import Mapping
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
        option(
            "--exit-layers",
            "Layers to train; default all but the last. none, with --vocabulary: logit exits.",
            "E,E",
            "Training",
        ),
    ] = None,
    vocabulary: Annotated[
        int | None,
        whole_option(
            "--vocabulary",
            "Exits guess only the N most frequent tokens of the text; default all.",
            "N",
            "Training",
        ),
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

    With --vocabulary reading an exit takes a fraction of the time; text stays exact.

    The 144 default prompts are not in the default measurement. If interrupted, finished work is
    kept; the same command resumes.

    Example: ppdmodel train-exits --model smollm2-135m --out results/exits
    """
    layers: tuple[int, ...] | None = None
    if exit_layers is not None:
        none = exit_layers == "none"
        layers = () if none else options.whole_list("exit_layers", exit_layers)
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
            measure.TrainingOptions(objective, layers, max_tokens, epochs, vocabulary),
            generation,
            measure.HardwareOptions(dtype, device, n_threads=options.thread_count(threads)),
            on_progress=report,
        )
    answer(as_json, {"out": str(out), **overview(result)}, render, result, out)


def overview(result: TrainedExits) -> dict[str, Any]:
    """Summary of a training, without its provenance."""
    keys = ("layers", "objective", "n_tokens", "n_prompts", "n_choosing", "by_layer", "sha256")
    listed = result.document.get("shortlist")
    return {key: result.document[key] for key in keys} | {"shortlist": listed}


def render(result: TrainedExits, out: Path) -> None:
    """Print the match rates of a few layers, before and after."""
    document, by_layer = result.document, result.document["by_layer"]
    text = f"{document['n_tokens']} tokens of {document['n_prompts']} prompts"
    say(
        f"{document['provenance']['model']}: "
        + (
            f"exits trained on {text}, {document['n_choosing']} of which chose the penalties"
            if by_layer
            else f"logit exits, with a shortlist from {text}"
        ),
        bold=True,
    )
    listed = document.get("shortlist")
    if listed:
        others = listed["n"] - listed["n_in_text"]
        say(
            f"Exits guess {listed['n']} tokens, {listed['text_share']:.1%} of the text"
            + (f"; {others} of them, with the smallest ids, are not in it" if others else "")
        )
    if by_layer:
        render_layers(by_layer)
    what = "these prompts also chose the penalties" if by_layer else "the list is of these prompts"
    say(f"In-sample: {what}. For unbiased rates, on other prompts:")
    echo(f"ppdmodel measure --exits {out}")


def render_layers(by_layer: Mapping[str, Any]) -> None:
    """Print the match rates of about ten layers."""
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
