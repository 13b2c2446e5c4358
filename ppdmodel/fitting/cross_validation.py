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
    weights: Ints | Floats,
    seed: int,
    select: Callable[[int, Ints | Floats], Setting],
    evaluate: Callable[[Setting, Ints | Floats], Floats],
) -> tuple[Floats, Floats] | None:
    """Evaluate on each fold's prompts what was selected on the other folds, over all folds.

    Args:
        tokens: of each prompt, by which folds are weighted.
        weights: how often each prompt is drawn in each resample, [resamples, prompts].
        seed: of the folds.
        select: the number of a fold, and weights [n, prompts] of the prompts that are not in it,
            all once first -> what each row selects.
        evaluate: that, and weights [n, prompts] none of whose rows is 0 -> values [n, ...].

    Returns:
        The values [...], and those of the resamples [resamples, ...], each of which selects again;
        None with fewer than two prompts per fold.
    """
    if len(tokens) < 2 * FOLDS:
        return None
    fold = folds(len(tokens), seed)
    everyone = np.ones((1, len(tokens)))
    sums: list[Floats] = []
    for number in range(FOLDS):
        outside = (fold == number).astype(np.int64)
        found = []
        for rows in (everyone, weights):
            setting = select(number, _some(rows, 1 - outside))
            values = evaluate(setting, _some(rows, outside))
            share = (rows * outside) @ tokens / (rows @ tokens)
            found.append((values.T * share).T)
        sums = [s + f for s, f in zip(sums, found, strict=True)] if sums else found
    (value,), draws = sums
    return value, draws


def _some(rows: Ints | Floats, inside: Ints) -> Ints | Floats:
    """Weights of some prompts alone; where a resample has none of them, each of them once."""
    mine = rows * inside
    found: Ints | Floats = np.where(mine.sum(axis=1, keepdims=True) > 0, mine, inside)
    return found
