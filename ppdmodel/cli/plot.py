"""`ppdmodel plot`: figures of a calibration, or of the theory alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..decide.estimate import default_exit
from ..errors import InvalidInputError
from ..results.measurement import Measurement
from . import options
from .format import answer, echo, note
from .options import option, whole_option
from .progress import progress_bar


class Kind(StrEnum):
    """Kinds of figure."""

    MATCH_RATE = "match-rate"
    TRADE_OFF = "trade-off"
    THEORY = "theory"
    PREDICTED = "predicted"
    COMPARE = "compare"
    THRESHOLD = "threshold"
    TIMELINE = "timeline"


WITHOUT_RESULT = (Kind.THEORY, Kind.TIMELINE)
#: the results that the others show
RESULTS = {
    Kind.MATCH_RATE: "a calibration, or use --kind theory",
    Kind.TRADE_OFF: "a calibration, or use --kind theory",
    Kind.PREDICTED: "a folder of ppdmodel validate",
    Kind.COMPARE: "a measurement or a calibration",
    Kind.THRESHOLD: "a measurement folder",
}
#: the figures that each option is for
OF_KINDS = {
    "layers": WITHOUT_RESULT,
    "k": WITHOUT_RESULT,
    "depth": WITHOUT_RESULT,
    "exit_layer": (Kind.TIMELINE,),
    "matches": (Kind.TIMELINE,),
}


def plot_command(
    context: typer.Context,
    out: Annotated[Path, option("--out", "Figure to write: .png, .svg or .pdf.", "FILE")],
    result: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RESULT]",
            help="A calibration, a measurement or a validation; none for theory and timeline.",
        ),
    ] = None,
    kind: Annotated[Kind, option("--kind", "Which figure.")] = Kind.MATCH_RATE,
    layers: Annotated[int, whole_option("--layers", "Layers, for theory and timeline.", "D")] = 40,
    k: options.K = 1,
    depth: options.Depth = "1",
    exit_layer: options.ExitLayer = None,
    matches: Annotated[
        str, option("--matches", "Timeline: 1 match or 0 miss, by token.", "M,M,...")
    ] = "1,0,1,1",
    as_json: options.Json = False,
) -> None:
    """Draw a figure: match-rate and trade-off of a RESULT, or the theory's trade-off curves.

    predicted, of one validation or more with commas, draws predicted against measured latency;
    compare, of a measurement or a calibration, the best of each method at twice the compute;
    threshold, of a measurement, the threshold rule beside fixed settings;
    timeline, without a RESULT, which process runs which layers of which token.

    Example: ppdmodel plot results/full.json --kind trade-off --out trade-off.svg
    """
    _check_options(context, kind)
    in_flight = options.depth_value(depth)
    from ..results.files import check_writable

    check_writable(out)
    if kind in WITHOUT_RESULT and result is not None:
        raise InvalidInputError(
            f"the {kind.value} figure must have no RESULT; got {result}; leave it out"
        )
    exit_layer = exit_layer or default_exit(layers)
    hits = _matches(matches)
    shown = None if kind in WITHOUT_RESULT else _read(kind, result)
    from ..show import plots, timeline  # after everything is checked: they load Matplotlib

    if kind is Kind.THEORY:
        figure = plots.theory(layers=layers, k=k, depth=in_flight)
    elif kind is Kind.TIMELINE:
        figure = timeline.timeline(hits, layers=layers, exit_layer=exit_layer, k=k, depth=in_flight)
    else:
        draws: Mapping[Kind, Callable[[Any], Any]] = {
            Kind.MATCH_RATE: plots.match_rate,
            Kind.TRADE_OFF: plots.trade_off,
            Kind.PREDICTED: plots.predicted,
            Kind.COMPARE: plots.comparison,
            Kind.THRESHOLD: plots.thresholds,
        }
        figure = draws[kind](shown)
    plots.save(figure, out)
    answer(as_json, {"out": str(out), "kind": kind.value}, echo, str(out))


def _check_options(context: typer.Context, kind: Kind) -> None:
    """Raise `InvalidInputError` for an option that the figure would ignore."""
    for name, kinds in OF_KINDS.items():
        source = context.get_parameter_source(name)
        if kind not in kinds and source is not None and source.name == "COMMANDLINE":
            wanted = "--kind " + " or ".join(one.value for one in kinds)
            options.refuse(wanted, **{name: context.params[name]})


def _matches(text: str) -> list[bool]:
    """Which tokens after the first are matches."""
    hits = [part.strip() for part in text.split(",")]
    if not set(hits) <= {"0", "1"}:
        raise InvalidInputError(
            f"matches must be 1 (match) or 0 (miss) for each token after the first; got {text}; "
            "give for example 1,0,1,1"
        )
    return [hit == "1" for hit in hits]


def _read(kind: Kind, path: Path | None) -> Any:
    """What a figure shows of a result."""
    if path is None:
        raise InvalidInputError(f"this figure must have a RESULT; got none; give {RESULTS[kind]}")
    if kind is Kind.PREDICTED:
        return _reports(path)
    from ..results.io import load_guesses, load_rates

    source = load_rates(path)
    if kind is Kind.COMPARE:
        from ..decide.compare import compare

        guesses = options.guesses_beside(path, source)
        with progress_bar(stays=False) as report:
            return compare(source, guesses=guesses, on_progress=report)
    if kind is Kind.THRESHOLD:
        from ..decide.threshold_rule import threshold_report

        if not isinstance(source, Measurement):
            raise InvalidInputError(
                f"this figure must have a measurement folder; got {path}; give one"
            )
        guesses = options.guesses_beside(path, source) or load_guesses(path)  # raises without any
        with progress_bar(stays=False) as report:
            return threshold_report(source, guesses, on_progress=report)
    if not isinstance(source, Measurement):
        return source
    from ..fitting.calibrate import fit

    note(f"fitting {path}, which takes a while; fit it once with: ppdmodel fit {path} --out FILE")
    with progress_bar(stays=False) as report:
        return fit(source, on_progress=report)


def _reports(path: Path) -> list[dict[str, Any]]:
    """Validations, from their folders or files."""
    from ..results.files import VALIDATION, VALIDATION_FILE, read_json

    found = []
    for one in [path] if path.exists() else map(Path, str(path).split(",")):
        report = read_json(one / VALIDATION_FILE if one.is_dir() else one, VALIDATION)
        if "cells" not in report:
            raise InvalidInputError(
                f"a validation must have been run; got {one}, predictions only; give its folder"
            )
        found.append(report)
    return found
