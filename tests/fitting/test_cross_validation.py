"""K-fold cross-validation of a selection, by hand and where there is nothing to select."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ppdmodel.fitting.cross_validation import FOLDS, cross_fitted, folds
from ppdmodel.results.intervals import prompt_weights


def test_folds_are_a_random_partition_in_equal_parts() -> None:
    found = folds(52, 3)
    assert np.array_equal(found, folds(52, 3))
    assert not np.array_equal(found, folds(52, 4))
    assert sorted(np.bincount(found, minlength=FOLDS)) == [10, 10, 10, 11, 11]
    assert (np.diff(found) < 0).any()


@pytest.fixture
def costs() -> np.ndarray:
    """Of three settings on 13 prompts, alike but for noise: [prompts, settings]."""
    return np.random.default_rng(0).normal(1, 0.3, (13, 3))


TOKENS = np.arange(1, 14)


def mean_of(costs: np.ndarray) -> Callable[[Any, np.ndarray], np.ndarray]:
    """The cost of each row's setting per token on weighted prompts, [n, 1]."""

    def evaluate(settings: np.ndarray | int, weights: np.ndarray) -> np.ndarray:
        total = (weights * TOKENS) @ costs / (weights @ TOKENS)[:, None]
        places = np.broadcast_to(settings, len(weights))
        found: np.ndarray = np.take_along_axis(total, places[:, None], axis=1)
        return found

    return evaluate


def test_by_hand(costs: np.ndarray) -> None:
    """Each prompt counts, by its tokens, with the setting that is best on the other folds.

    In a resample these are the other folds' prompts as often as they are drawn.
    """
    seen: list[int] = []

    def select(number: int, inside: np.ndarray) -> np.ndarray:
        seen.append(number)
        found: np.ndarray = ((inside * TOKENS) @ costs / (inside @ TOKENS)[:, None]).argmin(axis=1)
        return found

    weights = prompt_weights(13, 50, 1)
    found = cross_fitted(TOKENS, weights, 7, select, mean_of(costs))
    assert found is not None
    value, draws = found
    assert seen == [n for n in range(FOLDS) for _ in range(2)]
    fold = folds(13, 7)
    chose = set()
    for row, weight in enumerate([np.ones(13), *weights]):
        total = 0.0
        for number in range(FOLDS):
            others = np.where(fold == number, 0, weight)
            chosen = int(((others * TOKENS) @ costs).argmin())
            mine = np.where(fold == number, weight, 0)
            total += float((mine * TOKENS * costs[:, chosen]).sum())
            chose.add((number, chosen))
        expected = total / (weight * TOKENS).sum()
        assert (value if row == 0 else draws[row - 1])[0] == pytest.approx(expected)
    assert draws.shape == (50, 1)
    assert len(chose) > FOLDS, "resamples choose otherwise"


def test_a_fold_that_a_resample_leaves_out_has_no_weight(costs: np.ndarray) -> None:
    """Whoever evaluates still gets weights that are not all 0, so that nothing is 0 / 0."""
    weights = (folds(13, 0) == 2).astype(int)[None]

    def evaluate(setting: int, rows: np.ndarray) -> np.ndarray:
        assert (rows.sum(axis=1) > 0).all()
        return mean_of(costs)(setting, rows)

    found = cross_fitted(TOKENS, weights, 0, lambda number, inside: number % 3, evaluate)
    assert found is not None
    mine = folds(13, 0) == 2
    expected = (costs[mine, 2] * TOKENS[mine]).sum() / TOKENS[mine].sum()
    assert found[1][0, 0] == pytest.approx(expected)


def test_selection_is_optimistic_and_cross_validation_is_not() -> None:
    """Of twenty settings that are all the same, the best looks better than it is."""
    rng, seemed, held = np.random.default_rng(5), [], []
    tokens = np.ones(20, dtype=np.int64)
    for seed in range(60):
        costs = rng.normal(1, 0.3, (20, 20))

        def select(_: int, inside: np.ndarray, costs: np.ndarray = costs) -> int:
            return int((inside[0] @ costs).argmin())

        def evaluate(setting: int, rows: np.ndarray, costs: np.ndarray = costs) -> np.ndarray:
            found: np.ndarray = (rows @ costs[:, setting]) / rows.sum(axis=1)
            return found[:, None]

        found = cross_fitted(tokens, np.ones((1, 20), dtype=np.int64), seed, select, evaluate)
        assert found is not None
        seemed.append(costs.mean(axis=0).min())
        held.append(found[0][0])
    assert np.mean(seemed) < 0.9
    assert np.mean(held) == pytest.approx(1, abs=0.03)


def test_fewer_than_two_prompts_per_fold_are_too_few() -> None:
    def evaluate(setting: int, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), 2), float(setting))

    for prompts, enough in ((2 * FOLDS - 1, False), (2 * FOLDS, True)):
        tokens, weights = np.ones(prompts, dtype=np.int64), prompt_weights(prompts, 40, 0)
        found = cross_fitted(tokens, weights, 0, lambda number, inside: 1, evaluate)
        assert (found is not None) == enough


def test_one_setting_for_all_folds_is_evaluated_on_all_prompts() -> None:
    rng = np.random.default_rng(1)
    costs, tokens = rng.normal(1, 0.1, (12, 2)), np.full(12, 5)

    def evaluate(_: None, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = (rows @ costs) / rows.sum(axis=1, keepdims=True)
        return found

    weights = prompt_weights(12, 200, 0)
    found = cross_fitted(tokens, weights, 0, lambda number, inside: None, evaluate)
    assert found is not None
    assert found[0] == pytest.approx(costs.mean(axis=0))
    assert found[1] == pytest.approx(evaluate(None, weights))
