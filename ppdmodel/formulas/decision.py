"""Closed forms that decisions rest on: prices, break-even, the best exit, the threshold rule."""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="7.1", page="07-decisions")
def exchange_rate(p_correct: Operand, k: Operand = 1) -> Operand:
    r"""Extra layer executions per layer time saved, at depth 1: $k/p - 1$.

    It is the same for every exit layer e < d. With depth 2 or more it is not a function of p and k
    alone: compute (C - d) / (d - latency).

    Args:
        p_correct: p, match rate of all k guesses together; in [0, 1].
        k: guesses per exit; >= 1.

    Returns:
        Layer executions per layer time; `inf` at p = 0.

    >>> exchange_rate(0.5, 3)
    5.0
    """
    return ops.divide(k, p_correct) - 1


@closed_form(equation="7.2", page="07-decisions")
def break_even(layers: Operand, exit_layer: Operand, overhead: Operand) -> Operand:
    r"""Match rate above which PPD saves time although every token pays an overhead: $o / (d - e)$.

    Holds for (D+1)e >= d. A value above 1 means that no match rate is enough.

    Args:
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        overhead: o, extra latency of each token, in layer times; >= 0.

    Returns:
        A match rate; `inf` for e = d with a positive overhead.

    >>> break_even(40, 20, 5)
    0.25
    """
    return ops.divide(overhead, layers - exit_layer)


@closed_form(equation="7.4", page="07-decisions")
def best_relative_exit(exponent: Operand) -> Operand:
    r"""Relative depth e/d of the exit with the lowest latency: $x^* = a/(a+1)$.

    For a match rate that grows as a power of the relative depth, $p = c\,(e/d)^a$ with any
    $0 < c \le 1$, and a depth $D \ge 1/a$.

    Args:
        exponent: a; positive. It is large where only late exits guess well.

    Returns:
        Relative depth in (0, 1).

    >>> best_relative_exit(3)
    0.75
    """
    return exponent / (exponent + 1)


@closed_form(equation="7.5", page="07-decisions")
def best_exit(exponent: Operand, layers: Operand) -> Operand:
    r"""Exit layer with the lowest latency, for a match rate that is a power of the depth.

    It is the better neighbour of the optimum d a/(a+1). With $e_0 = \lfloor d a/(a+1) \rfloor$
    it is $e_0$ if $(e_0/(e_0+1))^a (d - e_0) > d - e_0 - 1$, else $e_0 + 1$, and at least 1. Of two
    equally fast layers it is the later one, which needs less compute.

    Args:
        exponent: a of $p = c\,(e/d)^a$; positive; for unlimited depth, or a depth D with
            (D+1)e >= d at the layer below the result too.
        layers: d, decoder layers; a whole number.

    Returns:
        A whole exit layer; `layers` itself where no earlier exit saves time.

    >>> best_exit(3, layers=30)
    22
    """
    lower = ops.floor(layers * best_relative_exit(exponent))
    upper = lower + 1
    lead = (lower / upper) ** exponent * (layers - lower) - (layers - upper)
    return ops.maximum(upper - ops.step(lead), 1)


@closed_form(equation="7.6", page="07-decisions")
def threshold(price: Operand) -> Operand:
    r"""Probability from which a guess is worth starting, at a given price: $1/(1+\pi)$.

    At depth 1 and e >= d/2. With calibrated probabilities, starting exactly the guesses at or above
    it is the best policy at one exit.

    Args:
        price: pi, the most extra layer executions that one layer time saved is worth; >= 0.

    Returns:
        A probability in (0, 1].

    >>> threshold(3)
    0.25
    """
    return 1 / (1 + price)


@closed_form(equation="7.7", page="07-decisions")
def start_worth(
    p_correct: Operand, layers: Operand, exit_layer: Operand, price: Operand
) -> Operand:
    r"""What starting one guess takes off price times latency plus compute, on average.

    $G = (d-e)\,\bigl[(\pi + 1)\,p - 1\bigr]$: at depth 1 and e >= d/2; 0 at the threshold (7.6).

    Args:
        p_correct: p, probability that the guess matches, or its outcome, 1 or 0; in [0, 1].
        layers: d, decoder layers; positive.
        exit_layer: e, where it is started; 0 < e <= d.
        price: pi, the most extra layer executions that one layer time saved is worth; >= 0.

    Returns:
        Layer executions; negative where the guess is not worth its price.

    >>> start_worth(0.5, 40, 20, price=3)
    20.0
    """
    return (layers - exit_layer) * ((price + 1) * p_correct - 1)
