"""Latency of PPD in seconds at early exits: a numerical recursion along a run of matches."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInputError
from .contract import check, check_order, is_unknown
from .ops import Operand
from .registry import recursion

#: matches in a row after which the last two steps are assumed to repeat
_LONGEST_RUN = 200_000
#: decimals in which layers must differ to count as different
_DECIMALS = 9


@recursion(equation="10.7", page="10-seconds")
def calibrated_early_latency(
    p_correct: Operand,
    layers: float,
    exit_layer: float,
    layer_time: float,
    busy_layer_time: float,
    batch_layer_time: float,
    head_time: float = 0,
    exit_time: float = 0,
    token_time: float = 0,
    start_delay: float = 0,
    promotion_delay: float = 0,
    unfinished: float | None = 0.5,
) -> Operand:
    r"""Mean time between tokens on real units at depth 1, for early exits too.

    As `calibrated_latency` where $n \le e$. A process that is promoted after its exit reads
    the exit when it resumes, which leaves less time for the next sub-processes. So the steps $t_r$
    of a run of matches differ, and $T = (1-p) \sum_{r \ge 0} p^r t_r$.

    Args: as `calibrated_latency`, but numbers; an array, of any shape, only for `p_correct`.
    Matches must be independent for n > e. `unfinished` may be None for constant layer times: the
    exact rest of each layer.

    Returns:
        Latency per token, in the unit of the times.

    Raises:
        InvalidInputError: an argument is outside its domain, or no number.

    >>> round(calibrated_early_latency(0.5, 40, 10, 1, 1, 1, unfinished=0), 4)
    28.3333
    """
    times = dict(locals())
    for name, value in times.items():
        if value is not None or name != "unfinished":
            _check_number(name, value)
    check_order(exit_layer, layers)
    return mean_step(times.pop("p_correct"), *steps_of_run(**times))


def steps_of_run(
    layers: float,
    exit_layer: float,
    layer_time: float,
    busy_layer_time: float,
    batch_layer_time: float,
    head_time: float,
    exit_time: float,
    token_time: float,
    start_delay: float,
    promotion_delay: float,
    unfinished: float | None,
) -> tuple[list[float], int]:
    """Steps along a run of matches, and the place that follows the last one; see above."""

    def ahead(left: float) -> float:
        """Layers that a sub-process has run at the verification, `left` after the exit layer."""
        return min(max(left - start_delay - exit_time, 0) / batch_layer_time, layers)

    left = (layers - exit_layer) * busy_layer_time + head_time
    steps = [token_time + exit_layer * layer_time + left]
    places: dict[float, int] = {0: 0}
    n = ahead(left)
    while (place := round(n, _DECIMALS)) not in places:
        if len(steps) == _LONGEST_RUN:
            return steps, len(steps) - 2
        places[place] = len(steps)
        going_on = min(n + (-n % 1 if unfinished is None else unfinished), layers)
        pause = (going_on - n) * batch_layer_time + promotion_delay
        early = place <= exit_layer  # n = e counts as early, in spite of rounding
        before = (exit_layer - going_on) * layer_time if early else 0
        rest = layers - (exit_layer if early else going_on)
        left = rest * busy_layer_time + head_time
        steps.append(pause + before + left)
        n = ahead(left)
    return steps, places[place]


def mean_step(p: Operand, steps: list[float], first: int) -> Operand:
    """The mean step if place r of a run has weight p^r and `first` follows the last place."""
    begun, again = _polynomial(p, steps[:first]), _polynomial(p, steps[first:])
    return (1 - p) * begun + p**first * again / _polynomial(p, [1.0] * (len(steps) - first))


def _polynomial(p: Operand, coefficients: list[float]) -> Operand:
    """A polynomial by Horner's rule, the coefficient of p^0 first."""
    value: Operand = 0.0
    for coefficient in reversed(coefficients):
        value = value * p + coefficient
    return value


def _check_number(name: str, value: Any) -> None:
    """Raise unless an argument is a number in its domain; the match rate may be an array."""
    check(name, value)
    many = name == "p_correct"
    is_array = bool(getattr(value, "shape", ()))
    if is_unknown(value) or (is_array and not many):
        raise InvalidInputError(
            f"{name} must be {'numbers' if many else 'a number'}; got {value!r}; "
            "a run of matches is followed for numbers"
        )
