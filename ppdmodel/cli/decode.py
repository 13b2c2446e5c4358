"""`ppdmodel decode`: real PPD on one prompt, its prediction, and plain decoding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InvalidInputError, visible
from . import options
from .format import answer, note, print_table, say
from .options import DECODING, MACHINE, option, whole_option

if TYPE_CHECKING:
    from ..pipeline.decoding import Decoded, Speed

PREDICTION = "The prediction"


def decode_command(
    prompt: Annotated[str, option("--prompt", "The prompt.", "TEXT")],
    exit_layer: Annotated[int, whole_option("--exit-layer", "Layer read for guesses.", "E")],
    model: options.Model = "smollm2-135m",
    dtype: options.Dtype = "float32",
    exits: options.Exits = None,
    k: Annotated[int, whole_option("--k", "Guesses, hence sub-processes.", "K")] = 1,
    raw: options.Raw = False,
    system: options.System = None,
    template_arg: options.TemplateArgs = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.SampleSeed = None,
    row_by_row: Annotated[
        bool,
        option(
            "--row-by-row",
            "One guess at a time: bitwise equal to plain decoding, slower.",
            panel=DECODING,
        ),
    ] = False,
    calibration: Annotated[
        Path | None, option("--calibration", "Match rates for a prediction.", "FILE", PREDICTION)
    ] = None,
    timing: Annotated[
        Path | None,
        option(
            "--timing",
            "Times from ppdmodel time, if not in the calibration; predicts seconds.",
            "FILE",
            PREDICTION,
        ),
    ] = None,
    units: options.Units = 2,
    device: options.UnitsDevice = "cpu",
    trace: Annotated[
        Path | None, option("--trace", "Trace of all units, for ui.perfetto.dev.", "FILE", MACHINE)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Decode a prompt by real PPD and compare its time with plain decoding.

    Example: ppdmodel decode --exit-layer 24 --k 3 --prompt "Why is the sky blue?"
    """
    sampling = options.sampled(temperature, top_p, seed)
    if not prompt.strip():
        raise InvalidInputError("the prompt must have text; got none; give --prompt TEXT")
    from ..measure import PromptFormat, load_model
    from ..pipeline import PpdSetting, Workers, decode
    from ..pipeline.devices import machine
    from ..pipeline.timing import model_provenance
    from ..pipeline.worker_pool import placements
    from ..results.compatibility import check_runs
    from ..results.files import check_writable
    from ..results.io import load_calibration, load_timing

    text_format = PromptFormat(
        raw=raw, system=system, template_args=options.template_args(template_arg)
    )
    names = [place.device for place in placements(units, device=device)]
    rates = load_calibration(calibration) if calibration else None
    times = load_timing(timing) if timing else getattr(rates, "timing", None)
    if trace is not None:
        check_writable(trace)
    if times and not rates:
        note("a predicted time needs match rates too: add --calibration FILE")
    source, trained = options.model_with_exits(model, exits)
    running = {**model_provenance(source, dtype, trained), "machine": machine(names)}
    for warning in check_runs(running, rates, times):
        note(warning)
    loaded = load_model(source, dtype)
    said: list[int] = []
    printed = 0

    def say(token_id: int) -> None:
        """Print what no further token can change; a character may take several."""
        nonlocal printed
        said.append(token_id)
        text = loaded.decode(said)
        if not text.endswith("\ufffd"):
            sys.stdout.write("\n".join(map(visible, text[printed:].split("\n"))))
            sys.stdout.flush()
            printed = len(text)

    result = decode(
        loaded,
        prompt,
        PpdSetting(exit_layer, k, row_by_row),
        max_new_tokens=max_new_tokens,
        workers=Workers(units, device),
        exits=trained,
        prompt_format=text_format,
        sampling=sampling,
        calibration=rates,
        timing=times,
        trace=trace,
        on_token=None if as_json else say,
    )
    answer(as_json, overview(result), render, result, trace, row_by_row)


def overview(result: Decoded) -> dict[str, Any]:
    """The result as one JSON document."""
    from dataclasses import asdict

    def mean(speed: Speed | None) -> float | None:
        return speed.mean_s if speed else None

    return {
        "token_ids": list(result.token_ids),
        "text": result.text,
        "match_rate": result.match_rate,
        "right_rate": result.right_rate,
        "n_trials": result.n_trials,
        "n_matched": result.n_matched,
        "n_late": result.n_late,
        "n_wrong": result.n_wrong,
        "latency_per_token_s": mean(result.latency),
        "predicted_match_rate": result.predicted_match_rate,
        "predicted_right_rate": result.predicted_right_rate,
        "predicted_latency_per_token_s": result.predicted_latency_per_token_s,
        "greedy_latency_per_token_s": mean(result.greedy),
        "greedy_same_units_latency_per_token_s": mean(result.greedy_same_units),
        "latency_median_s": result.latency.median_s if result.latency else None,
        "latency_p95_s": result.latency.p95_s if result.latency else None,
        "difference": asdict(result.difference) if result.difference else None,
    }


def render(result: Decoded, trace: Path | None, row_by_row: bool) -> None:
    """Print the numbers below the text."""
    say("\n")
    rows = []
    for label, speed in (
        ("PPD", result.latency),
        ("plain, on one unit", result.greedy),
        ("plain, split over the same units", result.greedy_same_units),
    ):
        if speed:
            times = (speed.mean_s, speed.median_s, speed.p95_s)
            rows.append((label, *(f"{1e3 * seconds:.1f}" for seconds in times)))
    if result.predicted_latency_per_token_s is not None:
        predicted_ms = f"{1e3 * result.predicted_latency_per_token_s:.1f}"
        rows.append(("PPD, as predicted", predicted_ms, "", ""))
    print_table(("ms per token", "mean", "median", "95th"), rows, left=(0,))
    if result.n_trials:
        say(
            f"guesses of {result.n_trials} tokens: {result.n_matched} right and in time, "
            f"{result.n_late} right but late, {result.n_wrong} wrong"
        )
        for label, rate, predicted in (
            ("match rate (right and in time)", result.match_rate, result.predicted_match_rate),
            ("right guesses, late ones too", result.right_rate, result.predicted_right_rate),
        ):
            beside = "" if predicted is None else f"; predicted {predicted:.3f}"
            say(f"{label} {rate:.3f}{beside}")
    if result.difference is None:
        say(f"{len(result.token_ids)} tokens, the same as plain decoding's")
    else:
        found = result.difference
        say(
            f"the token at {found.position} differs from plain decoding's, which had a margin of "
            f"{found.margin:.2g} in {found.dtype}"
            + ("" if row_by_row else "; --row-by-row rules that out")
        )
    if trace is not None:
        say(f"trace, for ui.perfetto.dev: {trace}")
    if result.latency and result.greedy and result.greedy_same_units:
        say(_verdict(result.latency, result.greedy, result.greedy_same_units))


def _verdict(ppd: Speed, greedy: Speed, split: Speed) -> str:
    def change(other: Speed) -> str:
        saved = 1 - other.mean_s / greedy.mean_s
        return f"takes {saved:.0%} off" if saved >= 0 else f"adds {-saved:.0%} to"

    return (
        f"PPD {change(ppd)} the latency of one unit here; splitting every product over the same "
        f"units {change(split)} it."
    )
