"""Estimate of one setting, from a given or a measured match rate."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import formulas
from ..checks import check_schedule, positive_integer
from ..errors import InvalidInputError
from ..formulas import ops
from ..formulas.contract import check

if TYPE_CHECKING:
    from ..results.calibration import Calibration
    from ..results.measurement import Measurement

#: steps across the interval of a match rate, within which quantities may rise and fall
STEPS = 16


def estimate(
    p_correct: float,
    layers: int,
    exit_layer: int | None = None,
    k: int = 1,
    depth: int | None = 1,
    *,
    tokens: int | None = None,
    layer_time_s: float | None = None,
    overhead: float = 0.0,
    target_speedup: float | None = None,
) -> dict[str, Any]:
    """Latency and compute of one PPD setting, ready for JSON: infinite and undefined are None.

    Args:
        p_correct: match rate of all k guesses together; in [0, 1].
        layers: decoder layers; a positive integer.
        exit_layer: exit layer; half of the layers, rounded up, by default.
        k: guesses per exit; a positive integer.
        depth: tokens in flight beyond the one being verified; a positive integer, None: unlimited.
        tokens: also give the distribution of the total latency of so many tokens.
        layer_time_s: seconds per layer; every time then also appears in seconds.
        overhead: extra latency of every token, in layer times.
        target_speedup: also give the match rate that reaches this speed-up.

    Raises:
        InvalidInputError: an argument is outside its domain.

    >>> estimate(0.7, 40)["latency_per_token"]
    26.0
    """
    check("p_correct", p_correct)
    exit_layer = exit_layer if exit_layer is not None else default_exit(layers)
    check_schedule(layers, exit_layer, k, depth)
    check("overhead", overhead)
    result: dict[str, Any] = {
        "p_correct": p_correct,
        "layers": layers,
        "exit_layer": exit_layer,
        "k": k,
        "depth": depth,
        "overhead": overhead,
        **{n: f(p_correct) for n, f in _quantities(layers, exit_layer, k, depth, overhead).items()},
        "peak_units": _bounded(formulas.peak_units(layers, exit_layer, k, depth)),
        "break_even_p_correct": required_p_correct(1.0, layers, exit_layer, depth, overhead),
    }
    if tokens is not None:
        result |= _total(p_correct, layers, exit_layer, tokens, depth, overhead)
    if target_speedup is not None:
        if not 1 <= target_speedup < math.inf:
            raise InvalidInputError(
                f"target_speedup must be at least 1; got {target_speedup}; 2 means half the time"
            )
        needed = required_p_correct(target_speedup, layers, exit_layer, depth, overhead)
        result |= {"target_speedup": target_speedup, "p_correct_for_target": needed}
    if layer_time_s is not None:
        result |= _seconds(result, layer_time_s)
    return _finite(result)


def default_exit(layers: int) -> int:
    """The middle layer, rounded up."""
    return -(-positive_integer("layers", layers) // 2)


def estimate_from(
    source: Measurement | Calibration,
    exit_layer: int | None = None,
    k: int = 1,
    depth: int | None = 1,
    **options: Any,
) -> dict[str, Any]:
    """`estimate` at a measured match rate; what depends on it becomes an interval.

    An interval of what depends on the match rate spans its values over the interval of the rate.

    Args:
        source: a measurement or a calibration.
        exit_layer: as `estimate`.
        k: as `estimate`.
        depth: as `estimate`.
        **options: the keywords of `estimate`.

    Returns:
        As `estimate`, with {value, ci_low, ci_high, n_tokens, n_prompts, method} for each number
        that depends on the match rate. One prompt gives no interval: its ends are None.

    Raises:
        InvalidInputError: an argument is outside its domain, or k is beyond what was recorded.
    """
    from dataclasses import asdict, replace

    import numpy as np

    from ..results.hit_counts import hits_at
    from ..results.intervals import rate_of

    layers = source.layers
    exit_layer = exit_layer if exit_layer is not None else default_exit(layers)
    check_schedule(layers, exit_layer, k, depth)
    rate = rate_of(*hits_at(source, exit_layer, k))
    plain = estimate(rate.value, layers, exit_layer, k, depth, **options)
    known = not math.isnan(rate.ci_low)
    within = np.linspace(rate.ci_low, rate.ci_high, STEPS + 1) if known else np.array([rate.value])
    functions = _quantities(layers, exit_layer, k, depth, plain["overhead"])
    latency = functions["latency_per_token"]
    if "latency_per_token_s" in plain:
        functions["latency_per_token_s"] = lambda p: options["layer_time_s"] * latency(p)
    pays = latency(within) < layers
    for name, function in functions.items():
        value = math.nan if plain[name] is None else plain[name]
        values = np.append(function(within), value)
        passes_infinity = name == "exchange_rate" and pays.any() and not pays.all()
        if passes_infinity or not known:
            values = np.array([math.nan])
        ends = float(values.min()), float(values.max())
        plain[name] = _finite(asdict(replace(rate, value=value, ci_low=ends[0], ci_high=ends[1])))
    plain["p_correct"] = _finite(asdict(rate))
    return plain


def required_p_correct(
    target_speedup: float,
    layers: float,
    exit_layer: float,
    depth: int | None = 1,
    overhead: float = 0.0,
) -> float | None:
    """Match rate at which PPD reaches a speed-up over plain decoding; None if it never does.

    Latency never rises with p, so bisection finds it; the result is rounded to 12 digits.

    >>> required_p_correct(1.25, 40, 20)
    0.4
    """

    def reached(p: float) -> bool:
        latency = formulas.latency_per_token(p, layers, exit_layer, depth) + overhead
        return bool(latency <= layers / target_speedup)

    return least_p_correct(reached)


def least_p_correct(reached: Callable[[float], bool]) -> float | None:
    """The least match rate for which `reached` holds, to 12 digits; None if it never does."""
    if reached(0.0):
        return 0.0
    if not reached(1.0):
        return None
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if reached(middle) else (middle, high)
    return round(high, 12)


def _quantities(
    layers: int, exit_layer: int, k: int, depth: int | None, overhead: float
) -> dict[str, Callable[[Any], Any]]:
    """Each quantity as a function of the match rate, a number or an array of draws."""

    def latency(p: Any) -> Any:
        return formulas.latency_per_token(p, layers, exit_layer, depth) + overhead

    def compute(p: Any) -> Any:
        return formulas.compute_per_token(p, layers, exit_layer, k, depth)

    peak = _bounded(formulas.peak_units(layers, exit_layer, k, depth))
    return {
        "latency_per_token": latency,
        "normalized_latency": lambda p: latency(p) / layers,
        "speedup": lambda p: layers / latency(p),
        "compute_per_token": compute,
        "normalized_compute": lambda p: compute(p) / layers,
        "mean_units": lambda p: compute(p) / latency(p),
        "reserved_units": lambda p: peak * latency(p),
        "exchange_rate": lambda p: ops.divide(compute(p) - layers, layers - latency(p)),
    }


def _bounded(count: int) -> float:
    """A whole number, or infinity where it is too large for a float."""
    return count if count <= sys.float_info.max else math.inf


def _total(
    p_correct: float, layers: int, exit_layer: int, tokens: int, depth: int | None, overhead: float
) -> dict[str, Any]:
    from ..formulas.distribution import total_latency

    total = total_latency(p_correct, layers, exit_layer, tokens, depth)
    paid = overhead * tokens
    quantiles = {f"p{n}": total.quantile(n / 100) + paid for n in (50, 95, 99)}
    moments = {"mean": total.mean + paid, "std": total.std}
    return {"tokens": tokens, "total_latency": moments | quantiles}


def _seconds(result: Mapping[str, Any], layer_time_s: float) -> dict[str, Any]:
    if not 0 < layer_time_s < math.inf:
        raise InvalidInputError(
            f"layer_time_s must be a positive number; got {layer_time_s}; give seconds per layer"
        )
    seconds: dict[str, Any] = {
        "layer_time_s": layer_time_s,
        "latency_per_token_s": result["latency_per_token"] * layer_time_s,
    }
    if "total_latency" in result:
        total = result["total_latency"]
        seconds["total_latency_s"] = {name: t * layer_time_s for name, t in total.items()}
    return seconds


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in result.items()}


def _plain(value: Any) -> Any:
    """A value for JSON: Python numbers, and None for what is infinite or undefined."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
