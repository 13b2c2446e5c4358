"""`ppdmodel estimate`: the closed forms for one setting, or several match rates side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from ..decide.estimate import estimate, estimate_from
from ..errors import InvalidInputError
from . import options
from .format import answer, bounds, number, print_table, say
from .options import option, whole_option

#: rows of the table: key, label, unit, digits
ROWS = (
    ("latency_per_token", "latency per token", "layers", 2),
    ("normalized_latency", "  against plain decoding", "×", 3),
    ("speedup", "  speed-up", "×", 2),
    ("compute_per_token", "compute per token", "layers", 2),
    ("normalized_compute", "  against plain decoding", "×", 3),
    ("exchange_rate", "extra compute per layer saved", "layers", 2),
    ("mean_units", "processes, mean", "", 2),
    ("peak_units", "processes, peak", "", 0),
    ("reserved_units", "reserved per token (peak)", "layers", 2),
)


def estimate_command(
    p_correct: Annotated[
        list[float] | None,
        option("--p-correct", "Match rate in [0, 1]; repeat it for more columns.", "P"),
    ] = None,
    layers: options.Layers = None,
    source: Annotated[
        Path | None, option("--from", "A measurement or calibration instead.", "RESULT")
    ] = None,
    exit_layer: options.ExitLayer = None,
    k: options.K = 1,
    depth: options.Depth = "1",
    tokens: Annotated[
        int | None, whole_option("--tokens", "Also the total time of N tokens.", "N")
    ] = None,
    layer_time_s: Annotated[
        float | None, option("--layer-time-s", "Seconds per layer.", "T")
    ] = None,
    overhead: Annotated[float, option("--overhead", "Extra layer times per token.", "O")] = 0.0,
    target_speedup: Annotated[
        float | None, option("--target-speedup", "Also the match rate that reaches S.", "S")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Latency and compute of PPD from the closed forms.

    Example: ppdmodel estimate --p-correct 0.7 --layers 40
    """
    settings: dict[str, Any] = {
        "exit_layer": exit_layer,
        "k": k,
        "depth": options.depth_value(depth),
        "tokens": tokens,
        "layer_time_s": layer_time_s,
        "overhead": overhead,
        "target_speedup": target_speedup,
    }
    if source is not None:
        if p_correct or layers is not None:
            raise InvalidInputError(
                "--from must stand alone; got --p-correct or --layers too; give one or the other"
            )
        results = [estimate_from(options.rates_in(source), **settings)]
    else:
        if not p_correct or layers is None:
            raise InvalidInputError(
                "estimate must know the match rate and the layers; got too little; "
                "give --p-correct P --layers D, or --from RESULT"
            )
        results = [estimate(p, layers, **settings) for p in p_correct]
    answer(as_json, results[0] if len(results) == 1 else results, render, results)


def render(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the table and a summary."""
    first = results[0]
    depth = "unlimited" if first["depth"] is None else first["depth"]
    say(
        f"PPD: {first['layers']} layers, exit after layer {first['exit_layer']}, "
        f"k = {first['k']}, depth {depth}",
        bold=True,
    )
    print_table(
        ("match rate p_correct", *(_cell(result["p_correct"], 3) for result in results), ""),
        [
            (label, *(_cell(_get(result, key), digits) for result in results), unit)
            for key, label, unit, digits in (*ROWS, *_extra_rows(first))
        ],
        left=(0, len(results) + 1),
    )
    for result in results:
        say(_sentence(result))


def _extra_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, int]]:
    rows: list[tuple[str, str, str, int]] = []
    if result["overhead"]:
        rows.append(("break_even_p_correct", "break-even match rate", "", 3))
    if "target_speedup" in result:
        label = f"match rate for {result['target_speedup']:g}×"
        rows.append(("p_correct_for_target", label, "", 3))
    if "layer_time_s" in result:
        rows.append(("latency_per_token_s", "latency per token", "s", 5))
    if "total_latency" in result:
        for key in ("mean", "std", "p50", "p95", "p99"):
            rows.append((f"total_latency.{key}", f"{result['tokens']} tokens, {key}", "layers", 1))
            if "total_latency_s" in result:
                rows.append((f"total_latency_s.{key}", "", "s", 4))
    return rows


def _get(result: Mapping[str, Any], key: str) -> Any:
    value: Any = result
    for part in key.split("."):
        value = value[part]
    return value


def _cell(value: Any, digits: int) -> str:
    """A number, or one with its interval."""
    if isinstance(value, Mapping):
        middle, low, high = (value[name] for name in ("value", "ci_low", "ci_high"))
        return f"{number(middle, digits)} {bounds(low, high, digits)}"
    return number(value, digits)


def _value(number: Any) -> Any:
    return number["value"] if isinstance(number, Mapping) else number


def _sentence(result: Mapping[str, Any]) -> str:
    p = number(_value(result["p_correct"]), 3)
    saved = 1 - _value(result["normalized_latency"])
    compute = _value(result["normalized_compute"])
    extra = "more compute than can be counted"
    if compute is not None:
        extra = f"{100 * (compute - 1):.0f}% more compute"
    if saved < -1e-12:
        return f"At p = {p}, PPD costs {-100 * saved:.0f}% more time per token and does not pay."
    if saved <= 1e-12:
        return f"At p = {p}, PPD saves no time and costs {extra}."
    return f"At p = {p}, PPD takes {100 * saved:.0f}% off the latency for {extra}."
