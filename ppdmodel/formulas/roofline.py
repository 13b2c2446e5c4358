"""Roofline bound of a step: weights read from memory once, arithmetic at peak speed."""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="12.1", page="12-ideal-times")
def roofline_time(
    weights: Operand,
    rows: Operand,
    bytes_per_weight: Operand,
    bytes_per_second: Operand,
    flops_per_second: Operand,
) -> Operand:
    r"""Least time of a product of some rows with weights, in seconds.

    $t_r = \max\bigl(w b / B, 2 w r / F\bigr)$: the larger of the time to read the weights and the
    time of one multiplication and addition per weight and row.

    The roofline model of Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009.

    Args:
        weights: w, numbers in the matrices; positive.
        rows: r, tokens in the batch; a whole number >= 1.
        bytes_per_weight: b, 2 in 16 bits; positive.
        bytes_per_second: B, memory bandwidth; positive.
        flops_per_second: F, floating-point operations per second; positive.

    Returns:
        Seconds.

    >>> round(1e6 * roofline_time(202_375_168, 1, 2, 3.35e12, 989e12), 1)
    120.8
    """
    read = weights * bytes_per_weight / bytes_per_second
    return ops.maximum(read, 2 * weights * rows / flops_per_second)
