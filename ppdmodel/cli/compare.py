"""`ppdmodel compare`: PPD and other methods at equal compute and units."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..decide.outcomes import Comparison, Method
from .format import interval, number, print_json, print_table, say
from .options import Json, TimingFile, guesses_beside, option, rates_in, refuse, whole_option
from .progress import progress_bar


def compare_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="RESULT", help="A measurement folder, or its calibration file."),
    ],
    max_compute: Annotated[
        float, option("--max-compute", "Compute budget, × plain decoding.", "C")
    ] = 2.0,
    max_units: Annotated[
        int | None, whole_option("--max-units", "Most processes at once.", "U")
    ] = None,
    acceptance_rate: Annotated[
        float | None,
        option("--acceptance-rate", "Of a draft model; adds speculative decoding.", "A"),
    ] = None,
    draft_time: Annotated[
        float | None, option("--draft-time", "Draft step / model step; default 0.1.", "C")
    ] = None,
    efficiency: Annotated[
        float, option("--efficiency", "Of tensor parallelism; 1 is ideal.", "N")
    ] = 1.0,
    link_time: Annotated[
        float, option("--link-time", "Latency of a small message, in layer times.", "L")
    ] = 0.0,
    timing: TimingFile = None,
    as_json: Json = False,
) -> None:
    """Compare the best PPD with other methods at the same compute and units.

    Rates are counted on recorded tokens; assumed values are labelled ideal.

    Example: ppdmodel compare results/full --max-compute 2 --max-units 4
    """
    if acceptance_rate is None:
        refuse("--acceptance-rate", draft_time=draft_time)
    from ..decide.compare import compare
    from ..results.io import load_timing

    rates = rates_in(source)
    guesses = guesses_beside(source, rates)
    times = load_timing(timing) if timing else None
    with progress_bar(stays=False) as report:
        result = compare(
            rates,
            guesses=guesses,
            timing=times,
            max_compute=max_compute,
            max_units=max_units,
            acceptance_rate=acceptance_rate,
            draft_time=0.1 if draft_time is None else draft_time,
            efficiency=efficiency,
            link_time=link_time,
            on_progress=report,
        )
    if as_json:
        print_json(result.to_json())
    else:
        render(result)


def render(result: Comparison) -> None:
    """Print the methods, fastest first, and a summary."""
    limit = "" if result.max_units is None else f" and {result.max_units} units"
    say(
        f"{result.title}: {result.layers} layers, within {result.max_compute:g}× compute{limit}",
        bold=True,
    )
    say(f"({result.n_tokens} tokens, {result.n_prompts} prompts)\n")
    methods = sorted(result.methods, key=latency)
    print_table(
        ("method", "latency", "held out", "compute", "units", "basis"),
        [
            (
                method.name,
                interval(method.latency),
                number(method.held_out.value if method.held_out else None),
                f"{method.compute.value:.2f}×",
                method.units,
                method.basis,
            )
            for method in methods
        ],
        left=(0, 1, 5),
        below=[method.setting for method in methods],
    )
    timed = any("timed" in method.name for method in methods)
    say(
        "\nLatency is a ratio to plain decoding on one unit, in layer times: heads and overheads "
        "are left out, but in the timed rows. Intervals are 95%: t intervals from resamples of the "
        f"prompts{', and of the timing in timed rows' if timed else ''}, each choosing again. Held "
        "out: settings chosen on four fifths of the prompts, on the rest. Measured: counted on "
        "recorded tokens, or timed; fitted: the calibrated times; ideal: assumed."
    )
    for line in result.left_out:
        say(f"Left out: {line}.")
    say(sentence(result))


def latency(method: Method) -> float:
    """The sort key of methods: held-out latency if there is one, else in-sample."""
    return (method.held_out or method.latency).value


def sentence(result: Comparison) -> str:
    """Which method is the fastest, and where PPD stands."""
    ordered = sorted(result.methods, key=latency)
    in_layers = [m for m in ordered if "timed" not in m.name]
    first = in_layers[0]
    words = (
        f"In layer times {_named(first)} ({first.basis}) is the fastest: {latency(first):.3f} of "
        "plain decoding"
    )
    counted = [m for m in in_layers if m.basis == "measured"]
    if first.basis != "measured" and latency(counted[0]) < 1:
        words += f"; of those that are measured, {_named(counted[0])}: {latency(counted[0]):.3f}"
    ppd = next((m for m in counted if m.name.startswith("PPD")), None)
    if ppd is not None and ppd not in (first, counted[0]):
        words += f"; the best PPD that is measured ({_named(ppd)}) takes {latency(ppd):.3f}"
    timed = [m for m in ordered if "timed" in m.name]
    if timed:
        fastest = timed[0]
        words += (
            f". In measured times the fastest is {_named(fastest)}, {latency(fastest):.3f}"
            if latency(fastest) < 1
            else ". In measured times nothing is faster than plain decoding"
        )
    return words + "."


def _named(method: Method) -> str:
    return f"{method.name}, {method.setting}" if method.setting else method.name
