"""Closed forms of PPD and of tensor parallelism on the same linked devices.

`link_time` is the one-way time of a small message between devices; all times are in one unit of
the user's choice. theory/11-when-ppd-pays.md derives the forms and states what they leave out.
"""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="11.1", page="11-when-ppd-pays")
def tensor_parallel_linked_latency(
    layers: Operand,
    units: Operand,
    layer_time: Operand,
    all_reduce_time: Operand,
    head_time: Operand = 0,
    efficiency: Operand = 1,
) -> Operand:
    r"""Time per token when every layer and the head are split over N linked units.

    $T_N = d \bigl[\tau / (N \eta) + 2 r\bigr] + h / (N \eta) + r$: two all-reduces a layer, one for
    the head.

    Args:
        layers: d, decoder layers; positive.
        units: N; a whole number >= 1.
        layer_time: tau, a layer on one unit; positive.
        all_reduce_time: r, an all-reduce of a small message; >= 0; 0 for one unit. With link_time
            delta: delta for two units, ceil(log2 N) delta by recursive doubling, twice that by a
            tree, 2 (N - 1) delta around a ring.
        head_time: h, the head on one unit; >= 0.
        efficiency: eta, parallel speed-up over N, without the link; positive; 1 is perfect.

    Returns:
        Latency per token, in the unit of the times.

    >>> tensor_parallel_linked_latency(40, 2, 1.0, all_reduce_time=0.25, head_time=6)
    43.25
    """
    split = (layers * layer_time + head_time) / (units * efficiency)
    return split + (2 * layers + 1) * all_reduce_time


@closed_form(equation="11.2", page="11-when-ppd-pays")
def ppd_linked_latency(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    link_time: Operand,
    layer_time: Operand,
    head_time: Operand = 0,
    exit_time: Operand = 0,
    messages_per_match: Operand = 1,
) -> Operand:
    r"""Mean time between tokens of PPD on linked units, a process on each, at depth 1.

    $T_P = d \tau + h - p \max\bigl((d-e) \tau + h - x - q \delta, 0\bigr)$.

    For 2 e tau + x >= d tau + h.

    Args:
        p_correct: p, match rate of the N - 1 guesses that N units can start; in [0, 1], any shape.
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        link_time: delta, a small message one way; >= 0.
        layer_time: tau, a layer on one unit; positive.
        head_time: h, the head on one unit; >= 0.
        exit_time: x, reading the exit; >= 0.
        messages_per_match: q, sequential messages that delay a match; >= 0; 1 is the state at the
            exit; more if the promotion needs messages too.

    Returns:
        Latency per token, in the unit of the times.

    >>> round(ppd_linked_latency(0.7, 40, 20, 0.25, 1.0, head_time=6, exit_time=6), 4)
    32.175
    """
    lead = (layers - exit_layer) * layer_time + head_time - exit_time
    saved = ops.maximum(lead - messages_per_match * link_time, 0)
    return layers * layer_time + head_time - p_correct * saved


@closed_form(equation="11.3", page="11-when-ppd-pays")
def link_break_even(
    p_correct: Operand,
    layers: Operand,
    exit_layer: Operand,
    units: Operand,
    layer_time: Operand,
    head_time: Operand = 0,
    exit_time: Operand = 0,
    efficiency: Operand = 1,
    all_reduce_messages: Operand = 1,
    messages_per_match: Operand = 1,
) -> Operand:
    r"""Time of a message above which PPD beats splitting every layer over the same units.

    $\delta_0 = \max\bigl(\min\bigl(G / [(2d+1) \mu],
    (G - p [(d-e) \tau + h - x]) / [(2d+1) \mu - p q]\bigr), 0\bigr)$ with
    $G = (d \tau + h) (1 - 1/(N \eta))$.

    For 2 e tau + x >= d tau + h.

    Args:
        p_correct: p, and the rest: as `ppd_linked_latency` and `tensor_parallel_linked_latency`.
        layers: d.
        exit_layer: e.
        units: N.
        layer_time: tau.
        head_time: h.
        exit_time: x.
        efficiency: eta.
        all_reduce_messages: mu, sequential messages of an all-reduce, r = mu delta; >= 1.
        messages_per_match: q; below 2 d + 1.

    Returns:
        A link time, in the unit of the times; 0 where PPD wins on any link. At p = 0 it is the link
        time above which one device beats tensor parallelism.

    >>> round(link_break_even(0.7, 40, 20, 2, 1.0, head_time=6, exit_time=6), 4)
    0.1121
    """
    gain = (layers * layer_time + head_time) * (1 - 1 / (units * efficiency))
    messages = (2 * layers + 1) * all_reduce_messages
    lead = (layers - exit_layer) * layer_time + head_time - exit_time
    paid = (gain - p_correct * lead) / (messages - p_correct * messages_per_match)
    return ops.maximum(ops.minimum(gain / messages, paid), 0)
