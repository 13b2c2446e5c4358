"""Closed forms of parallel drafting, pipelined speculation and tensor parallelism.

All are in layer times and layer executions of the target model.
"""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="8.6", page="08-other-methods")
def parallel_draft_latency(
    acceptance_rate: Operand, layers: Operand, block_tokens: Operand, draft_time: Operand = 0
) -> Operand:
    r"""Mean time per token when draft and target run at the same time, in layer times.

    $\Lambda = d\,\max(1, \gamma c)\,(1 + \alpha - \alpha^\gamma) / \sum_{j=0}^{\gamma-1} \alpha^j$.

    While the target runs once, the draft makes the next block of gamma tokens. After a rejection
    the target verifies one token, else gamma.

    The schedule is that of PEARL, arXiv 2408.11850; the formula is derived in `theory/`,
    not taken from the paper.

    Args:
        acceptance_rate: alpha, probability that a drafted token is accepted, given that those
            before it were; in [0, 1], any shape.
        layers: d, decoder layers of the target; positive.
        block_tokens: gamma, tokens drafted per cycle; a whole number >= 1; the best is the
            target's step time over the draft's.
        draft_time: c, time of a draft step over that of a target step; >= 0.

    Returns:
        Latency per token in layer times.

    >>> round(parallel_draft_latency(0.8, 40, 5, draft_time=0.2), 4)
    17.5193
    """
    full = ops.sum(lambda j: acceptance_rate**j, 0, block_tokens - 1)
    cycle = ops.maximum(1, block_tokens * draft_time)
    return layers * cycle * (1 + acceptance_rate - acceptance_rate**block_tokens) / full


@closed_form(equation="8.7", page="08-other-methods")
def parallel_draft_compute(
    acceptance_rate: Operand, layers: Operand, block_tokens: Operand, draft_compute: Operand = 0
) -> Operand:
    r"""Mean layer executions per token when draft and target run at the same time.

    $C = d\,[1 - \alpha^\gamma + \gamma\alpha + \gamma \hat c\,(1 + \alpha - \alpha^\gamma)] /
    \sum_{j=0}^{\gamma-1} \alpha^j$.

    Args:
        acceptance_rate: alpha, as in `parallel_draft_latency`.
        layers: d, decoder layers of the target; positive.
        block_tokens: gamma, tokens drafted per cycle; a whole number >= 1.
        draft_compute: c-hat, operations of a draft step over those of a target step; >= 0.

    Returns:
        Target-layer executions per token, one per layer and verified position.

    >>> round(parallel_draft_compute(0.8, 40, 5, draft_compute=0.2), 4)
    73.1157
    """
    full = ops.sum(lambda j: acceptance_rate**j, 0, block_tokens - 1)
    missed = 1 - acceptance_rate**block_tokens
    target = missed + block_tokens * acceptance_rate
    draft = block_tokens * draft_compute * (missed + acceptance_rate)
    return layers * (target + draft) / full


@closed_form(equation="8.8", page="08-other-methods")
def pipelined_latency(
    acceptance_rate: Operand, layers: Operand, stages: Operand, draft_layers: Operand = 0
) -> Operand:
    r"""Mean time per token of a pipeline that is fed with drafted tokens, in layer times.

    $\Lambda = (d/n + L)\,[\alpha + n(1-\alpha)]$: one cycle after an accepted token, n after a
    rejected one, which flushes the pipeline.

    The schedules are those of SPD, arXiv 2605.30852, and PPSD, arXiv 2509.19368. With L = 0 it is
    PPD's own latency at k = 1, e = d/n, unlimited depth.

    Args:
        acceptance_rate: alpha, probability that a drafted token is accepted, given that those
            before it were; in [0, 1], any shape.
        layers: d, decoder layers; positive.
        stages: n, stages of d/n layers; a whole number >= 1.
        draft_layers: L, time that the draft adds to a cycle, in layer times; >= 0; 0 where it runs
            in parallel with the stages.

    Returns:
        Latency per token in layer times.

    >>> round(pipelined_latency(0.8, 40, stages=4), 4)
    16.0
    """
    cycle = layers / stages + draft_layers
    return cycle * (acceptance_rate + stages * (1 - acceptance_rate))


@closed_form(equation="8.9", page="08-other-methods")
def pipelined_compute(
    acceptance_rate: Operand, layers: Operand, stages: Operand, draft_layers: Operand = 0
) -> Operand:
    r"""Mean layer executions per token of a pipeline that is fed with drafted tokens.

    $C = d + (1-\alpha)\,d\,(n-1)/2 + L\,[1 + (1-\alpha)(n-1)]$.

    Args:
        acceptance_rate: alpha, as in `pipelined_latency`.
        layers: d, decoder layers; positive.
        stages: n, stages of d/n layers; a whole number >= 1.
        draft_layers: L, what drafting one token costs, in layer executions; >= 0.

    Returns:
        Layer executions per token.

    >>> round(pipelined_compute(0.8, 40, stages=4), 4)
    52.0
    """
    flushed = (1 - acceptance_rate) * (stages - 1)
    return layers + flushed * layers / 2 + draft_layers * (1 + flushed)


@closed_form(equation="8.10", page="08-other-methods")
def tensor_parallel_latency(layers: Operand, units: Operand, efficiency: Operand = 1) -> Operand:
    r"""Time per token when every layer is split over N devices, in layer times: $d / (N \eta)$.

    Args:
        layers: d, decoder layers; positive.
        units: N, devices; a whole number >= 1.
        efficiency: eta, speed-up over N; positive; 1 is perfect, measured values are lower.

    Returns:
        Latency per token in layer times.

    >>> tensor_parallel_latency(40, units=2, efficiency=0.8)
    25.0
    """
    return layers / (units * efficiency)


@closed_form(equation="8.11", page="08-other-methods")
def tensor_parallel_compute(layers: Operand, units: Operand) -> Operand:
    r"""Layer executions per token when every layer is split over N devices: $N\,(d/N) = d$.

    The same work as on one device. The loss of efficiency shows in the device time held: N times
    the latency, d / eta.

    Args:
        layers: d, decoder layers; positive.
        units: N, devices; a whole number >= 1.

    Returns:
        Layer executions per token.

    >>> tensor_parallel_compute(40, units=2)
    40.0
    """
    return units * (layers / units)
