"""Closed forms of predictive pipelined decoding (PPD) with one exit, in steady state.

Each function runs on floats, NumPy arrays (broadcasting), torch tensors (autograd) and SymPy
symbols. One layer of one process takes one unit of time. The derivations are in `theory/`.
"""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="2.1", page="02-latency")
def latency_per_token(
    p_correct: Operand, layers: Operand, exit_layer: Operand, depth: Operand = 1
) -> Operand:
    r"""Mean time between tokens, in layer times.

    $\Lambda = (1-p)\,d + p\,e + g\,p^{D+1} / \sum_{j=0}^{D} p^j$ with
    $g = \max(d - (D+1)\,e,\ 0)$.

    For (D+1)e < d it needs independent matches; otherwise only their long-run rate.

    Args:
        p_correct: p, match rate: probability that the next token is among the exit's guesses; in
            [0, 1], any shape.
        layers: d, decoder layers; positive.
        exit_layer: e, layer after which the guesses are read; 0 < e <= d; e = d means no PPD.
        depth: D, tokens that may be in flight beyond the one being verified; a whole number >= 1,
            or None for unlimited.

    Returns:
        Latency per token in layer times, broadcast over the arguments.

    >>> latency_per_token(0.7, 40, 20)
    26.0
    """
    return _latency(p_correct, layers, exit_layer, depth)


def _latency(p: Operand, layers: Operand, exit_layer: Operand, depth: Operand) -> Operand:
    """Equation (2.1) at any match rate, also that of a gated exit."""
    wait = ops.maximum(layers - (depth + 1) * exit_layer, 0)
    run = ops.sum(lambda j: p**j, 0, depth)
    return layers - p * (layers - exit_layer) + wait * p ** (depth + 1) / run


@closed_form(equation="2.3", page="02-latency")
def normalized_latency(
    p_correct: Operand, layers: Operand, exit_layer: Operand, depth: Operand = 1
) -> Operand:
    r"""Latency per token relative to plain decoding, $\Lambda / d$.

    Args: as `latency_per_token`.

    Returns:
        A ratio; at most 1, and at least e/d with unlimited depth.

    >>> normalized_latency(0.7, 40, 20)
    0.65
    """
    return latency_per_token(p_correct, layers, exit_layer, depth) / layers


@closed_form(equation="2.4", page="02-latency")
def speedup(
    p_correct: Operand, layers: Operand, exit_layer: Operand, depth: Operand = 1
) -> Operand:
    r"""Plain decoding's latency over PPD's, $d / \Lambda$.

    Args: as `latency_per_token`.

    Returns:
        A ratio, at least 1.

    >>> round(speedup(0.7, 40, 20), 4)
    1.5385
    """
    return layers / latency_per_token(p_correct, layers, exit_layer, depth)


@closed_form(equation="3.1", page="03-compute")
def compute_per_token(
    p_correct: Operand, layers: Operand, exit_layer: Operand, k: Operand = 1, depth: Operand = 1
) -> Operand:
    r"""Mean layer executions per token, dropped sub-processes included.

    $C = d + (k-p) \sum_{g=1}^{D} k^{g-1} [a_g Q_g + b_g (1 - Q_g)]$, where the sum is what one
    dropped sub-process and its descendants execute: $a_g = \max(d-ge, 0)$,
    $b_g = \min(a_g, (D+1-g)e)$, $Q_g = \sum_{j=0}^{D-g} p^j / \sum_{j=0}^{D} p^j$.

    Args:
        p_correct: p, match rate of all k guesses together; in [0, 1].
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        k: guesses per exit, which is the number of sub-processes started; >= 1.
        depth: D; a whole number >= 1, or None for unlimited.

    Returns:
        Layer executions per token; `inf` where k**D is too large for a float.

    >>> compute_per_token(0.7, 40, 20)
    46.0
    """
    return layers + (k - p_correct) * _dropped_family(p_correct, layers, exit_layer, k, depth)


def _dropped_family(
    p: Operand, layers: Operand, exit_layer: Operand, k: Operand, depth: Operand
) -> Operand:
    """The sum in equation (3.1): what one dropped sub-process and its descendants execute."""
    run = ops.sum(lambda j: p**j, 0, depth)

    def generation(g: Operand) -> Operand:
        free = ops.maximum(layers - g * exit_layer, 0)
        held = ops.minimum(free, (depth + 1 - g) * exit_layer)
        share = ops.sum(lambda j: p**j, 0, depth - g) / run
        return k ** (g - 1) * (free * share + held * (1 - share))

    return ops.sum(generation, 1, depth)


@closed_form(equation="3.4", page="03-compute")
def normalized_compute(
    p_correct: Operand, layers: Operand, exit_layer: Operand, k: Operand = 1, depth: Operand = 1
) -> Operand:
    r"""Layer executions per token relative to plain decoding, $C / d$.

    Args: as `compute_per_token`.

    Returns:
        A ratio, at least 1.

    >>> normalized_compute(0.7, 40, 20)
    1.15
    """
    return compute_per_token(p_correct, layers, exit_layer, k, depth) / layers


@closed_form(equation="3.5", page="03-compute")
def mean_units(
    p_correct: Operand, layers: Operand, exit_layer: Operand, k: Operand = 1, depth: Operand = 1
) -> Operand:
    r"""Processes that run at the same time, averaged over time: $C / \Lambda$.

    Args: as `compute_per_token`.

    Returns:
        Processes.

    >>> round(mean_units(0.7, 40, 20), 4)
    1.7692
    """
    work = compute_per_token(p_correct, layers, exit_layer, k, depth)
    return work / latency_per_token(p_correct, layers, exit_layer, depth)


@closed_form(equation="3.6", page="03-compute")
def peak_units(layers: Operand, exit_layer: Operand, k: Operand = 1, depth: Operand = 1) -> Operand:
    r"""Most processes at the same time: $\sum_{j=0}^{\min(D, \lceil d/e \rceil - 1)} k^j$.

    Args: as `compute_per_token`.

    Returns:
        Processes, for a generation longer than the depth.

    >>> peak_units(40, 20, k=3)
    4
    """
    generations = ops.minimum(depth, ops.ceil(layers / exit_layer) - 1)
    return ops.sum(lambda j: k**j, 0, generations)


@closed_form(equation="3.7", page="03-compute")
def reserved_units(
    p_correct: Operand, layers: Operand, exit_layer: Operand, k: Operand = 1, depth: Operand = 1
) -> Operand:
    r"""Layer slots per token when the peak is held all the time.

    $\Lambda \sum_{j=0}^{\min(D, \lceil d/e \rceil - 1)} k^j$.

    Args: as `compute_per_token`.

    Returns:
        Layer slots per token, busy or idle; never less than `compute_per_token`.

    >>> reserved_units(0.7, 40, 20)
    52.0
    """
    peak = peak_units(layers, exit_layer, k, depth)
    return peak * latency_per_token(p_correct, layers, exit_layer, depth)
