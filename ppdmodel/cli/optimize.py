"""`ppdmodel optimize`: the best setting under compute budgets, and how sure that is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from ..results import Calibration, Choice, Decision, Interval
from .options import Json, print_json, whole, whole_or_none


def optimize_command(
    calibration: Annotated[Path, typer.Argument(metavar="CAL", help="A calibration file.")],
    max_compute: Annotated[
        list[float] | None,
        typer.Option(
            "--max-compute", metavar="C", help="Compute budget, × plain decoding; may repeat."
        ),
    ] = None,
    max_depth: Annotated[
        str, typer.Option("--max-depth", metavar="N", help="Try depths 1...N.")
    ] = "1",
    max_units: Annotated[
        str | None, typer.Option("--max-units", metavar="U", help="Most processes at once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the best exit layer, k and depth of a measured model under compute budgets.

    Example: ppdmodel optimize results/full.json --max-compute 2
    """
    depth, units = whole("max_depth", max_depth), whole_or_none("max_units", max_units)
    from ..files import json_ready
    from ..io import load_rates
    from ..optimization import DEFAULT_BUDGETS, optimize

    source = load_rates(calibration)
    if not isinstance(source, Calibration):
        raise InvalidInputError(
            f"optimize must be given a calibration; got {calibration}; make one with: ppdmodel fit"
        )
    decision = optimize(
        source, max_compute=max_compute or DEFAULT_BUDGETS, max_depth=depth, max_units=units
    )
    if as_json:
        print_json(json_ready(asdict(decision)))
    else:
        render(decision, source.title)


def render(decision: Decision, title: str) -> None:
    """Print a table of the choices, what they come to in words, and what is left out."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(
        f"{title}: {decision.layers} layers, the best of {decision.settings} settings",
        style="bold",
    )
    console.print(f"({decision.n_tokens} tokens, {decision.n_prompts} prompts)\n")
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in (
        "compute",
        "exit layer",
        "k",
        "depth",
        "p_correct",
        "latency",
        "held out",
        "takes",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for choice in decision.choices:
        table.add_row(f"≤ {choice.max_compute:g}×", *_cells(choice))
    console.print(table)
    console.print(
        "\nLatency and compute are ratios to plain decoding; intervals are 95%, by resampling "
        "prompts. Held out: the latency of settings chosen on four fifths of the prompts, on the "
        "rest.\n"
    )
    for choice in decision.choices:
        console.print(sentence(choice, decision.layers))
    for line in caveats(decision):
        console.print(line)


def _cells(choice: Choice) -> list[str]:
    setting = choice.setting
    if setting is None:
        return ["–"] * 7
    held_out = choice.held_out_latency
    return [
        str(setting.exit_layer),
        str(setting.k),
        str(setting.depth),
        f"{setting.p_correct.value:.3f}",
        _interval(setting.normalized_latency),
        "–" if held_out is None else f"{held_out.value:.3f}",
        f"{setting.normalized_compute.value:.2f}×",
    ]


def _interval(value: Interval) -> str:
    return f"{value.value:.3f} [{value.ci_low:.3f}, {value.ci_high:.3f}]"


def sentence(choice: Choice, layers: int) -> str:
    """One choice in plain words."""
    setting = choice.setting
    if setting is None:
        return f"At compute ≤ {choice.max_compute:g}×, no setting is faster than plain decoding."
    latency = setting.normalized_latency
    saved, least, most = (100 * (1 - x) for x in (latency.value, latency.ci_high, latency.ci_low))
    words = (
        f"At compute ≤ {choice.max_compute:g}×, exit after layer {setting.exit_layer} with "
        f"k = {setting.k} saves {layers * saved / 100:.1f} of {layers} layer times per token, "
        f"{saved:.1f}% [{least:.1f}, {most:.1f}]"
    )
    if choice.chosen_share is not None:
        words += f"; it is the best in {100 * choice.chosen_share:.0f}% of the resamples"
    if choice.runner_up is not None:
        words += f", then layer {choice.runner_up.exit_layer} with k = {choice.runner_up.k}"
    return words + "."


def caveats(decision: Decision) -> list[str]:
    """What these numbers leave out."""
    lines = [
        "\nIn layer units: heads, the exit's own head, starting and promoting sub-processes and "
        "units that slow each other down are not counted, so a real run saves less."
    ]
    settings = [choice.setting for choice in decision.choices if choice.setting]
    if any((s.depth + 1) * s.exit_layer < decision.layers for s in settings):
        lines.append(
            "A chosen exit lies so early that its latency also assumes independent matches."
        )
    return lines
