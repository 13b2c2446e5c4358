"""Percentile bootstrap over prompts, which are independent; tokens of one prompt are not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from ..checks import check_draws
from ..errors import InvalidInputError

if TYPE_CHECKING:
    from .._types import Floats, Ints

METHOD = "percentile bootstrap over prompts"
LEVEL = 0.95
#: resamples of the prompts and the seed, unless told otherwise
RESAMPLES, SEED = 1000, 0
#: with fewer resamples, less than one lies beyond each end of an interval at that level
MIN_RESAMPLES = 40


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


def resampled_rates(hits: Ints, tokens: Ints, weights: Ints) -> Floats:
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


def percentiles(draws: Floats) -> tuple[Floats, Floats]:
    """Ends of the percentile interval over the first axis of `draws`."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return low, high


def interval_of(value: float, draws: Floats | None, tokens: Ints | Floats) -> Interval:
    """An estimate of `tokens` [prompts] with the percentile interval of its draws [resamples].

    Without draws it has no ends: they are NaN.
    """
    low, high = (math.nan, math.nan) if draws is None else percentiles(draws)
    return Interval(float(value), float(low), float(high), int(tokens.sum()), len(tokens), METHOD)
