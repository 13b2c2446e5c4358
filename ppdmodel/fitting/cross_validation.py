"""K-fold cross-validation of a selected setting, which removes the optimism of selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from .._types import Floats, Ints

FOLDS = 5
Setting = TypeVar("Setting")


def folds(prompts: int, seed: int) -> Ints:
    """The fold of each prompt, [prompts]: a random partition into about equal parts."""
    return np.random.default_rng(seed).permutation(prompts) % min(FOLDS, prompts)


def cross_fitted(
    tokens: Ints,
    weights: Ints,
    seed: int,
    select: Callable[[int, np.ndarray], Setting],
    evaluate: Callable[[Setting, Ints], Floats],
) -> tuple[Floats, Floats] | None:
    """Evaluate on each fold's prompts what was selected on the other folds, over all folds.

    Args:
        tokens: of each prompt, by which folds are weighted.
        weights: how often each prompt is drawn in each resample, [resamples, prompts].
        seed: of the folds.
        select: the number of a fold, and which prompts are not in it -> a setting.
        evaluate: a setting, and weights [n, prompts] none of whose rows is 0 -> values [n, ...].

    Returns:
        The values [...], and those of the resamples [resamples, ...] with the selections kept; None
        with fewer than two prompts per fold.
    """
    if len(tokens) < 2 * FOLDS:
        return None
    fold = folds(len(tokens), seed)
    everyone = np.ones_like(tokens)[None]
    sums: list[Floats] = []
    for number in range(FOLDS):
        outside = (fold == number).astype(np.int64)
        setting = select(number, fold != number)
        found = []
        for rows in (everyone, weights):
            mine = rows * outside
            drawn = mine @ tokens
            safe = np.where(drawn[:, None] > 0, mine, outside)  # if no prompt of the fold was drawn
            values = evaluate(setting, safe)
            share = drawn / (rows @ tokens)
            found.append((values.T * share).T)
        sums = [s + f for s, f in zip(sums, found, strict=True)] if sums else found
    (value,), draws = sums
    return value, draws
