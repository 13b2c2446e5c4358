"""The percentile bootstrap over prompts: by hand, and against the normal distribution."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.results.intervals import (
    LEVEL,
    METHOD,
    MIN_RESAMPLES,
    Interval,
    interval_of,
    percentiles,
    prompt_weights,
    resampled_rates,
)
from ppdmodel.results.timing import Timed


def test_resampled_rates_by_hand() -> None:
    hits, tokens = np.array([[1], [4]]), np.array([2, 8])
    weights = np.array([[2, 0], [1, 1], [0, 2]])
    assert resampled_rates(hits, tokens, weights)[:, 0].tolist() == [0.5, 0.5, 0.5]
    assert resampled_rates(np.array([[2], [0]]), tokens, weights)[:, 0].tolist() == [1.0, 0.2, 0.0]


def test_rates_keep_the_shape_of_the_hits() -> None:
    hits = np.arange(24).reshape(2, 3, 4)
    rates = resampled_rates(hits, np.array([10, 30]), np.array([[1, 1]]))
    assert rates.shape == (1, 3, 4)
    assert rates[0, 2, 1] == (9 + 21) / 40


def test_weights_draw_as_many_prompts_as_there_are() -> None:
    weights = prompt_weights(7, 4000, 3)
    assert weights.shape == (4000, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.06)
    assert weights.var() == pytest.approx(6 / 7, abs=0.03), "that of drawing with replacement"
    assert np.array_equal(weights, prompt_weights(7, 4000, 3))
    assert not np.array_equal(weights, prompt_weights(7, 4000, 4))


def test_two_prompts_are_the_fewest() -> None:
    assert prompt_weights(2, 5, 0).shape == (5, 2)
    for few in (0, 1):
        with pytest.raises(InvalidInputError, match=f"at least 2 prompts; got {few}; measure more"):
            prompt_weights(few, 5, 0)


def test_the_ends_hold_all_but_a_fortieth_on_each_side() -> None:
    low, high = percentiles(np.arange(1001.0)[:, None] * [1, -1])
    assert low.tolist() == pytest.approx([25, -975])
    assert high.tolist() == pytest.approx([975, -25])
    assert pytest.approx(1) == MIN_RESAMPLES * (1 - LEVEL) / 2


def test_an_interval_is_of_its_draws() -> None:
    found = interval_of(0.5, np.linspace(0, 1, 1001), np.array([3, 4, 5]))
    assert (found.ci_low, found.ci_high) == pytest.approx((0.025, 0.975))
    assert (found.value, found.n_tokens, found.n_prompts, found.method) == (0.5, 12, 3, METHOD)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of prompts whose rates differ: that of single tokens would be too narrow."""
    rng, within, narrow = np.random.default_rng(0), 0, 0
    for seed in range(200):
        rates = np.clip(0.6 + rng.normal(0, 0.15, 40), 0, 1)
        tokens = np.full(40, 50)
        hits = rng.binomial(tokens, rates)
        draws = resampled_rates(hits, tokens, prompt_weights(40, 400, seed))
        found = interval_of(hits.sum() / tokens.sum(), draws, tokens)
        within += found.ci_low <= 0.6 <= found.ci_high
        half = 1.96 * math.sqrt(found.value * (1 - found.value) / tokens.sum())
        narrow += abs(found.value - 0.6) <= half
    assert 0.88 <= within / 200 <= 0.98
    assert narrow / 200 < 0.85


def test_another_unit_scales_a_number_and_its_ends() -> None:
    found = Interval(2.0, 1.0, 4.0, 10, 3, "by hand").scaled(0.5)
    assert found == Interval(1.0, 0.5, 2.0, 10, 3, "by hand")
    assert Timed(2.0, 1.0, 4.0, 8).scaled(1e3) == Timed(2e3, 1e3, 4e3, 8)


def test_the_order_of_the_stored_fields() -> None:
    interval = Interval(0.5, 0.4, 0.6, 12, 3, METHOD)
    stored = ["value", "ci_low", "ci_high", "n_tokens", "n_prompts", "method"]
    assert list(asdict(interval)) == stored
    assert list(asdict(Timed(1.0, 1.0, 1.0, 8))) == ["value", "ci_low", "ci_high", "n"]
