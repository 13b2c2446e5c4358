"""Replay of recorded matches, compared with the closed form for independent matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import formulas
from ..errors import InvalidInputError
from ..fitting.calibrate import check_recorded_k
from ..results.intervals import Interval, interval_of, prompt_weights
from ..results.measurement import Measurement
from ..results.tabular import Frame
from ..simulation.policy import Policy
from ..simulation.simulator import replay, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._types import Floats, Ints

RESAMPLES, SIMULATED_TOKENS = 2000, 20_000
#: least relative error of the closed form against the replayed latency that is reported
MISLEADS = 0.01


@dataclass(frozen=True)
class ReplayReport(Frame):
    """A policy on recorded tokens; latency and compute per token, in layers.

    Attributes:
        latency: of the schedule on the recorded matches, start-up of each text included.
        closed_form: latency with independent matches at the same rate for texts of these lengths;
            None for several exits or a gate.
        simulated: the same from the simulator, on one long text.
        match_rate: None where no text has two tokens.
        autocorrelation: lag-1 autocorrelation of the matches of a text; None where undefined.
        misleads: closed form / replayed - 1, where that exceeds `MISLEADS` and the closed form lies
            outside the interval; else None.
    """

    policy: Policy
    layers: int
    n_tokens: int
    n_prompts: int
    n_texts: int
    latency: Interval
    compute: Interval
    normalized_latency: Interval
    normalized_compute: Interval
    match_rate: float | None
    autocorrelation: float | None
    peak_units: int
    closed_form: float | None
    closed_form_compute: float | None
    simulated: float | None
    misleads: float | None
    provenance: Mapping[str, Any]

    def _rows(self) -> Sequence[Any]:
        return (self,)


def replay_report(measurement: Measurement, policy: Policy, *, seed: int = 0) -> ReplayReport:
    """Replay a policy on every recorded text, and test the assumption of independent matches.

    Args:
        measurement: ranks, and for a gate the exits' confidences.
        policy: exits, guesses, depth, gate.
        seed: seed of the bootstrap over prompts and of the simulation.

    Raises:
        InvalidInputError: the policy does not fit the measurement.
    """
    _check_policy(measurement, policy)
    run = replay(measurement, policy)
    owners = measurement.prompt_index[measurement.starts()[:-1]]
    prompts = len(measurement.prompt_ids)
    ends = [(float(r.finish_times[-1]), float(r.work_done[-1])) for r in run.generations]
    times, work = (np.bincount(owners, values, prompts) for values in zip(*ends, strict=True))
    tokens = measurement.tokens_by_prompt()
    d = measurement.layers
    latency, compute = (_interval(x, tokens, seed) for x in (times, work))
    closed, closed_compute, simulated = _independent(run.match_rate, measurement, policy, seed)
    misleads = None
    if closed is not None:
        off = closed / latency.value - 1
        outside = closed < latency.ci_low or closed > latency.ci_high
        misleads = off if abs(off) > MISLEADS and outside else None
    return ReplayReport(
        policy=policy,
        layers=d,
        n_tokens=measurement.n_tokens,
        n_prompts=prompts,
        n_texts=len(run.generations),
        latency=latency,
        compute=compute,
        normalized_latency=latency.scaled(1 / d),
        normalized_compute=compute.scaled(1 / d),
        match_rate=run.match_rate,
        autocorrelation=run.autocorrelation,
        peak_units=max(r.peak_units for r in run.generations),
        closed_form=closed,
        closed_form_compute=closed_compute,
        simulated=simulated,
        misleads=misleads,
        provenance=measurement.provenance,
    )


def _check_policy(measurement: Measurement, policy: Policy) -> None:
    if policy.exits[-1] >= measurement.layers:
        raise InvalidInputError(
            f"exit_layer must lie below layer {measurement.layers}, the last, which makes the "
            f"token itself; got {policy.exits[-1]}; give an earlier one"
        )
    check_recorded_k(measurement, max(policy.guesses))


def _interval(sums: Ints | Floats, tokens: Ints, seed: int) -> Interval:
    draws = None
    if len(tokens) > 1:
        weights = prompt_weights(len(tokens), RESAMPLES, seed)
        draws = (weights @ sums) / (weights @ tokens)
    return interval_of(sums.sum() / tokens.sum(), draws, tokens)


def _independent(
    match_rate: float | None, measurement: Measurement, policy: Policy, seed: int
) -> tuple[float, float, float] | tuple[None, None, None]:
    """With independent matches: latency of texts of these lengths, compute, simulated latency."""
    if match_rate is None or len(policy.exits) > 1 or policy.gate is not None:
        return None, None, None
    d, (e,), (k,) = measurement.layers, policy.exits, policy.guesses
    lengths, counts = np.unique(np.diff(measurement.starts()), return_counts=True)
    total = sum(
        count * formulas.expected_total_latency(match_rate, d, e, int(n), policy.depth)
        for n, count in zip(lengths, counts, strict=True)
    )
    compute = float(formulas.compute_per_token(match_rate, d, e, k, policy.depth))
    run = simulate(match_rate, d, e, k, policy.depth, tokens=SIMULATED_TOKENS, seed=seed)
    return float(total) / measurement.n_tokens, compute, run.latency_per_token
