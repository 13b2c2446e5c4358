"""Simulation of PPD with random matches, and replay of recorded ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..checks import (
    POSSIBLE_AUTOCORRELATION,
    check_schedule,
    positive_integer,
    possible_autocorrelation,
    probability,
)
from ..errors import InvalidInputError
from ..results.measurement import Measurement
from .policy import Policy
from .runs import Replay, Simulation
from .schedule import Schedule, schedule_times

if TYPE_CHECKING:
    from .._types import Floats, Ints

#: most wrong processes of one binomial draw of the gate
_MOST_DRAWN = 2**62


def simulate(
    p_correct: float | Sequence[float],
    layers: int,
    exit_layer: int | Sequence[int],
    k: int | Sequence[int] = 1,
    depth: int | None = 1,
    *,
    tokens: int = 1000,
    seed: int = 0,
    autocorrelation: float = 0.0,
    share: float = 1.0,
    layer_times: Sequence[float] | None = None,
    start_delay: float = 0,
    promotion_delay: float = 0,
    record: bool = False,
) -> Simulation:
    """Simulate the generation of `tokens` tokens by PPD with random matches.

    Args:
        p_correct: probability that a true process's guesses contain the next token; in [0, 1]. For
            several exits, the probabilities q_j that exit j is the first to guess it.
        layers: decoder layers d; a positive integer.
        exit_layer: exit layer e, 1 <= e <= d; several in increasing order.
        k: guesses started per exit; a positive integer for each exit.
        depth: tokens in flight beyond the one being verified; a positive integer or None.
        tokens: tokens to generate; a positive integer.
        seed: seed of the matches and gates.
        autocorrelation: lag-1 autocorrelation of the matches, a two-state Markov chain that starts
            at its long-run rate; in [-1, 1).
        share: share of processes that pass the gate and start guesses; `p_correct` is then the
            match rate of those that pass. A true process has one draw for all its exits, a wrong
            one a draw at each.
        layer_times: time of each layer, shape [layers]; 1 by default.
        start_delay: time from reading the exit to a sub-process's first layer, on its device.
        promotion_delay: pause of a promoted process, in which it starts no guesses either.
        record: also keep when each group of processes began and ended, for plots.

    Returns:
        Verification time and work done at each token, in the unit of `layer_times` (layer times and
        layer executions by default), and the most processes at once.

    Raises:
        InvalidInputError: an argument is outside its domain.

    Source:
        theory/01-setting.md.

    >>> simulate(1.0, layers=4, exit_layer=2, tokens=3).finish_times.tolist()
    [4.0, 6.0, 8.0]
    """
    policy = Policy(exit_layer, k, depth)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InvalidInputError(
            f"seed must be a whole number of at least 0; got {seed!r}; give another"
        )
    rng = np.random.default_rng(seed)
    trials = positive_integer("tokens", tokens) - 1
    rates = _rates(p_correct, len(policy.exits))
    probability("share", share, "give the share of tokens that pass the gate")
    total = min(float(rates.sum()), 1.0)
    first_hit = _draw_first_hits(rng, rates, trials, total * share, autocorrelation)
    passes = wrong_gate = None
    if share < 1:
        missed_open = share * (1 - total) / (1 - share * total)
        passes = ((first_hit > 0) | (rng.random(trials) < missed_open)).tolist()
        wrong_gate = _binomial_gate(rng, share)
    run = Schedule(
        policy,
        schedule_times(layers, layer_times, start_delay, promotion_delay),
        first_hit.tolist(),
        passes,
        wrong_gate=wrong_gate,
        record=record,
    )
    return run.result()


def replay(
    trace: Measurement | Sequence[int],
    policy: Policy,
    *,
    layers: int | None = None,
    layer_times: Sequence[float] | None = None,
    start_delay: float = 0,
    promotion_delay: float = 0,
    record: bool = False,
) -> Replay:
    """Simulate PPD on recorded matches: exact for that trace, whatever its correlations.

    Args:
        trace: a measurement, each of whose prompts is a generation, or one sequence with an entry
            per token after the first: 0 if no exit of token i guessed token i+1, else the number
            (from 1) of the first exit that did. Booleans suffice for one exit.
        policy: exits, guesses, depth. `policy.gate` starts guesses only where the exit's top
            probability is at least the gate; it needs a measurement, one exit and depth 1.
        layers: decoder layers; for a sequence only.
        layer_times: as `simulate`.
        start_delay: as `simulate`.
        promotion_delay: as `simulate`.
        record: as `simulate`.

    Returns:
        The generations, with latency and compute per token over all of them. Ranks do not record
        which of a later exit's guesses an earlier exit had started: with several exits all count
        as new, so that compute is an upper bound.

    Raises:
        InvalidInputError: an argument is outside its domain, or does not fit the trace.

    Source:
        theory/01-setting.md.

    >>> replay([True, False], Policy(exit_layer=1), layers=4).generations[0].finish_times.tolist()
    [4.0, 5.0, 9.0]
    """
    if not isinstance(policy, Policy):
        raise InvalidInputError(
            f"policy must be a Policy; got {policy!r}; give ppdmodel.Policy(exit_layer, k, depth)"
        )
    if isinstance(trace, Measurement):
        if layers is not None:
            raise InvalidInputError(
                f"layers must be left out for a measurement; got {layers}; it has {trace.layers}"
            )
        layers, traces = trace.layers, _measured_traces(trace, policy)
    else:
        if layers is None:
            raise InvalidInputError("layers must be given for a sequence; got None; give a count")
        if policy.gate is not None:
            raise InvalidInputError(
                f"a gate must have a measurement's probabilities; got gate {policy.gate} and a "
                "sequence; give a measurement, or make closed gates misses"
            )
        traces = [(_checked_hits(trace, len(policy.exits)), None)]
    times = schedule_times(layers, layer_times, start_delay, promotion_delay)
    return Replay(
        policy=policy,
        layers=layers,
        generations=tuple(
            Schedule(policy, times, hits, passes, wrong_gate=None, record=record).result()
            for hits, passes in traces
        ),
    )


def _measured_traces(
    trace: Measurement, policy: Policy
) -> list[tuple[list[int], list[bool] | None]]:
    """First hits and gates of each text. The last token of a text starts no guesses."""
    check_schedule(trace.layers, policy.exits[-1])
    if policy.gate is not None and (len(policy.exits) > 1 or policy.depth != 1):
        raise InvalidInputError(
            "a gate must have one exit and depth 1; got more; the recorded probabilities are those "
            "of the true processes alone"
        )
    first_hit = np.zeros(trace.n_tokens, dtype=np.int64)
    for number in reversed(range(len(policy.exits))):
        column = trace.rank[:, policy.exits[number] - 1]
        first_hit[column <= policy.guesses[number]] = number + 1
    passes = None
    if policy.gate is not None:
        (exit_layer,) = policy.exits
        passes = trace.top_prob[:, exit_layer - 1] >= policy.gate
        first_hit[~passes] = 0
    found = []
    for start, end in pairwise(trace.starts().tolist()):
        rows = slice(start, end - 1)
        found.append((first_hit[rows].tolist(), None if passes is None else passes[rows].tolist()))
    return found


def _checked_hits(trace: Sequence[int], exits: int) -> list[int]:
    if np.ndim(trace) != 1:
        raise InvalidInputError(
            f"a trace must be a measurement or one sequence; got {trace!r}; give a list"
        )
    given = list(trace)
    for index, hit in enumerate(given):
        if hit not in range(exits + 1):
            raise InvalidInputError(
                f"a trace must hold whole numbers from 0 (miss) to {exits}, the exits; "
                f"got {hit} at index {index}; booleans do for one exit"
            )
    return [int(hit) for hit in given]


def _rates(p_correct: float | Sequence[float], exits: int) -> Floats:
    """The probabilities q_j as an array, one per exit."""
    given: list[float] = [p_correct] if np.ndim(p_correct) == 0 else list(p_correct)  # type: ignore[list-item, arg-type]
    if len(given) != exits:
        raise InvalidInputError(
            f"p_correct must have one value per exit; got {len(given)} for {exits}; give a list q_j"
        )
    for number, rate in enumerate(given):
        if getattr(rate, "free_symbols", ()):
            raise InvalidInputError(
                f"p_correct must be a number; got {rate}; symbols are for the closed forms"
            )
        probability(f"p_correct[{number}]" if exits > 1 else "p_correct", rate)
    rates = np.array(given, dtype=float)
    if rates.sum() > 1 + 1e-9:
        raise InvalidInputError(
            f"p_correct must add up to at most 1; got {rates.sum():g}; "
            "give the probabilities that exit j is the first to hold the next token"
        )
    return rates


def _draw_first_hits(
    rng: np.random.Generator, rates: Floats, trials: int, p: float, autocorrelation: float
) -> Ints:
    """For each token but the last, the first exit that guesses the next one, or 0.

    Some exit guesses it with probability p, each in proportion to its rate.
    """
    _check_autocorrelation(autocorrelation, p)
    draws = rng.random(trials)
    if autocorrelation == 0:
        hit = draws < p
    else:
        hit = np.empty(trials, dtype=bool)
        after_miss, after_match = p * (1 - autocorrelation), p + autocorrelation * (1 - p)
        threshold = p
        for i, draw in enumerate(draws.tolist()):
            hit[i] = draw < threshold
            threshold = after_match if hit[i] else after_miss
    if len(rates) == 1 or p == 0:
        return hit.astype(np.int64)
    shares = rates / rates.sum()
    return np.where(hit, rng.choice(len(rates), size=trials, p=shares) + 1, 0)


def _check_autocorrelation(autocorrelation: float, p_correct: float) -> None:
    if not -1 <= autocorrelation < 1:
        raise InvalidInputError(
            f"autocorrelation must lie in [-1, 1); got {autocorrelation}; "
            "0 means independent matches"
        )
    if not possible_autocorrelation(autocorrelation, p_correct):
        must, fix = POSSIBLE_AUTOCORRELATION
        raise InvalidInputError(f"{must}; got {autocorrelation}; {fix}")


def _binomial_gate(rng: np.random.Generator, share: float) -> Callable[[int], int]:
    def passing(processes: int) -> int:
        if processes > _MOST_DRAWN:
            raise InvalidInputError(
                f"a gate must not draw from more than {_MOST_DRAWN} processes at once; "
                f"got {processes}; lower k or depth"
            )
        return int(rng.binomial(processes, share))

    return passing
