"""Closed forms of PPD with matches that form a two-state Markov chain.

A match follows a match with probability b = p + rho (1-p) and a miss with p (1 - rho); p is the
long-run match rate and rho the lag-1 autocorrelation. rho = 0 gives the independent forms.
"""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="5.2", page="05-correlation")
def correlated_latency(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    depth: Operand = 1,
    autocorrelation: Operand = 0,
) -> Operand:
    r"""Mean time between tokens with Markov-correlated matches, in layer times.

    $\Lambda_\rho = d - p (d-e) + g\,p\,b^{D} / \sum_{j=0}^{D} b^j$ with $b = p + \rho (1-p)$
    and $g = \max(d - (D+1)e, 0)$.

    Args:
        p_correct: p, long-run match rate; in [0, 1], any shape.
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        depth: D; a whole number >= 1, or None for unlimited.
        autocorrelation: rho, lag-1 autocorrelation of the matches; in [-1, 1), and not below
            -p/(1-p) or -(1-p)/p.

    Returns:
        Latency per token in layer times, broadcast over the arguments.

    >>> round(correlated_latency(0.5, 8, 1, autocorrelation=0.6), 4)
    5.8333
    """
    again = p_correct + autocorrelation * (1 - p_correct)
    wait = ops.maximum(layers - (depth + 1) * exit_layer, 0)
    run = ops.sum(lambda j: again**j, 0, depth)
    return layers - p_correct * (layers - exit_layer) + wait * p_correct * again**depth / run


@closed_form(equation="5.3", page="05-correlation")
def correlated_compute(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    k: Operand = 1,
    depth: Operand = 1,
    autocorrelation: Operand = 0,
) -> Operand:
    r"""Mean layer executions per token with Markov-correlated matches.

    $C_\rho = d + \sum_{g=1}^{D} k^{g-1} [b_g (k-p) + (a_g - b_g)(k\,\Pi_g - M_g)]$ with $a_g$,
    $b_g$ as in `compute_per_token`, $b = p + \rho (1-p)$, $B = \sum_{j=0}^{D} b^j$,
    $\Pi_g = 1 - p + p\,(b^D + \sum_{j=0}^{D-g-1} b^j)/B$, $M_g = p \sum_{j=0}^{D-g} b^j / B$.

    Args:
        p_correct: p, long-run match rate; in [0, 1].
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        k: guesses per exit; >= 1.
        depth: D; a whole number >= 1, or None for unlimited.
        autocorrelation: rho, as in `correlated_latency`.

    Returns:
        Layer executions per token.

    >>> round(correlated_compute(0.5, 8, 1, autocorrelation=0.6), 4)
    11.1667
    """
    again = p_correct + autocorrelation * (1 - p_correct)
    run = ops.sum(lambda j: again**j, 0, depth)

    def generation(g: Operand) -> Operand:
        free = ops.maximum(layers - g * exit_layer, 0)
        held = ops.minimum(free, (depth + 1 - g) * exit_layer)
        earlier = again**depth + ops.sum(lambda j: again**j, 0, depth - g - 1)
        tokens = 1 - p_correct + p_correct * earlier / run
        matches = p_correct * ops.sum(lambda j: again**j, 0, depth - g) / run
        return k ** (g - 1) * (held * (k - p_correct) + (free - held) * (k * tokens - matches))

    return layers + ops.sum(generation, 1, depth)


@closed_form(equation="5.4", page="05-correlation")
def correlated_total_latency(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    tokens: Operand,
    depth: Operand = 1,
    autocorrelation: Operand = 0,
) -> Operand:
    r"""Mean time to generate a number of tokens with Markov-correlated matches, in layer times.

    $E[T_\ell] = d\ell - (\ell-1)\,p\,(d-e) + g\,p \sum_{m=1}^{\lfloor (\ell-1)/(D+1) \rfloor}
    b^{m(D+1)-1} [1 + (1-b)(\ell - 1 - m(D+1))]$ with $b = p + \rho (1-p)$ and
    $g = \max(d - (D+1)e, 0)$; the first match has probability p.

    Args:
        p_correct: p, long-run match rate; in [0, 1].
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        tokens: l, tokens to generate; a whole number >= 1.
        depth: D; a whole number >= 1, or None for unlimited.
        autocorrelation: rho, as in `correlated_latency`.

    Returns:
        Expected total latency in layer times.

    >>> round(correlated_total_latency(0.5, 8, 1, 3, autocorrelation=0.6), 4)
    19.4
    """
    again = p_correct + autocorrelation * (1 - p_correct)
    size = depth + 1
    wait = ops.maximum(layers - size * exit_layer, 0)
    groups = ops.sum(
        lambda m: again ** (m * size - 1) * (1 + (1 - again) * (tokens - 1 - m * size)),
        1,
        ops.floor((tokens - 1) / size),
    )
    saved = (tokens - 1) * p_correct * (layers - exit_layer)
    return layers * tokens - saved + wait * p_correct * groups


@closed_form(equation="5.5", page="05-correlation")
def total_latency_variance(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    tokens: Operand,
    autocorrelation: Operand = 0,
) -> Operand:
    r"""Variance of the time to generate a number of tokens, for (D+1)e >= d.

    $\mathrm{Var}[T_\ell] = (d-e)^2\,p(1-p)\,[\ell - 1 + 2 \sum_{h=1}^{\ell-2}
    (\ell - 1 - h)\,\rho^h]$.

    Args:
        p_correct: p, long-run match rate; in [0, 1].
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        tokens: l, tokens to generate; a whole number >= 1.
        autocorrelation: rho, as in `correlated_latency`.

    Returns:
        Variance in squared layer times. For shallower schedules use `total_latency(...).std`.

    >>> round(total_latency_variance(0.7, 40, 20, tokens=101), 4)
    8400.0
    """
    pairs = ops.sum(lambda h: (tokens - 1 - h) * autocorrelation**h, 1, tokens - 2)
    spread = p_correct * (1 - p_correct) * (layers - exit_layer) ** 2
    return spread * (tokens - 1 + 2 * pairs)
