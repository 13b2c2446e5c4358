"""Closed forms of PPD with one gated exit: guesses only where the exit is confident enough."""

from __future__ import annotations

from .contract import closed_form
from .ops import Operand
from .ppd import _dropped_family, _latency


@closed_form(equation="6.4", page="06-exits-and-gates")
def gated_latency(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    share: Operand,
    depth: Operand = 1,
) -> Operand:
    r"""Mean time between tokens when only a share of them passes the gate, in layer times.

    A token matches when it passes the gate and a guess matches, with probability $s\,p_s$:
    $\Lambda_s = d - s\,p_s (d-e) + g (s\,p_s)^{D+1} / \sum_{j=0}^{D} (s\,p_s)^j$,
    $g = \max(d - (D+1)e, 0)$.

    For (D+1)e < d it needs tokens that are independent of each other; otherwise only their long-run
    rates.

    Args:
        p_correct: p_s, match rate of the tokens that pass the gate; in [0, 1], any shape.
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        share: s, share of tokens that pass; in [0, 1]; 1 is PPD without a gate.
        depth: D; a whole number >= 1, or None for unlimited.

    Returns:
        Latency per token in layer times, broadcast over the arguments.

    >>> gated_latency(0.9, 40, 20, share=0.5)
    31.0
    """
    return _latency(share * p_correct, layers, exit_layer, depth)


@closed_form(equation="6.5", page="06-exits-and-gates")
def gated_compute(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    share: Operand,
    k: Operand = 1,
    depth: Operand = 1,
) -> Operand:
    r"""Mean layer executions per token when only a share of tokens passes the gate.

    $C_s = d + s\,(k - p_s) \sum_{g=1}^{D} (s k)^{g-1} [a_g Q_g + b_g (1 - Q_g)]$,
    with $a_g$, $b_g$ as in `compute_per_token` and
    $Q_g = \sum_{j=0}^{D-g} (s p_s)^j / \sum_{j=0}^{D} (s p_s)^j$.

    At depth 1 the price of a layer saved is `exchange_rate(p_correct, k)`, whatever the share is:
    (6.6).

    Args:
        p_correct: p_s, match rate of the tokens that pass the gate; in [0, 1].
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        share: s, share of processes that pass, true or wrong (wrong ones matter only for D >= 2);
            in [0, 1].
        k: guesses per exit; >= 1.
        depth: D; a whole number >= 1, or None for unlimited.

    Returns:
        Layer executions per token.

    >>> gated_compute(0.9, 40, 20, share=0.5, k=3)
    61.0
    """
    family = _dropped_family(share * p_correct, layers, exit_layer, share * k, depth)
    return layers + share * (k - p_correct) * family
