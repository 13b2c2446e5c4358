"""Predicted latency and compute of PPD from measured match rates and times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import formulas
from ..errors import InvalidInputError
from ..formulas.early_exit import mean_step, steps_of_run
from ..results.calibration import Calibration
from ..results.timing import Timing

if TYPE_CHECKING:
    from .._types import Floats

#: the time arguments of `calibrated_latency`; a timing has them in seconds
SCHEDULE = (
    "layer_time", "busy_layer_time", "batch_layer_time", "head_time", "exit_time", "token_time",
    "start_delay", "promotion_delay",
)  # fmt: skip


def predicted_match_rate(calibration: Calibration, exit_layer: int, k: int) -> float:
    """The measured match rate of one exit layer and k: the share of right guesses, late ones too.

    Raises:
        InvalidInputError: the calibration has no such layer or k.
    """
    if not calibration.has(exit_layer, k):
        raise InvalidInputError(
            f"the calibration must hold the setting; got exit layer {exit_layer}, k = {k}; it has "
            f"layers 1 to {calibration.layers} and k to {calibration.k_max}"
        )
    return float(calibration.p_correct[exit_layer - 1, k - 1])


def schedule_times(timing: Timing, exit_layer: int, k: int) -> dict[str, float]:
    """The times of `calibrated_latency`, by the names of its arguments, for one setting.

    They are interpolated between the timed exit layers, and constant beyond the outermost.

    Raises:
        InvalidInputError: that k was not timed.
    """
    if k not in timing.by_k:
        raise InvalidInputError(
            f"k must be one that was timed; got {k}; timed: {', '.join(map(str, timing.by_k))}; "
            "time more with: ppdmodel time --k"
        )
    terms = timing.by_k[k]
    return {
        name: float(
            np.interp(exit_layer, timing.exit_layers, [term.value for term in terms[f"{name}_s"]])
        )
        for name in SCHEDULE
    }


def predicted_latency_s(
    timing: Timing,
    p_correct: Any,
    exit_layer: int,
    k: int,
    corrections: Mapping[str, float] | None = None,
) -> Any:
    """Seconds per token of PPD at depth 1 on two devices.

    Args:
        timing: times of layers and heads.
        p_correct: match rate of the k guesses; a number, or an array of any shape.
        exit_layer: layer after which they are read.
        k: guesses in one batch.
        corrections: factors on the times of `schedule_times`, fitted to real runs.

    Source:
        theory/10-seconds.md, equations (10.1) and (10.7).
    """
    times = schedule_times(timing, exit_layer, k)
    for name, factor in (corrections or {}).items():
        times[name] *= factor
    unfinished = None if timing.is_ideal else 0.5  # ideal layer times are constant
    return formulas.calibrated_early_latency(
        p_correct, timing.layers, exit_layer, **times, unfinished=unfinished
    )


def guesses_in_time(timing: Timing, exit_layer: int, k: int) -> bool:
    """Whether guesses come before the verdict that they are for, equation (10.10)."""
    times = schedule_times(timing, exit_layer, k)
    for name in ("layer_time", "token_time", "promotion_delay"):
        del times[name]
    return float(formulas.calibrated_head_start(timing.layers, exit_layer, **times)) > 0


def predicted_latency_curve(timing: Timing, exit_layer: int, k: int) -> Callable[[Any], Any]:
    """`predicted_latency_s` without corrections as a function of the match rate alone.

    The schedule is followed once, for many match rates.
    """
    times = schedule_times(timing, exit_layer, k)
    unfinished = None if timing.is_ideal else 0.5
    steps, first = steps_of_run(timing.layers, exit_layer, **times, unfinished=unfinished)
    return lambda p_correct: mean_step(p_correct, steps, first)


def predicted_plain_latency_s(timing: Timing) -> float:
    """Seconds per token of plain decoding on one device, equation (10.2)."""
    layer, head, token = (timing.terms[f"{x}_time_s"].value for x in ("layer", "head", "token"))
    return float(formulas.calibrated_plain_latency(timing.layers, layer, head, token))


def verification_times(timing: Timing, most: int) -> Floats:
    """Time of a pass that verifies 1 to `most` tokens, over that of one token, [most].

    Layers and LM head take longer with more rows as the layers of a batch of guesses do; the rest
    of a token does not. Between numbers of guesses that were timed, times lie on a line.

    Raises:
        InvalidInputError: fewer guesses than `most` were timed.
    """
    if most > max(timing.by_k):
        raise InvalidInputError(
            f"a pass must have at most as many tokens as guesses that were timed; got {most}; "
            f"timed: {', '.join(map(str, timing.by_k))}; time more with: ppdmodel time --k"
        )

    def mean(k: int, name: str) -> float:
        return float(np.mean([time.value for time in timing.by_k[k][name]]))

    known = {k: mean(k, "batch_layer_time_s") for k in timing.by_k}
    one = known.setdefault(1, mean(min(timing.by_k), "layer_time_s"))
    ks = sorted(known)
    growth = np.interp(np.arange(1, most + 1), ks, [known[k] / one for k in ks])
    plain = predicted_plain_latency_s(timing)
    fixed = timing.terms["token_time_s"].value / plain
    return fixed + (1 - fixed) * growth


def predicted_plain_compute(timing: Timing) -> float:
    """Layer executions per token of plain decoding, its head included, equation (10.9)."""
    layer, head = (timing.terms[f"{x}_time_s"].value for x in ("layer", "head"))
    return float(formulas.calibrated_plain_compute(timing.layers, layer, head))


def predicted_compute(timing: Timing, p_correct: Any, exit_layer: int, k: int) -> Any:
    """Layer executions per token, heads included, equation (10.5).

    For a match rate, or an array of them. An upper bound where sub-processes pass their own exit
    before the verification.
    """
    times = schedule_times(timing, exit_layer, k)
    for name in ("layer_time", "token_time", "promotion_delay"):
        del times[name]
    unfinished: Any = 0.5
    if timing.is_ideal:
        unfinished = formulas.calibrated_unfinished(timing.layers, exit_layer, **times)
    return formulas.calibrated_compute(
        p_correct, timing.layers, exit_layer, k, **times, unfinished=unfinished
    )
