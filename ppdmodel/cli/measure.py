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
from ..results import Measurement
from .options import Json, note, print_json, whole, whole_or_none

if TYPE_CHECKING:
    from ..measure.run import Progress


def measure_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the measurement.")],
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="Known name, GGUF, folder or hub id.")
    ] = "smollm2-135m",
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="P", help="JSONL with a text per line [default: ours]."),
    ] = None,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="N", help="Only the first N prompts.")
    ] = None,
    max_new_tokens: Annotated[
        str, typer.Option("--max-new-tokens", metavar="N", help="Most tokens per prompt.")
    ] = "128",
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="N", help="Prompts decoded together.")
    ] = "16",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16 or float16.")
    ] = "float32",
    threads: Annotated[
        str | None, typer.Option("--threads", metavar="N", help="CPU threads [default: all].")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Give the text as it is, no chat template.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure p_correct for every exit layer and every k on the model's own greedy text.

    Interrupted, it keeps the finished prompts; the same command goes on where it was.

    Example: ppdmodel measure --model smollm2-135m --out results/full
    """
    numbers = {
        "max_new_tokens": whole("max_new_tokens", max_new_tokens),
        "batch_size": whole("batch_size", batch_size),
        "n_threads": whole_or_none("threads", threads) or available_cpus(),
    }
    most = whole_or_none("limit", limit)
    from ..measure import default_prompts, locate, measure, read_prompts

    chosen = (read_prompts(prompts) if prompts else default_prompts())[:most]
    if most and len(chosen) < most:
        raise InvalidInputError(
            f"limit must not exceed the prompts; got {most}; there are {len(chosen)}"
        )
    source = locate(model)
    with progress_bar() as report:
        try:
            result = measure(
                source, chosen, out, dtype=dtype, raw=raw, on_progress=report, **numbers
            )
        except KeyboardInterrupt:
            note(f"finished prompts are kept in {out}; the same command goes on from there")
            raise
    if as_json:
        print_json(overview(result, out))
    else:
        render(result, out)


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
        "n_ties": len(result.ties),
        "largest_tie_margin": max((tie["margin"] for tie in result.ties), default=None),
    }


def render(result: Measurement, out: Path) -> None:
    """Print the match rates of a few layers, and where the rest is."""
    from rich.console import Console
    from rich.table import Table

    tokens = result.n_tokens
    hits = result.hits_by_prompt(10).sum(axis=0)
    console = Console(highlight=False, markup=False)
    console.print(
        f"{result.provenance['model']}: p_correct by exit layer "
        f"({tokens} tokens, {len(result.prompt_ids)} prompts)",
        style="bold",
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("exit layer", justify="right")
    for k in (1, 3, 5, 10):
        table.add_column(f"k = {k}", justify="right")
    step = max(1, result.layers // 10)
    for layer in range(step, result.layers + 1, step):
        table.add_row(
            str(layer), *(f"{hits[layer - 1, k - 1] / tokens:.3f}" for k in (1, 3, 5, 10))
        )
    console.print(table)
    if result.ties:
        worst = max(tie["margin"] for tie in result.ties)
        console.print(f"{len(result.ties)} ties at the last layer, margin at most {worst:.2g}")
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
