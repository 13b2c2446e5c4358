"""Intervals over prompts, which are independent; tokens of one prompt are not.

A rate has the t interval on the logit scale with the jackknife over prompts, everything else the
percentile bootstrap over prompts. `python -m experiments.coverage` counts how often they hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.special import betaincinv, expit, logit, ndtr, stdtrit

from ..checks import check_draws
from ..errors import InvalidInputError

if TYPE_CHECKING:
    from .._types import Floats, Ints

METHOD = "percentile bootstrap over prompts"
RATE_METHOD = "t interval on the logit scale, jackknife over prompts"
CHOICE_METHOD = "t interval, bootstrap over prompts that makes the choice again"
LEVEL = 0.95
#: resamples of the prompts and the seed, unless told otherwise
RESAMPLES, SEED = 1000, 0
#: with fewer resamples, less than ten lie beyond each end of an interval at that level
MIN_RESAMPLES = 400
#: correlation of the matches of a prompt that is assumed where all prompts have the same rate, so
#: that none can be seen; at least the measured ones, see `experiments/coverage.py`
LARGEST_CORRELATION = 0.15


@dataclass(frozen=True)
class IntervalEstimate:
    """A number with the ends of its 95% confidence interval."""

    value: float
    ci_low: float
    ci_high: float

    def scaled(self, factor: float) -> Self:
        """The estimate in another unit; `factor` is positive."""
        low, high = factor * self.ci_low, factor * self.ci_high
        return replace(self, value=factor * self.value, ci_low=low, ci_high=high)


@dataclass(frozen=True)
class Interval(IntervalEstimate):
    """An estimate with its interval, the tokens and prompts behind it, and the method.

    The ends are NaN, and null in JSON, where there is none: for one prompt, or for a parameter that
    is not identified.
    """

    n_tokens: int
    n_prompts: int
    method: str


def prompt_weights(n_prompts: int, resamples: int, seed: int | np.random.Generator) -> Ints:
    """Bootstrap weights: draws of each prompt in each resample, [resamples, prompts].

    Raises:
        InvalidInputError: fewer than two prompts, for which no interval can be given.
    """
    if n_prompts < 2:
        raise InvalidInputError(
            f"an interval needs at least 2 prompts; got {n_prompts}; measure more prompts"
        )
    check_draws(resamples, n_prompts, "prompts")
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=resamples)


def resampled_rates(hits: Ints, tokens: Ints, weights: Ints | Floats) -> Floats:
    """Match rates of each resample.

    Args:
        hits: [prompts, ...] counts.
        tokens: [prompts] tokens that the hits are out of.
        weights: [resamples, prompts], from `prompt_weights`.

    Returns:
        [resamples, ...] ratios of resampled hits to resampled tokens.
    """
    check_draws(len(weights), hits[0].size, "exit layers times k")
    flat = hits.reshape(len(hits), -1).astype(float)
    rates = (weights.astype(float) @ flat) / (weights @ tokens)[:, None]
    shaped: Floats = rates.reshape(len(weights), *hits.shape[1:])
    return shaped


def rate_ends(hits: Ints, tokens: Ints) -> tuple[Floats, Floats]:
    """Ends of the 95% intervals of rates: t intervals on the logit scale, jackknife over prompts.

    The standard error of the logit is that of the leave-one-prompt-out rates, with N - 1 degrees of
    freedom. Where leaving out a prompt leaves no hit or no miss, half of one is added to each.
    Where all prompts have the same rate, no hit and all hits among them, the prompts show no
    spread: the interval is then that of Clopper and Pearson for as many independent tokens as the
    tokens are worth at the correlation `LARGEST_CORRELATION`, T / (1 + (m - 1) correlation) with
    m the mean length that a token sees. The interval always contains the rate.

    Args:
        hits: [prompts, ...] counts.
        tokens: [prompts] tokens that the hits are out of; prompts without tokens are left out.

    Returns:
        Lower and upper ends [...]; NaN with fewer than two prompts.

    Source:
        The jackknife of a ratio: Cochran (1977), Sampling Techniques, 6.16; the effective number of
        tokens: Kish (1965), Survey Sampling, 5.4; Korn and Graubard (1998).
    """
    if hits.ndim > 2:  # one layer at a time, so that memory stays small
        ends = np.array([rate_ends(hits[:, e], tokens) for e in range(hits.shape[1])])
        return ends[:, 0], ends[:, 1]
    kept = tokens > 0
    n, h, t = int(kept.sum()), hits[kept].astype(float), tokens[kept].astype(float)
    if n < 2:
        return np.full(hits.shape[1:], np.nan), np.full(hits.shape[1:], np.nan)
    t = t.reshape(n, *[1] * (h.ndim - 1))
    rate = h.sum(0) / t.sum()
    rest, others = h.sum(0) - h, t.sum() - t
    half = 0.5 * ((rest == 0) | (rest == others)).any(0)
    left = np.log((rest + half) / (others - rest + half))
    reach = stdtrit(n - 1, 0.5 + LEVEL / 2) * np.sqrt((n - 1) * left.var(0))
    same = (np.abs(h - rate * t) <= 1e-12 * t.max()).all(0)
    few = _clopper_pearson(rate, float(t.sum() / _design_effect(t)))
    middle = logit(rate)
    low = np.where(same, few[0], expit(middle - reach))
    high = np.where(same, few[1], expit(middle + reach))
    return np.minimum(low, rate), np.maximum(high, rate)


def _design_effect(tokens: Floats) -> float:
    """How many correlated tokens are worth an independent one, at the largest correlation."""
    return float(1 + LARGEST_CORRELATION * ((tokens**2).sum() / tokens.sum() - 1))


def _clopper_pearson(rate: Floats, n: float) -> tuple[Floats, Floats]:
    """The Clopper-Pearson interval of rates of `n` independent tokens."""
    tail, hits = (1 - LEVEL) / 2, np.clip(rate * n, 0, n)
    tiny = np.finfo(float).tiny
    low = betaincinv(np.maximum(hits, tiny), n - hits + 1, tail)
    high = betaincinv(hits + 1, np.maximum(n - hits, tiny), 1 - tail)
    return np.where(rate > 0, low, 0.0), np.where(rate < 1, high, 1.0)


def rate_of(hits: Ints, tokens: Ints) -> Interval:
    """A rate with its interval, from counts [prompts]; see `rate_ends`."""
    low, high = rate_ends(hits, tokens)
    value, n = float(hits.sum() / tokens.sum()), int(tokens.sum())
    return Interval(value, float(low), float(high), n, len(tokens), RATE_METHOD)


def percentiles(draws: Floats, n: int | None = None) -> tuple[Floats, Floats]:
    """Ends of the percentile interval over the first axis of `draws`.

    Resamples of `n` units spread too little, by the square root of (n - 1) / n, and with normal
    instead of t quantiles: with `n`, the percentiles lie so much further out. None: as they are.

    Source:
        Hesterberg (2015), What Teachers Should Know About the Bootstrap, The American Statistician
        69(4): the expanded percentile interval.
    """
    tail = (1 - LEVEL) / 2
    if n is not None:
        tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, tail)))
    low, high = np.percentile(draws, [100 * tail, 100 * (1 - tail)], axis=0)
    return low, high


def interval_of(
    value: float, draws: Floats | None, tokens: Ints | Floats, method: str = METHOD
) -> Interval:
    """An estimate of `tokens` [prompts] with the percentile interval of its draws [resamples].

    Without draws it has no ends: they are NaN.
    """
    low, high = (math.nan, math.nan) if draws is None else percentiles(draws, len(tokens))
    return Interval(float(value), float(low), float(high), int(tokens.sum()), len(tokens), method)
