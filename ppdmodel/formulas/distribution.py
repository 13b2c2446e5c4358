"""Exact distribution of the total latency of a finite generation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln, xlogy

from ..checks import positive_integer, real_number
from ..errors import InvalidInputError, RunFailedError
from . import generation_time
from .contract import check, check_autocorrelation, check_order, is_unknown

if TYPE_CHECKING:
    from .._types import Floats


@dataclass(frozen=True)
class TotalLatency:
    """Distribution of the time to generate a number of tokens, in layer times.

    `times` is increasing; `probabilities[i]` is the probability of `times[i]`.
    """

    times: Floats
    probabilities: Floats

    @property
    def mean(self) -> float:
        """Expected total latency."""
        return float(self.times @ self.probabilities)

    @property
    def std(self) -> float:
        """Standard deviation."""
        return math.sqrt(float((self.times - self.mean) ** 2 @ self.probabilities))

    def pmf(self) -> tuple[Floats, Floats]:
        """The possible total latencies, increasing, and the probability of each."""
        return self.times, self.probabilities

    def quantile(self, q: float) -> float:
        """Smallest total latency t with P(T <= t) >= `q`, 0 < q <= 1."""
        if not 0 < real_number("q", q, 0, "give a probability") <= 1:
            raise InvalidInputError(f"q must lie in (0, 1]; got {q}; give a probability")
        if q == 1:
            return float(self.times[-1])
        reached = np.cumsum(self.probabilities)[:-1]
        return float(self.times[np.searchsorted(reached, q * (1 - 1e-12))])


def total_latency(
    p_correct: float,
    layers: float,
    exit_layer: float,
    tokens: int,
    depth: int | None = 1,
    autocorrelation: float = 0.0,
) -> TotalLatency:
    r"""Distribution of the time from the start of the first token to the end of the last.

    With h matches among the tokens after the first, of which w complete a group of D+1 within
    their run, $T = d\ell - (d-e)\,h + g\,w$, $g = \max(d-(D+1)e, 0)$. Counting the sequences with
    m misses: their m+1 runs hold the groups in $\binom{w+m}{m}$ ways, and the rest of each run
    is 0...D.

    Args:
        p_correct: p, match rate; in [0, 1].
        layers: d, decoder layers; positive.
        exit_layer: e, exit layer; 0 < e <= d.
        tokens: tokens to generate; a positive integer.
        depth: D; a positive integer, or None for unlimited.
        autocorrelation: rho, lag-1 autocorrelation of the matches, as in `correlated_latency`; 0
            means independent. Otherwise run time grows as tokens cubed: seconds for 1000 tokens.

    Returns:
        The exact distribution, in layer times.

    Raises:
        InvalidInputError: an argument is outside its domain.

    Source:
        theory/04-finite-generations.md, equations (4.2) and (4.3). For (D+1)e >= d the number of
        independent matches alone decides, a binomial.

    >>> total_latency(0.7, 40, 20, tokens=101).mean
    2640.0
    """
    numbers = {
        "p_correct": p_correct,
        "layers": layers,
        "exit_layer": exit_layer,
        "autocorrelation": autocorrelation,
    }
    p, d, e, rho = (_one_number(name, value) for name, value in numbers.items())
    check_order(exit_layer, layers)
    check_autocorrelation(rho, p)
    trials = positive_integer("tokens", tokens) - 1
    size = math.inf if depth is None else 1 + positive_integer("depth", depth, _UNLIMITED)
    grouped = int(size) if size * e < d else None
    hits, groups, probabilities = _counts(trials, p, grouped, rho)
    times = generation_time(d, e, trials + 1, hits, groups, depth)
    support, where = np.unique(times, return_inverse=True)
    weights = np.bincount(where, probabilities, minlength=len(support))
    possible = weights > 0
    total = weights.sum()
    if not abs(total - 1) < 1e-6:
        raise RunFailedError(
            f"the probabilities must add up to 1; got {total}; ask for fewer tokens"
        )
    return TotalLatency(support[possible], weights[possible] / total)


_UNLIMITED = "use None for unlimited"


def _one_number(name: str, value: float) -> float:
    check(name, value)
    if getattr(value, "shape", ()) or is_unknown(value):
        raise InvalidInputError(
            f"{name} must be one number; got {value!r}; a distribution is that of one setting"
        )
    return float(value)


def _counts(
    trials: int, p: float, size: int | None, autocorrelation: float
) -> tuple[Floats, Floats, Floats]:
    """Hits, completed groups of `size` hits, and the probability of each pair of them.

    Without a `size` no process waits, and all counts of groups are 0.
    """
    _check_size(trials + 1, chained=autocorrelation != 0, grouped=size is not None)
    if autocorrelation != 0:
        return _chained(trials, p, size, autocorrelation)
    if size is not None:
        return _grouped(trials, p, size)
    return np.arange(trials + 1.0), np.zeros(trials + 1), _binomial(trials, p)


def _check_size(tokens: int, *, chained: bool, grouped: bool) -> None:
    """Raise unless the distribution can be computed in a minute and fits in memory."""
    most = {(0, 0): 10**7, (0, 1): 20_000, (1, 0): 20_000, (1, 1): 2000}[chained, grouped]
    if tokens > most:
        raise InvalidInputError(
            f"tokens must not exceed {most} for this distribution; got {tokens}; "
            "ask for fewer, or for the mean alone: ppdmodel.expected_total_latency"
        )


def _binomial(trials: int, p: float) -> Floats:
    hits = np.arange(trials + 1.0)
    log_ways = gammaln(trials + 1) - gammaln(hits + 1) - gammaln(trials - hits + 1)
    log_odds = xlogy(hits, p) + xlogy(trials - hits, 1 - p)
    return np.asarray(np.exp(log_ways + log_odds))


def _grouped(trials: int, p: float, size: int) -> tuple[Floats, Floats, Floats]:
    """Hits, completed groups of `size` hits within a run, and the probability of each pair."""
    hits, groups, probabilities = [], [], []
    #: ways that the remainders of m+1 runs add up to each sum, times p**sum / exp(log_scale)
    rests = window = p ** np.arange(float(size))
    log_scale = 0.0
    for misses in range(trials + 1):
        h = trials - misses
        rest = np.arange(h % size, min(h, len(rests) - 1) + 1, size)
        w = (h - rest) / size
        log_ways = gammaln(w + misses + 1) - gammaln(w + 1) - gammaln(misses + 1)
        with np.errstate(divide="ignore"):
            log_rest = np.log(rests[rest]) + log_scale
        log_odds = xlogy(size * w, p) + xlogy(misses, 1 - p)
        chance = np.asarray(np.exp(log_ways + log_odds + log_rest))
        possible = chance > 0
        hits.append(np.full(int(possible.sum()), float(h)))
        groups.append(w[possible])
        probabilities.append(chance[possible])
        rests = np.convolve(rests, window)[: trials + 1]
        largest = rests.max()
        rests, log_scale = rests / largest, log_scale + math.log(largest)
    return np.concatenate(hits), np.concatenate(groups), np.concatenate(probabilities)


def _chained(
    trials: int, p: float, size: int | None, autocorrelation: float
) -> tuple[Floats, Floats, Floats]:
    """Hits, completed groups of `size` hits within a run, and the probability of each pair.

    A dynamic program over tokens. `matched[r]` holds the probabilities of [groups, hits] where the
    last token matched and its run has r hits beyond whole groups, `missed` those where it did not.
    Without a `size` no groups are counted.
    """
    after_match, after_miss = p + autocorrelation * (1 - p), p * (1 - autocorrelation)
    places = 1 if size is None else size

    def counts(tokens: int) -> tuple[int, int]:
        """How many counts of groups and of hits so many tokens can have, from 0."""
        return (1 if size is None else tokens // size + 1), tokens + 1

    shape = counts(trials)
    matched: list[Floats] = [np.zeros(shape) for _ in range(places)]
    missed = np.zeros(shape)
    missed[0, 0] = 1.0
    hit_rate = p
    for done in range(1, trials + 1):
        w, h = counts(done)
        was, ran = missed[:w, :h].copy(), [state[:w, :h].copy() for state in matched]
        missed[:w, :h] = (1 - hit_rate) * was + (1 - after_match) * sum(ran)
        for place in range(places):
            before = after_match * ran[place - 1]
            if place == 1 % places:
                before = before + hit_rate * was
            whole = place == 0 and size is not None
            hit, groups = matched[place][:w, :h], int(whole)
            hit[:] = 0.0
            hit[groups:, 1:] = before[: w - groups, :-1]
        hit_rate = after_miss
    total = missed + sum(matched)
    groups_found, hits = np.nonzero(total)
    return hits.astype(float), groups_found.astype(float), total[groups_found, hits]
