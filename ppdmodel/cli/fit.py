"""`ppdmodel fit`: fit a calibration to a measurement."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from ..results.calibration import Calibration
from ..results.intervals import Interval
from . import options
from .format import answer, echo, number, percent, print_table, say
from .options import option, whole_option
from .progress import progress_bar


def fit_command(
    out: Annotated[Path, option("--out", "Calibration to write.", "FILE")],
    measurements: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR...", help="Measurement folders of one model, pooled."),
    ] = None,
    table: Annotated[
        Path | None,
        option(
            "--table", "Or your own counts: exit_layer,k,hits,n,prompt_id; with --layers.", "CSV"
        ),
    ] = None,
    layers: options.Layers = None,
    k_max: Annotated[
        int | None, whole_option("--k-max", "Largest k to keep hits for; 32.", "K")
    ] = None,
    resamples: Annotated[
        int, whole_option("--resamples", "Bootstrap resamples of the prompts; >= 400.", "N")
    ] = 1000,
    seed: Annotated[
        int, option("--seed", "Seed of the bootstrap.", callback=options.checked_seed)
    ] = 0,
    timing: options.TimingFile = None,
    family: Annotated[
        str | None, option("--family", "Curve family; default: best of three.", "NAME")
    ] = None,
    coupled: Annotated[
        bool, option("--coupled", "Sampled text: guesses with the same noise.")
    ] = False,
    prompt_lookup: Annotated[
        int | None,
        whole_option(
            "--prompt-lookup",
            "As decode: one guess from n-grams of the text, at most N tokens.",
            "N",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Fit p_correct over relative depth and k, with intervals over prompts.

    Example: ppdmodel fit results/full --out results/full.json
    """
    from ..fitting.calibrate import fit
    from ..fitting.counts_file import fit_table
    from ..results.files import check_writable, json_ready
    from ..results.io import load_timing, save

    folders = measurements or []
    if (table is None) == (not folders):
        raise InvalidInputError(
            f"fit needs counts; got {'none' if table is None else 'two kinds'}; give a measurement "
            "folder, or --table"
        )
    check_writable(out)
    times = load_timing(timing) if timing else None
    common: Any = {"timing": times, "family": family, "seed": seed, "resamples": resamples}
    if table is None:
        if layers is not None:
            raise InvalidInputError(
                f"layers must be left out for a measurement; got {layers}; it has its own"
            )
        found = [options.measurement_in(folder, "fit") for folder in folders]
        # noise that is coupled to the text changes which guesses are made
        if prompt_lookup and coupled:
            raise InvalidInputError(
                "prompt lookup needs recorded guesses, which are without coupled noise; got "
                "--coupled; leave out one of the two"
            )
        guesses = None if coupled else list(map(options.guesses_beside, folders, found))
        if coupled:
            found = [measurement.coupled() for measurement in found]
        with progress_bar(stays=False) as report:
            result = fit(
                found,
                guesses=guesses,
                k_max=k_max,
                ngrams=prompt_lookup or 0,
                on_progress=report,
                **common,
            )
    else:
        options.refuse(
            "a measurement folder",
            k_max=k_max,
            coupled=coupled or None,
            prompt_lookup=prompt_lookup,
        )
        if layers is None:
            raise InvalidInputError("a table needs the model's layers; got none; give --layers D")
        with progress_bar(stays=False) as report:
            result = fit_table(table, layers, on_progress=report, **common)
    save(result, out)
    curve = json_ready(asdict(result.curve))
    document = {"out": str(out), "model": result.model, "curve": curve}
    answer(as_json, document, render, result, out)


def render(result: Calibration, out: Path) -> None:
    """Print the parameters and where the surface fits worst."""
    curve = result.curve
    say(
        f"{result.title}: {curve.family} over relative depth and k "
        f"({int(result.tokens.sum())} tokens, {len(result.tokens)} prompts)",
        bold=True,
    )
    print_table(
        ("parameter", "estimate", "std. error", "95% interval"),
        [
            _parameter(name, value, curve.standard_errors.get(name))
            for name, value in curve.parameters.items()
        ],
        left=(0,),
    )
    for candidate in curve.candidates[1:]:
        say(
            f"{candidate.family}: behind by {candidate.behind:.4f} (standard error "
            f"{candidate.behind_se:.4f}) in log-likelihood per token and cell, on prompts that "
            "were not fitted"
        )
    if not curve.converged:
        say("The search for the best parameters did not converge.")
    say(
        f"It misses the measured rates by {curve.rms_residual:.3f} (root mean square), at worst by "
        f"{curve.largest_residual:+.3f} at layer {curve.largest_residual_layer}, "
        f"k = {curve.largest_residual_k}. Decisions use the measured rates, not this surface."
    )
    if result.reliability:
        first, last = result.reliability[0].exit_layer, result.reliability[-1].exit_layer
        raw, held_out, worst, started_raw, started = (
            percent(max(getattr(one, name) or 0 for one in result.reliability), 1)
            for name in ("first_raw", "first", "first_worst", "started_raw", "started")
        )
        say(
            f"The first guess's probability at exit layers {first} to {last} is off by up to "
            f"{raw}, calibrated by up to {held_out} (in the worst tenth by {worst}); that of "
            f"guesses of at least {result.reliability[0].threshold:.2f} by up to {started_raw}, "
            f"calibrated by up to {started} (held-out prompts). Each exit's scale and shift are in "
            "the file."
        )
    echo(f"Written: {out}")


def _parameter(name: str, value: Interval, error: float | None) -> tuple[str, str, str, str]:
    if math.isnan(value.ci_low):
        return name, number(value.value), number(None), "not determined"
    ends = f"{number(value.ci_low)} … {number(value.ci_high)}"
    return name, number(value.value), number(error), ends
