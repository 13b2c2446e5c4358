"""`ppdmodel measure`: match rates of every exit layer and every k, on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..results.measurement import Measurement, shortlist_of
from . import options
from .format import answer, echo, number, print_table, say
from .options import DECODING, MACHINE, option
from .progress import is_first_process, progress_bar, resumable

#: values of k in the table that is printed
SHOWN_K = (1, 3, 5, 10)
#: counts of a text that was compared with Transformers' `generate`
REPEATED = ("n_tokens", "n_near_ties")


def measure_command(
    out: Annotated[Path, option("--out", "Folder for the measurement.", "DIR")],
    model: options.Model = "smollm2-135m",
    dtype: options.Dtype = "float32",
    exits: options.Exits = None,
    prompts: options.Prompts = None,
    limit: options.Limit = None,
    raw: options.Raw = False,
    system: options.System = None,
    template_arg: options.TemplateArgs = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.SampleSeed = None,
    no_guesses: Annotated[
        bool, option("--no-guesses", "Keep no guesses.parquet.", panel=DECODING)
    ] = False,
    batch_size: options.BatchSize = 36,
    threads: options.Threads = None,
    device: options.Device = None,
    device_map: Annotated[
        str | None, option("--device-map", "auto spreads the model over devices.", panel=MACHINE)
    ] = None,
    shard: Annotated[
        str | None, option("--shard", "Do part i of N; join with: ppdmodel merge.", "i/N", MACHINE)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure p_correct for every exit layer and every k on the model's own text.

    If interrupted, finished prompts are kept; the same command resumes.

    Over several devices: accelerate launch -m ppdmodel measure ...

    Example: ppdmodel measure --model smollm2-135m --out results/full
    """
    sampling = options.sampled(temperature, top_p, seed)
    from ..measure import GenerationOptions, HardwareOptions, Shard, default_prompts, measure

    generation = GenerationOptions(
        max_new_tokens,
        batch_size,
        sampling,
        raw=raw,
        system=system,
        template_args=options.template_args(template_arg),
    )
    part = Shard.parse(shard) if shard is not None else None
    chosen = options.chosen_prompts(prompts, limit, default_prompts)
    source, trained = options.model_with_exits(model, exits)
    hardware = HardwareOptions(dtype, device, device_map, options.thread_count(threads))
    with progress_bar() as report, resumable("finished prompts are", out):
        result = measure(
            source,
            chosen,
            out,
            generation,
            hardware,
            exits=trained,
            guesses=not no_guesses,
            shard=part,
            on_progress=report,
        )
    if not is_first_process():
        return
    answer(as_json, overview(result, out), render, result, out)


def overview(result: Measurement, out: Path) -> dict[str, Any]:
    """Summary of a measurement, without its tables."""
    return {
        "out": str(out),
        "model": result.provenance["model"],
        "layers": result.layers,
        "n_tokens": result.n_tokens,
        "n_prompts": len(result.prompt_ids),
        "complete": result.complete,
        "exit_kind": result.provenance["exit_kind"],
        "shortlist": shortlist_of(result.provenance),
        "decoding": result.provenance["decoding"],
        "n_near_ties": len(result.near_ties),
        "n_ties": len(result.ties),
        "largest_tie_margin": max((tie["margin"] for tie in result.ties), default=None),
        "repeated": repeated(result),
    }


def repeated(result: Measurement) -> dict[str, int]:
    """What was compared with Transformers' `generate`, each text alone: all differ at near ties."""
    counts = {name: sum(text[name] for text in result.repeated) for name in REPEATED}
    return {"n_texts": len(result.repeated), **counts}


def render(result: Measurement, out: Path) -> None:
    """Print the match rates of a few layers, and the path of all."""
    tokens, about = result.n_tokens, result.provenance
    listed = shortlist_of(about)
    kind = f"{about['exit_kind']} exits" + (f" over {listed} tokens" if listed else "")
    tables = [result.hits_by_prompt(10).sum(axis=0)]
    heads = ["exit layer", *(f"k = {k}" for k in SHOWN_K)]
    if result.coupled_rank is not None:
        tables.append(result.coupled().hits_by_prompt(10).sum(axis=0))
        heads += [f"coupled\nk = {k}" for k in SHOWN_K]
    say(
        f"{about['model']}: p_correct by exit layer, {kind}, "
        f"{about['decoding']} text ({tokens} tokens, {len(result.prompt_ids)} prompts)",
        bold=True,
    )
    step = max(1, result.layers // 10)
    print_table(
        heads,
        [
            (layer, *(number(hits[layer - 1, k - 1] / tokens) for hits in tables for k in SHOWN_K))
            for layer in range(step, result.layers + 1, step)
        ],
    )
    if not result.complete:
        say(f"{len(result.prompt_ids)} of {about['n_prompts']} prompts")
    if result.ties:
        worst = max(tie["margin"] for tie in result.ties)
        say(f"{len(result.ties)} ties at the last layer, margin at most {worst:.2g}")
    if result.near_ties:
        closest = min(tie["margin"] for tie in result.near_ties)
        count = len(result.near_ties)
        say(
            f"{count} near-tie{'s' if count > 1 else ''} (smallest logit margin {closest:.1g}): "
            "another batch size or machine may pick the other token"
        )
    if result.repeated:
        again = repeated(result)
        say(
            f"{again['n_tokens']} tokens of {again['n_texts']} texts made again by Transformers' "
            f"generate, each text alone: {again['n_near_ties'] or 'none'} differ"
            + (", all at near ties" if again["n_near_ties"] else "")
        )
    echo(f"Every layer, with intervals: {out}")
