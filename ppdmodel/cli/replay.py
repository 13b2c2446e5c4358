"""`ppdmodel replay`: PPD's schedule on recorded tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError
from ..simulation.policy import Policy
from .format import ABSENT, interval, number, percent, print_json, print_table, say
from .options import (
    Json,
    checked_seed,
    depth_value,
    guesses_beside,
    measurement_in,
    option,
    refuse,
    whole_list,
)
from .progress import progress_bar

if TYPE_CHECKING:
    from ..decide.replay_report import ReplayReport
    from ..decide.threshold_rule import Priced, ThresholdReport
    from ..results.intervals import Interval

READING = (
    "Reading an exit counts as {:.1f} layer executions and delays its guesses as much; the "
    "model's head as {:.1f}. An exit without a threshold is not read."
)
FREE = "Reading an exit counts as nothing: see --exit-cost."


def replay_command(
    measurement: Annotated[Path, typer.Argument(metavar="DIR", help="A measurement folder.")],
    exit_layer: Annotated[
        str | None, option("--exit-layer", "Layer read; several with commas.", "E")
    ] = None,
    k: Annotated[
        str | None, option("--k", "Guesses per exit, one for each or for all; 1.", "K")
    ] = None,
    depth: Annotated[
        str | None, option("--depth", "Tokens in flight beyond the verified, or inf; 1.", "N")
    ] = None,
    gate: Annotated[
        float | None, option("--gate", "Least top-1 probability to start guesses.", "P")
    ] = None,
    price: Annotated[
        list[float] | None,
        option("--price", "Instead of an exit: threshold rule at this price; may repeat.", "PI"),
    ] = None,
    exit_cost: Annotated[
        float | None,
        option(
            "--exit-cost", "With --price: layer executions of an exit, and of the LM head.", "C"
        ),
    ] = None,
    timing: Annotated[
        Path | None, option("--timing", "With --price: measured exit cost.", "FILE")
    ] = None,
    seed: Annotated[
        int, option("--seed", "Of the bootstrap and simulation.", callback=checked_seed)
    ] = 0,
    as_json: Json = False,
) -> None:
    """Replay a measurement's recorded tokens in PPD's exact schedule.

    Compared with the closed form for independent matches at the same match rate.
    With --price instead of an exit: the threshold rule against fixed exits and k.

    Example: ppdmodel replay results/full --exit-layer 24 --k 5
    """
    if (exit_layer is None) == (not price):
        raise InvalidInputError(
            "replay needs a policy; got "
            f"{'none' if exit_layer is None else 'two'}; give --exit-layer, or --price"
        )
    from ..decide.replay_report import replay_report
    from ..decide.threshold_rule import threshold_report
    from ..results.io import load_guesses, load_timing

    if exit_layer is not None:
        refuse("--price", exit_cost=exit_cost, timing=timing)
        policy = _policy(exit_layer, k or "1", depth or "1", gate)
        report = replay_report(measurement_in(measurement, "replay"), policy, seed=seed)
        print_json(report.to_json()) if as_json else render(report)
        return
    refuse("--exit-layer", k=k, depth=depth, gate=gate)
    if timing is not None and exit_cost is not None:
        raise InvalidInputError(
            "the cost of reading must be given once; got --exit-cost and --timing; leave one out"
        )
    source = measurement_in(measurement, "replay")
    guesses = guesses_beside(measurement, source) or load_guesses(measurement)  # raises without any
    times = load_timing(timing) if timing else None
    with progress_bar(stays=False) as report_progress:
        priced = threshold_report(
            source,
            guesses,
            sorted(price or ()),
            exit_cost=exit_cost or 0.0,
            timing=times,
            seed=seed,
            on_progress=report_progress,
        )
    print_json(priced.to_json()) if as_json else render_prices(priced)


def _policy(exit_layer: str, k: str, depth: str, gate: float | None) -> Policy:
    exits, guesses = whole_list("exit_layer", exit_layer), whole_list("k", k)
    return Policy(
        exits if len(exits) > 1 else exits[0],
        guesses if len(guesses) > 1 else guesses[0],
        depth_value(depth),
        gate,
    )


def render(report: ReplayReport) -> None:
    """Print the replay, the closed form for independent matches, and their difference."""
    policy, d = report.policy, report.layers
    exits = ", ".join(map(str, policy.exits))
    guesses = ", ".join(map(str, policy.guesses))
    gate = "" if policy.gate is None else f", gate {policy.gate:g}"
    depth = "unlimited" if policy.depth is None else policy.depth
    say(f"Replay: {d} layers, exit {exits}, k = {guesses}, depth {depth}{gate}")
    say(f"({report.n_tokens} tokens, {report.n_texts} texts, {report.n_prompts} prompts)")
    rows = [
        ("match rate", number(report.match_rate, 3)),
        ("autocorrelation of matches", number(report.autocorrelation, 3)),
        ("latency per token", f"{interval(report.latency, 2)}  layers"),
        ("  against plain decoding", f"{interval(report.normalized_latency, 3)}  ×"),
        ("  independent matches", number(report.closed_form, 2)),
        ("  simulated, independent", number(report.simulated, 2)),
        ("compute per token", f"{interval(report.compute, 2)}  layers"),
        ("  against plain decoding", f"{interval(report.normalized_compute, 3)}  ×"),
        ("  independent matches", number(report.closed_form_compute, 2)),
        ("processes, peak", str(report.peak_units)),
    ]
    print_table((), rows, left=(0, 1))
    say(sentence(report))


def sentence(report: ReplayReport) -> str:
    """Summary of the replay, and whether the closed form for independent matches agrees."""
    saved = 100 * (1 - report.normalized_latency.value)
    words = f"On these tokens PPD takes {saved:.1f}% off the latency"
    if report.misleads is not None:
        return (
            f"{words}. WARNING: the formula for independent matches is {100 * report.misleads:+.1f}"
            "% off here, outside the interval: matches come in runs."
        )
    if report.closed_form is not None:
        off = 100 * (report.closed_form / report.latency.value - 1)
        words += f"; the formula for independent matches is {off:+.1f}% off"
    if math.isnan(report.latency.ci_low):
        words += "; one prompt gives no interval"
    return words + "."


def render_prices(report: ThresholdReport) -> None:
    """Print the threshold rule and the best fixed setting at each price."""
    say(f"{report.title}: {report.layers} layers, the threshold rule at a price")
    say(f"({report.n_tokens} tokens, {report.n_prompts} prompts)\n")
    print_table(
        ("price", "q >=", "exit", "off", "time, compute", "fixed", "time, compute", "gain"),
        [
            (
                f"{row.price:g}",
                number(row.threshold, 2),
                ABSENT if row.exit_layer is None else row.exit_layer,
                ABSENT if row.error is None else percent(row.error, 1),
                _pair(row.latency, row.compute),
                _fixed(row),
                _pair(row.fixed_latency, row.fixed_compute),
                interval(row.gain),
            )
            for row in report.prices
        ],
    )
    exits = ", ".join(map(str, report.prices[0].several_exits))
    say(f"\nOver exits {exits}, a guess starts at the first that lets it:")
    print_table(
        ("price", "time, compute", "gain over one exit", "q >="),
        [
            (
                f"{row.price:g}",
                _pair(row.several_latency, row.several_compute),
                interval(row.several_gain),
                ", ".join(number(None if q == math.inf else q, 2) for q in row.several_thresholds),
            )
            for row in report.prices
        ],
        left=(3,),
    )
    say("\nThe best two exits, each with a fixed k:")
    print_table(
        ("price", "time, compute", "gain over one exit", "exits, k"),
        [
            (
                f"{row.price:g}",
                _pair(row.two_latency, row.two_compute),
                interval(row.two_gain),
                _two(row),
            )
            for row in report.prices
        ],
        left=(3,),
    )
    say("\n" + _reading(report))
    say(prices_sentence(report))


def _pair(latency: Interval, compute: Interval) -> str:
    return f"{number(latency.value)}, {number(compute.value)}"


def _fixed(row: Priced) -> str:
    return "plain" if row.fixed_exit_layer is None else f"{row.fixed_exit_layer}, k={row.fixed_k}"


def _two(row: Priced) -> str:
    if row.two_exits is None or row.two_k is None:
        return "plain"
    return "exits {}, {}, k = {}, {}".format(*row.two_exits, *row.two_k)


def _reading(report: ThresholdReport) -> str:
    """How the tables are to be read."""
    before, after, worst = (
        percent(max(getattr(exit_, name) for exit_ in report.reliability), 1)
        for name in ("first_raw", "first", "first_worst")
    )
    return (
        "Latency and compute are ratios to plain decoding, on prompts that neither calibrated nor "
        "chose. Gain: what the rule takes off price x latency + compute, against the best fixed "
        "exit and k, a 95% t interval from resamples of the prompts, each choosing again. Off: how "
        "far the calibrated probabilities of the started guesses are from what came true. The "
        f"first guess's probability is off by at most {before} before calibration, {after} after "
        f"(in the worst tenth of an exit by {worst}). "
        + (READING.format(report.exit_cost, report.head_cost) if report.exit_cost else FREE)
    )


def prices_sentence(report: ThresholdReport) -> str:
    """At how many prices the threshold rule is better."""
    better = [row for row in report.prices if row.gain.ci_low > 0]
    worse = [row for row in report.prices if row.gain.ci_high < 0]
    several = [row for row in report.prices if row.several_gain.ci_low > 0]
    total = len(report.prices)
    return (
        f"The rule beats the best fixed setting at {len(better)} of {total} prices, and loses at "
        f"{len(worse)}; over several exits it beats that at one at {len(several)}."
    )
