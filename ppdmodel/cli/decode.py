"""`ppdmodel decode`: real PPD on one prompt, its prediction, and plain decoding."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..checks import probability
from ..errors import InvalidInputError, visible
from . import options
from .format import answer, note, print_table, say
from .options import DECODING, MACHINE, option, whole_option

if TYPE_CHECKING:
    from ..pipeline.decoding import Decoded, Speed

PREDICTION = "The prediction"
#: the method to which all others are compared
PLAIN = "plain decoding"


def decode_command(
    exit_layer: Annotated[int, whole_option("--exit-layer", "Layer read for guesses.", "E")],
    prompt: Annotated[
        str | None, option("--prompt", "The prompt; none with --random-weights.", "TEXT")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    config: options.Config = None,
    random_weights: options.RandomWeights = False,
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
    planted: Annotated[
        float | None,
        option(
            "--planted", "Share of the tokens whose guess is made right, 0 to 1.", "P", DECODING
        ),
    ] = None,
    prompt_lookup: Annotated[
        int | None,
        whole_option(
            "--prompt-lookup",
            "One guess from the text: what followed its last tokens, at most N, before.",
            "N",
            DECODING,
        ),
    ] = None,
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

    With --planted the match rate is given, and the time is measured: exits are read and guesses
    run as ever, and as many as asked for are made right. The text is the same.

    Example: ppdmodel decode --exit-layer 24 --k 3 --prompt "Why is the sky blue?"
    """
    sampling = options.sampled(temperature, top_p, seed)
    _check_prompt(prompt, random_weights, planted)
    if random_weights:
        _check_no_text(prompt=prompt, raw=raw or None, system=system, template_arg=template_arg)
    if planted is not None:
        probability("planted", planted, "give a share of the tokens")
    if planted is not None and calibration is not None:
        raise InvalidInputError(
            f"the match rate must be given once; got --planted {planted:g} and {calibration}; "
            "leave out one; --timing FILE predicts the seconds of a planted rate"
        )
    from ..measure import PromptFormat
    from ..pipeline import PpdSetting, Workers, decode
    from ..pipeline.devices import machine
    from ..pipeline.timing import any_ids, model_provenance
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
    if times and not rates and planted is None:
        note("a predicted time needs match rates too: add --calibration FILE")
    source, trained = options.model_or_shape(model, config, random_weights, exits)
    running = {**model_provenance(source, dtype, trained), "machine": machine(names)}
    for warning in check_runs(running, rates, times):
        note(warning)
    loaded = options.loaded_model(source, dtype)
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
        prompt or any_ids(loaded),
        PpdSetting(exit_layer, k, row_by_row, prompt_lookup or 0),
        max_new_tokens=max_new_tokens,
        workers=Workers(units, device),
        exits=trained,
        prompt_format=text_format,
        sampling=sampling,
        planted=planted,
        calibration=rates,
        timing=times,
        trace=trace,
        on_token=None if as_json else say,
    )
    answer(as_json, overview(result), render, result, trace, row_by_row)


def _check_prompt(prompt: str | None, random_weights: bool, planted: float | None) -> None:
    """Refuse no text for a model, and no planted match rate for random weights."""
    if not random_weights and not (prompt or "").strip():
        raise InvalidInputError("the prompt must have text; got none; give --prompt TEXT")
    if random_weights and planted is None:
        raise InvalidInputError(
            "random weights guess nothing right, so their match rate must be planted; got no "
            "--planted; give a share from 0 to 1"
        )


def _check_no_text(**given: Any) -> None:
    """Refuse a text for random weights."""
    for name, value in given.items():
        if value is not None:
            shown = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise InvalidInputError(
                f"random weights have no tokenizer to read a text; got {shown}; leave it out: any "
                "token ids cost the same"
            )


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
        "planted": result.planted,
        "random_weights": result.random_weights,
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
        "rivals": [asdict(rival) for rival in result.rivals],
        "latency_median_s": result.latency.median_s if result.latency else None,
        "latency_p95_s": result.latency.p95_s if result.latency else None,
        "difference": asdict(result.difference) if result.difference else None,
    }


def render(result: Decoded, trace: Path | None, row_by_row: bool) -> None:
    """Print the numbers below the text."""
    say("\n")
    if result.random_weights:
        say("RANDOM WEIGHTS: times of this shape; the tokens mean nothing.")
    methods = _methods(result)
    rows = []
    for label, speed in methods:
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
    if result.planted is not None:
        say(
            f"PLANTED: the guesses of {result.planted:.3f} of these tokens were made right. The "
            "times are real; the match rate is not the exit's."
        )
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
    for rival in result.rivals:
        if not rival.same:
            say(f"{rival.name}: another text than plain decoding's")
    if len(methods) > 1:
        say(_verdict(methods))


def _methods(result: Decoded) -> list[tuple[str, Speed]]:
    """PPD, plain decoding and its rivals, as far as the text was long enough to time them."""
    split = ", tensor parallel"
    found = [
        ("PPD", result.latency),
        (PLAIN, result.greedy),
        (PLAIN + split, result.greedy_same_units),
        *((r.name + (split if r.units > 1 else ""), r.latency) for r in result.rivals),
    ]
    return [(label, speed) for label, speed in found if speed is not None]


def _verdict(found: Sequence[tuple[str, Speed]]) -> str:
    """How many times as fast as plain decoding PPD is, and what is fastest."""
    times = {label: speed.mean_s for label, speed in found}
    name, best = min(times.items(), key=lambda item: item[1])
    plain = times[PLAIN]
    ppd = f"PPD is {plain / times['PPD']:.2f} times as fast as plain decoding here"
    if name == "PPD":
        return f"{ppd}, the fastest of all on this text."
    if name == PLAIN:
        return f"{ppd}; plain decoding on one device is the fastest on this text."
    return f"{ppd}; the fastest on this text is {name}: {plain / best:.2f} times."
