"""What is chosen on some prompts, judged on others: the best of many looks better than it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..results.intervals import interval_of

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.intervals import Interval

FOLDS = 5
Chosen = TypeVar("Chosen")


def folds(prompts: int, seed: int) -> Ints:
    """The fold of each prompt, at random, in about equal parts."""
    return np.random.default_rng(seed).permutation(prompts) % FOLDS


def cross_fitted(
    tokens: Ints,
    weights: Ints,
    seed: int,
    choose: Callable[[int, np.ndarray], Chosen],
    judge: Callable[[Chosen, Ints], Floats],
) -> tuple[Floats, Floats] | None:
    """Judge on each fold's prompts what the other folds chose, over all folds.

    Args:
        tokens: of each prompt; judgements are weighted by them.
        weights: how often each prompt is drawn in each resample, [resamples, prompts].
        seed: of the folds.
        choose: the number of a fold, and which prompts are not in it -> a choice.
        judge: a choice, and weights [n, prompts] none of whose rows is 0 -> values [n, ...].

    Returns:
        The values [...], and those of the resamples [resamples, ...] with the choices kept; None
        with too few prompts to hold any out.
    """
    if len(tokens) < 2 * FOLDS:
        return None
    fold = folds(len(tokens), seed)
    everyone = np.ones((1, len(tokens)), dtype=np.int64)
    sums: list[Floats] = []
    for number in range(FOLDS):
        outside = (fold == number).astype(np.int64)
        chosen = choose(number, fold != number)
        found = []
        for rows in (everyone, weights):
            mine = rows * outside
            drawn = mine @ tokens
            safe = np.where(drawn[:, None] > 0, mine, outside)  # a fold that was not drawn at all
            values = judge(chosen, safe)
            share = drawn / (rows @ tokens)
            found.append(values * share.reshape(-1, *[1] * (values.ndim - 1)))
        sums = [s + f for s, f in zip(sums, found, strict=True)] if sums else found
    value, draws = sums
    return value[0], draws


def held_out(
    tokens: Ints,
    weights: Ints,
    seed: int,
    choose: Callable[[int, np.ndarray], Chosen],
    judge: Callable[[Chosen, Ints], Floats],
) -> tuple[Interval, Interval] | tuple[None, None]:
    """`cross_fitted` of latency and compute, which `judge` gives as [n, 2]: each with its interval.

    None for both with too few prompts to hold any out.
    """
    found = cross_fitted(tokens, weights, seed, choose, judge)
    if found is None:
        return None, None
    value, draws = found
    latency, compute = (interval_of(value[n], draws[:, n], tokens) for n in (0, 1))
    return latency, compute
