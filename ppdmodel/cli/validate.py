"""`ppdmodel validate`: predict a grid of settings, run it, and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ..errors import InvalidInputError
from . import options
from .format import answer, bounds, echo, note, number, print_table, say
from .options import DATA, DECODING, MACHINE, option, whole_option
from .progress import resumable

#: prompts without --limit
FEW = 11


def validate_command(
    calibration: Annotated[
        Path, option("--calibration", "Match rates, from: ppdmodel fit.", "FILE")
    ],
    out: Annotated[Path, option("--out", "Folder for the runs.", "DIR")],
    timing: Annotated[
        Path | None, option("--timing", "Times from ppdmodel time, if not in CAL.", "FILE")
    ] = None,
    model: options.Model = "smollm2-135m",
    dtype: options.Dtype = "float32",
    exits: options.Exits = None,
    prompts: options.Prompts = None,
    limit: options.Limit = None,
    raw: options.Raw = False,
    system: options.System = None,
    template_arg: options.TemplateArgs = None,
    fit_prompts: Annotated[
        int, whole_option("--fit-prompts", "Prompts for fitting; the rest are held out.", "N", DATA)
    ] = 3,
    exit_layers: Annotated[
        str | None,
        option("--exit-layers", "With commas; default six from the middle on.", "E", DECODING),
    ] = None,
    k: Annotated[str, option("--k", "With commas.", "K", DECODING)] = "1,3,5",
    max_new_tokens: Annotated[
        int, whole_option("--max-new-tokens", "Most tokens per text.", "N", DECODING)
    ] = 64,
    units: options.Units = 2,
    device: options.UnitsDevice = "cpu",
    seed: Annotated[
        int, option("--seed", "Run order.", "S", MACHINE, callback=options.checked_seed)
    ] = 0,
    as_json: options.Json = False,
) -> None:
    """Predict PPD's latency on a grid of settings, then run it for real.

    If interrupted, runs are kept; the same command resumes.

    Example: ppdmodel validate --calibration cal.json --timing timing.json --out results/validation
    """
    ks = options.whole_list("k", k)
    given = options.whole_list("exit_layers", exit_layers) if exit_layers else None
    from ..measure import default_prompts, load_model
    from ..pipeline import ValidationGrid, Workers, validate
    from ..pipeline.devices import machine
    from ..pipeline.timing import model_provenance
    from ..pipeline.worker_pool import placements
    from ..results.compatibility import check_runs
    from ..results.io import load_calibration, load_timing

    names = [place.device for place in placements(units, device=device)]
    rates = load_calibration(calibration)
    times = load_timing(timing) if timing else rates.timing
    if times is None:
        raise InvalidInputError(
            f"validate needs costs; got none, and {calibration} has none; give --timing FILE"
        )
    source, trained = options.model_with_exits(model, exits)
    running = {**model_provenance(source, dtype, trained), "machine": machine(names)}
    for warning in check_runs(running, rates, times):
        note(warning)
    measured = rates.measured.get("max_new_tokens", max_new_tokens)
    if measured != max_new_tokens:
        note(
            f"the match rates are of texts of up to {measured} tokens, these of up to "
            f"{max_new_tokens}: rates may change along a text"
        )
    found = options.chosen_prompts(prompts, limit, default_prompts, all_turns=False)
    chosen = found[: limit or FEW]
    grid = ValidationGrid(
        exit_layers=given or _from_the_middle(rates.layers),
        ks=ks,
        fit_prompts=fit_prompts,
        max_new_tokens=max_new_tokens,
        seed=seed,
        raw=raw,
        system=system,
        template_args=options.template_args(template_arg),
    )
    with resumable("finished runs are", out):
        report = validate(
            load_model(source, dtype),
            chosen,
            rates,
            times,
            out,
            grid,
            exits=trained,
            workers=Workers(units, device),
            on_progress=lambda stage, share: note(f"{stage}: {share:.0%}"),
        )
    answer(as_json, report, render, report, out)


def _render_guesses(cells: Sequence[Mapping[str, Any]]) -> None:
    """Print what became of the guesses, where late ones were counted."""
    counted = [row for row in cells if row.get("late_rate") is not None]
    if counted:
        say("\nShare of the tokens with a right guess: in time (a match), late, and both")
        print_table(
            ("exit", "k", "match", "predicted", "late", "right", "predicted"),
            [
                (
                    row["exit_layer"],
                    row["k"],
                    *(
                        f"{row[name]:.3f}"
                        for name in (
                            "match_rate", "predicted_match_rate", "late_rate", "right_rate",
                            "predicted_right_rate",
                        )
                    ),
                )
                for row in counted
            ],
        )  # fmt: skip


def _from_the_middle(layers: int) -> list[int]:
    """Six exit layers from the middle of the model to near its end, or as many as there are."""
    first, last = -(-layers // 2), layers - max(layers // 8, 1)
    return sorted({round(first + n * (last - first) / 5) for n in range(6)})


def render(report: Mapping[str, Any], out: Path) -> None:
    """Print every setting, and a summary."""
    say(
        f"{report['settings']['model']}: latency of PPD over plain decoding on one unit "
        f"({1e3 * report['plain_latency_s']:.1f} ms a token)",
        bold=True,
    )
    print_table(
        ("exit", "k", "predicted", "95%", "measured", "error", "match", "time", ""),
        [
            (
                row["exit_layer"],
                row["k"],
                number(row["predicted"]),
                bounds(row["ci_low"], row["ci_high"]),
                number(row["measured"]),
                *(f"{row[name]:+.1%}" for name in ("error", "match_part", "latency_part")),
                "" if row["held_out"] else "fitted",
            )
            for row in report["cells"]
        ],
    )
    _render_guesses(report["cells"])
    held = report["held_out"]
    if held["n_cells"]:
        say(
            f"{held['n_cells']} settings not fitted: error {held['median_error']:.1%} median, "
            f"{held['p90_error']:.1%} at the 90th percentile "
            f"(uncalibrated {held['median_error_uncalibrated']:.1%}); {held['within']} in their "
            "interval"
        )
    best = min(report["cells"], key=lambda row: row["measured"])
    say(
        f"fastest: exit {best['exit_layer']}, k = {best['k']}, {1 / best['measured']:.2f} times as "
        f"fast as plain decoding on one unit; {report['n_other_text']} of {report['n_runs']} texts "
        "differ from it"
    )
    echo(f"Every run: {out}")
