"""Closed forms of a generation of a given number of tokens by PPD."""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="4.1", page="04-finite-generations")
def expected_total_latency(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    tokens: Operand,
    depth: Operand = 1,
) -> Operand:
    r"""Mean time from the start of the first token to the end of the last, in layer times.

    $E[T_\ell] = d\ell - (\ell-1)\,p\,(d-e) + g \sum_{m=1}^{\lfloor (\ell-1)/(D+1) \rfloor}
    p^{m(D+1)} [1 + (1-p)(\ell - 1 - m(D+1))]$, $g = \max(d - (D+1)e, 0)$.

    Args:
        p_correct: p, match rate; in [0, 1], any shape.
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        tokens: l, tokens to generate; a whole number >= 1.
        depth: D; a whole number >= 1, or None for unlimited.

    Returns:
        Expected total latency in layer times; `total_latency` gives the whole distribution.

    >>> expected_total_latency(0.7, 40, 20, tokens=101)
    2640.0
    """
    size = depth + 1
    wait = ops.maximum(layers - size * exit_layer, 0)
    groups = ops.sum(
        lambda m: p_correct ** (m * size) * (1 + (1 - p_correct) * (tokens - 1 - m * size)),
        1,
        ops.floor((tokens - 1) / size),
    )
    return layers * tokens - (tokens - 1) * p_correct * (layers - exit_layer) + wait * groups


@closed_form(equation="4.2", page="04-finite-generations")
def generation_time(
    layers: Operand,
    exit_layer: Operand,
    tokens: Operand,
    matches: Operand,
    groups: Operand,
    depth: Operand = 1,
) -> Operand:
    r"""Time of one generation whose matches are counted, in layer times.

    $T_\ell = d\ell - (d-e)\,h + g\,w$, $g = \max(d - (D+1)e, 0)$, whatever their order.

    Args:
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        tokens: l, tokens that were generated; a whole number >= 1.
        matches: h, tokens after the first that matched a guess; 0 ... l - 1.
        groups: w, matches that are number D+1, 2(D+1), ... of their run; 0 ... h/(D+1).
        depth: D; a whole number >= 1, or None for unlimited.

    Returns:
        Layer times from the start of the first token to the end of the last.

    >>> generation_time(40, 20, tokens=101, matches=70, groups=0)
    2640
    """
    wait = ops.maximum(layers - (depth + 1) * exit_layer, 0)
    return layers * tokens - (layers - exit_layer) * matches + wait * groups
