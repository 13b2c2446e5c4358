"""Closed forms of PPD at depth 1 in seconds: heads, delays, contention and the layer in flight.

All times are in one unit of the user's choice. The schedule is that of theory/10-seconds.md.
"""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="10.1", page="10-seconds")
def calibrated_latency(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    layer_time: Operand,
    busy_layer_time: Operand,
    batch_layer_time: Operand,
    head_time: Operand = 0,
    exit_time: Operand = 0,
    token_time: Operand = 0,
    start_delay: Operand = 0,
    promotion_delay: Operand = 0,
    unfinished: Operand = 0.5,
) -> Operand:
    r"""Mean time between tokens on real units, at depth 1.

    $T = a + e \tau + R - p \theta \bigl[a - m + n \tau - \phi (\tau_k - \tau)\bigr]$ with
    $R = (d-e) \tau_b + h$, $n = \max(R - s - x, 0) / \tau_k$, $\theta = \lceil \min(n, 1) \rceil$.

    R is the time from the exit to the verification, n the layers that a sub-process has run by
    then, and theta is 0 where the guesses come too late to be used. For n <= e; for earlier exits
    `calibrated_early_latency`.

    It needs only the matches' long-run rate.

    Args:
        p_correct: p, match rate of the k guesses; in [0, 1], any shape.
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        layer_time: tau, a layer of the main process while the other device is idle; positive.
        busy_layer_time: tau_b, a layer of the main process while sub-processes run; positive.
        batch_layer_time: tau_k, a layer of the batch of k sub-processes; positive.
        head_time: h, final norm, head and token selection while sub-processes run; >= 0.
        exit_time: x, reading the exit on the sub-processes' device; >= 0.
        token_time: a, fixed time per token that starts from layer 0; >= 0.
        start_delay: s, from the end of layer e to the start of reading the exit; >= 0.
        promotion_delay: m, pause of a promoted process before its next layer; >= 0.
        unfinished: phi, mean share of a batch layer that is left at a verification; in [0, 1]: 1/2
            where it falls anywhere in a layer, 0 for synchronized devices, ceil(n) - n for constant
            times.

    Returns:
        Latency per token, in the unit of the times.

    >>> round(calibrated_latency(0.5, 30, 20, 1.0, 1.0, 1.5, head_time=6, exit_time=6), 4)
    32.7917
    """
    rest = _rest(layers, exit_layer, busy_layer_time, head_time)
    missed = token_time + exit_layer * layer_time + rest
    ahead = _ahead(rest, start_delay, exit_time, batch_layer_time)
    saved = _saved(ahead, layer_time, batch_layer_time, token_time, promotion_delay, unfinished)
    return missed - p_correct * saved


def _rest(
    layers: Operand, exit_layer: Operand, busy_layer_time: Operand, head_time: Operand
) -> Operand:
    """R of equation (10.1): the time from the exit to the verification."""
    return (layers - exit_layer) * busy_layer_time + head_time


def _ahead(
    rest: Operand, start_delay: Operand, exit_time: Operand, batch_layer_time: Operand
) -> Operand:
    """The n of equation (10.1): layers that sub-processes have run at the verification."""
    return ops.maximum(rest - start_delay - exit_time, 0) / batch_layer_time


def _saved(
    ahead: Operand,
    layer_time: Operand,
    batch_layer_time: Operand,
    token_time: Operand,
    promotion_delay: Operand,
    unfinished: Operand,
) -> Operand:
    """The time that a match saves, equation (10.1): theta times the bracket."""
    late = unfinished * (batch_layer_time - layer_time)
    return _in_time(ahead) * (token_time - promotion_delay + ahead * layer_time - late)


def _in_time(ahead: Operand) -> Operand:
    """Theta of equation (10.1): 1 if the guesses come before the verification, else 0."""
    return ops.ceil(ops.minimum(ahead, 1))


@closed_form(equation="10.2", page="10-seconds")
def calibrated_plain_latency(
    layers: Operand, layer_time: Operand, plain_head_time: Operand = 0, token_time: Operand = 0
) -> Operand:
    r"""Time per token of plain decoding on one unit: $T_0 = a + d \tau + h_0$.

    Args:
        layers: d, decoder layers; positive.
        layer_time: tau, one layer; positive.
        plain_head_time: h_0, final norm, head and token selection; >= 0.
        token_time: a, fixed time per token; >= 0.

    Returns:
        Latency per token, in the unit of the times.

    >>> calibrated_plain_latency(30, 1.0, plain_head_time=6)
    36.0
    """
    return token_time + layers * layer_time + plain_head_time


@closed_form(equation="10.3", page="10-seconds")
def calibrated_speedup(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    layer_time: Operand,
    busy_layer_time: Operand,
    batch_layer_time: Operand,
    plain_head_time: Operand,
    head_time: Operand,
    exit_time: Operand = 0,
    token_time: Operand = 0,
    start_delay: Operand = 0,
    promotion_delay: Operand = 0,
    unfinished: Operand = 0.5,
) -> Operand:
    r"""Plain decoding's latency on one unit over PPD's, $T_0 / T$.

    Args: as `calibrated_latency` and `calibrated_plain_latency`.

    Returns:
        A ratio; below 1 where PPD is slower.

    >>> round(calibrated_speedup(0.5, 30, 20, 1.0, 1.0, 1.5, 6, 6, exit_time=6), 4)
    1.0978
    """
    plain = calibrated_plain_latency(layers, layer_time, plain_head_time, token_time)
    return plain / calibrated_latency(
        p_correct, layers, exit_layer, layer_time, busy_layer_time, batch_layer_time,
        head_time, exit_time, token_time, start_delay, promotion_delay, unfinished,
    )  # fmt: skip


@closed_form(equation="10.4", page="10-seconds")
def calibrated_break_even(
    layers: Operand,
    exit_layer: Operand,
    layer_time: Operand,
    busy_layer_time: Operand,
    batch_layer_time: Operand,
    plain_head_time: Operand,
    head_time: Operand,
    exit_time: Operand = 0,
    token_time: Operand = 0,
    start_delay: Operand = 0,
    promotion_delay: Operand = 0,
    unfinished: Operand = 0.5,
) -> Operand:
    r"""Match rate above which PPD saves time against plain decoding on one unit.

    $p_0 = [(d-e)(\tau_b - \tau) + h - h_0] / \max(S, 0)$ with the time that a match saves,
    $S = \theta \bigl[a - m + n \tau - \phi (\tau_k - \tau)\bigr]$,
    $n = \max((d-e) \tau_b + h - s - x, 0) / \tau_k$, $\theta = \lceil \min(n, 1) \rceil$.

    For n <= e.

    Args: as `calibrated_latency` and `calibrated_plain_latency`.

    Returns:
        A match rate; above 1 where none is enough, `inf` where a match saves no time although
        sub-processes slow the main process down.

    >>> round(calibrated_break_even(30, 20, 1.0, 1.03, 1.5, 6, 6.2, exit_time=6), 4)
    0.0741
    """
    slower = (layers - exit_layer) * (busy_layer_time - layer_time) + head_time - plain_head_time
    rest = _rest(layers, exit_layer, busy_layer_time, head_time)
    ahead = _ahead(rest, start_delay, exit_time, batch_layer_time)
    saved = _saved(ahead, layer_time, batch_layer_time, token_time, promotion_delay, unfinished)
    return ops.divide(slower, ops.maximum(saved, 0))


@closed_form(equation="10.5", page="10-seconds")
def calibrated_compute(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    k: Operand,
    busy_layer_time: Operand,
    batch_layer_time: Operand,
    head_time: Operand = 0,
    exit_time: Operand = 0,
    start_delay: Operand = 0,
    unfinished: Operand = 0.5,
) -> Operand:
    r"""Mean layer executions per token on real units, the head and the exit's own head included.

    $C = d + (h + x) / \tau_b + (k - p)\, \theta\, (n + \phi)$ with
    $n = \max((d-e) \tau_b + h - s - x, 0) / \tau_k$, $\theta = \lceil \min(n, 1) \rceil$.

    A head counts as its time over that of a layer, while sub-processes run. The layer in flight at
    a verification is completed. For n <= e.

    Args: as `calibrated_latency`; k is the guesses per exit, the rows of the batch; >= 1.

    Returns:
        Layer executions per token; plain decoding's are d + h_0 / tau.

    >>> round(calibrated_compute(0.5, 30, 20, 3, 1.0, 1.5, head_time=6, exit_time=6), 4)
    59.9167
    """
    rest = _rest(layers, exit_layer, busy_layer_time, head_time)
    ahead = _ahead(rest, start_delay, exit_time, batch_layer_time)
    heads = (head_time + exit_time) / busy_layer_time
    return layers + heads + (k - p_correct) * _in_time(ahead) * (ahead + unfinished)


@closed_form(equation="10.6", page="10-seconds")
def calibrated_busy_time(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    layer_time: Operand,
    busy_layer_time: Operand,
    batch_layer_time: Operand,
    head_time: Operand = 0,
    exit_time: Operand = 0,
    token_time: Operand = 0,
    start_delay: Operand = 0,
    unfinished: Operand = 0.5,
) -> Operand:
    r"""Mean time per token that the two units are at work, added up.

    $B = a + e \tau + (d-e) \tau_b + h + x
    + \theta \bigl[(n + \phi) \tau_k - p (a + (n + \phi) \tau)\bigr]$ with
    $n = \max((d-e) \tau_b + h - s - x, 0) / \tau_k$, $\theta = \lceil \min(n, 1) \rceil$.

    Delays count as idle time. The two devices are reserved for 2 T. For n <= e.

    Args: as `calibrated_latency`.

    Returns:
        Device time per token, in the unit of the times.

    >>> round(calibrated_busy_time(0.5, 30, 20, 1.0, 1.0, 1.5, head_time=6, exit_time=6), 4)
    49.1667
    """
    rest = _rest(layers, exit_layer, busy_layer_time, head_time)
    ahead = _ahead(rest, start_delay, exit_time, batch_layer_time)
    begun = ahead + unfinished
    missed = token_time + exit_layer * layer_time + rest
    kept = p_correct * (token_time + begun * layer_time)
    return missed + exit_time + _in_time(ahead) * (begun * batch_layer_time - kept)


@closed_form(equation="10.10", page="10-seconds")
def calibrated_head_start(
    layers: Operand,
    exit_layer: Operand,
    busy_layer_time: Operand,
    batch_layer_time: Operand,
    head_time: Operand = 0,
    exit_time: Operand = 0,
    start_delay: Operand = 0,
) -> Operand:
    r"""Layers that the sub-processes have run when the verdict falls, shares of one included.

    $n = \max((d-e) \tau_b + h - s - x, 0) / \tau_k$: the closed forms of this page need n <= e.

    Args: as `calibrated_latency`.

    Returns:
        Layers; 0 where the guesses come too late.

    >>> calibrated_head_start(30, 20, 1.0, 2.0, head_time=6, exit_time=6)
    5.0
    """
    rest = _rest(layers, exit_layer, busy_layer_time, head_time)
    return _ahead(rest, start_delay, exit_time, batch_layer_time)


@closed_form(equation="10.8", page="10-seconds")
def calibrated_unfinished(
    layers: Operand,
    exit_layer: Operand,
    busy_layer_time: Operand,
    batch_layer_time: Operand,
    head_time: Operand = 0,
    exit_time: Operand = 0,
    start_delay: Operand = 0,
) -> Operand:
    r"""Share of a batch layer that is left at a verdict, for times that never vary.

    $\phi = \lceil n \rceil - n$ with $n = \max((d-e) \tau_b + h - s - x, 0) / \tau_k$.

    Args: as `calibrated_latency`.

    Returns:
        The argument `unfinished` of the other closed forms, in [0, 1).

    >>> round(calibrated_unfinished(30, 20, 1.0, 1.5, head_time=6, exit_time=6), 4)
    0.3333
    """
    rest = _rest(layers, exit_layer, busy_layer_time, head_time)
    ahead = _ahead(rest, start_delay, exit_time, batch_layer_time)
    return ops.ceil(ahead) - ahead


@closed_form(equation="10.9", page="10-seconds")
def calibrated_plain_compute(
    layers: Operand, layer_time: Operand, plain_head_time: Operand = 0
) -> Operand:
    r"""Layer executions per token of plain decoding, its head included: $C_0 = d + h_0 / \tau$.

    Args:
        layers: d, decoder layers; positive.
        layer_time: tau, one layer; positive.
        plain_head_time: h_0, final norm, head and token selection; >= 0.

    Returns:
        Layer executions per token, comparable with `calibrated_compute`.

    >>> calibrated_plain_compute(30, 1.0, plain_head_time=6)
    36.0
    """
    return layers + plain_head_time / layer_time
