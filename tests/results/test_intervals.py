"""Intervals of rates by the jackknife, and the percentile bootstrap: by hand, and coverage."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from ppdmodel.errors import InvalidInputError
from ppdmodel.results.intervals import (
    LEVEL,
    METHOD,
    MIN_RESAMPLES,
    RATE_METHOD,
    Interval,
    interval_of,
    percentiles,
    prompt_weights,
    rate_ends,
    rate_of,
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
    assert pytest.approx(10) == MIN_RESAMPLES * (1 - LEVEL) / 2, "so many lie beyond each end"


def test_few_prompts_move_the_ends_out() -> None:
    """A mean of n normal numbers: the bootstrap's percentiles reach as far as the t interval."""
    rng = np.random.default_rng(0)
    for n in (8, 30):
        values = rng.normal(0, 1, n)
        draws = (prompt_weights(n, 200_000, 1) @ values) / n
        low, high = percentiles(draws, n)
        expected = 2 * t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
        assert high - low == pytest.approx(expected, rel=0.1)
        assert high - low > np.subtract(*percentiles(draws)[::-1])


def test_an_interval_is_of_its_draws() -> None:
    found = interval_of(0.5, np.linspace(0, 1, 1001), np.array([3, 4, 5]))
    assert (found.ci_low, found.ci_high) == pytest.approx(percentiles(np.linspace(0, 1, 1001), 3))
    assert (found.value, found.n_tokens, found.n_prompts, found.method) == (0.5, 12, 3, METHOD)


# ---------------------------------------------------------------- rates


def jackknife(hits: list[int], tokens: list[int]) -> tuple[float, float]:
    """The t interval on the logit scale, leaving out one prompt after another."""
    n, left = len(hits), []
    for out in range(n):
        h = sum(x for i, x in enumerate(hits) if i != out)
        m = sum(x for i, x in enumerate(tokens) if i != out) - h
        left.append(math.log(h / m))
    mean = sum(left) / n
    error = math.sqrt((n - 1) / n * sum((x - mean) ** 2 for x in left))
    p = sum(hits) / sum(tokens)
    middle, reach = math.log(p / (1 - p)), float(t.ppf(0.975, n - 1)) * error
    return 1 / (1 + math.exp(reach - middle)), 1 / (1 + math.exp(-reach - middle))


@pytest.mark.parametrize("prompts", [2, 3, 7, 60])
def test_the_jackknife_leaves_out_one_prompt_after_another(prompts: int) -> None:
    rng = np.random.default_rng(prompts)
    tokens = rng.integers(20, 200, prompts)
    hits = rng.binomial(tokens[:, None, None], rng.uniform(0.2, 0.9, (prompts, 3, 2)))
    low, high = rate_ends(hits, tokens)
    assert low.shape == high.shape == (3, 2)
    for e, k in np.ndindex(3, 2):
        expected = jackknife(hits[:, e, k].tolist(), tokens.tolist())
        assert (low[e, k], high[e, k]) == pytest.approx(expected, rel=1e-9)
        found = rate_of(hits[:, e, k], tokens)
        assert (found.ci_low, found.ci_high) == pytest.approx((low[e, k], high[e, k]))
        assert found.value == hits[:, e, k].sum() / tokens.sum()
        assert (found.n_tokens, found.n_prompts) == (tokens.sum(), prompts)
        assert found.method == RATE_METHOD


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_interval_of_a_rate_is_within_0_and_1_and_holds_the_rate(data: st.DataObject) -> None:
    """Whatever the counts; in any order, and for misses the mirror image of that for hits."""
    n = data.draw(st.integers(2, 9))
    tokens = np.array(data.draw(st.lists(st.integers(1, 300), min_size=n, max_size=n)))
    hits = np.array([data.draw(st.integers(0, int(most))) for most in tokens])
    low, high = (float(x) for x in rate_ends(hits, tokens))
    rate = hits.sum() / tokens.sum()
    assert 0 <= low <= rate <= high <= 1
    assert low < high
    order = np.random.default_rng(0).permutation(n)
    assert rate_ends(hits[order], tokens[order]) == pytest.approx((low, high), rel=1e-9)
    mirrored = rate_ends(tokens - hits, tokens)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)
    none = rate_ends(np.append(hits, 0), np.append(tokens, 0))
    assert none == pytest.approx((low, high)), "a prompt without tokens says nothing"


def test_one_prompt_gives_no_interval() -> None:
    for hits, tokens in (([[3]], [9]), ([[3], [0]], [9, 0])):
        low, high = rate_ends(np.array(hits), np.array(tokens))
        assert np.isnan([low, high]).all()
    assert math.isnan(rate_of(np.array([3]), np.array([9])).ci_low)


def test_where_all_prompts_agree_their_tokens_count_as_fewer() -> None:
    """By the exact binomial distribution: no hit, all hits, and a half of them."""
    tokens = np.full(10, 101)
    worth = 1010 / (1 + 100 * 0.15)  # independent tokens, at a correlation of .15
    low, high = rate_ends(np.zeros(10, dtype=int), tokens)
    assert low == 0
    assert (1 - high) ** worth == pytest.approx(0.025)
    low, high = rate_ends(tokens, tokens)
    assert high == 1
    assert low**worth == pytest.approx(0.025)
    single = np.ones(40, dtype=int)  # tokens of their own prompts are independent
    low, high = rate_ends(0 * single, single)
    assert high == pytest.approx(binomtest(0, 40).proportion_ci(0.95).high)
    low, high = rate_ends(np.full(12, 5), np.full(12, 10))
    expected = binomtest(30, 60).proportion_ci(0.95)
    assert low < expected.low < 0.5 < expected.high < high
    few, many = (rate_ends(np.zeros(n, dtype=int), np.full(n, 50))[1] for n in (2, 20))
    assert many < few < 1


def test_a_hit_in_one_prompt_alone_has_an_interval() -> None:
    """Without that prompt no hit is left."""
    for hits in (1, 40):
        low, high = rate_ends(np.array([hits, 0, 0, 0]), np.full(4, 50))
        assert 0 < low < hits / 200 < high < 1
    assert high > 0.9, "a single prompt with hits says little"


@pytest.mark.parametrize(("prompts", "p"), [(3, 0.5), (12, 0.05), (12, 0.9), (40, 0.6)])
def test_an_interval_covers_the_truth_as_often_as_it_says(prompts: int, p: float) -> None:
    """Of prompts whose rates differ: that of single tokens would be too narrow."""
    rng, n = np.random.default_rng(prompts), 2000
    rates = rng.beta(p * 19, (1 - p) * 19, (prompts, n))  # a correlation of .05
    tokens = np.full(prompts, 100)
    hits = rng.binomial(100, rates)
    low, high = rate_ends(hits, tokens)
    assert 0.93 <= np.mean((low <= p) & (p <= high)) <= 0.97
    found = hits.sum(0) / tokens.sum()
    half = 1.96 * np.sqrt(found * (1 - found) / tokens.sum())
    assert np.mean(np.abs(found - p) <= half) < 0.7


def test_another_unit_scales_a_number_and_its_ends() -> None:
    found = Interval(2.0, 1.0, 4.0, 10, 3, "by hand").scaled(0.5)
    assert found == Interval(1.0, 0.5, 2.0, 10, 3, "by hand")
    assert Timed(2.0, 1.0, 4.0, 8).scaled(1e3) == Timed(2e3, 1e3, 4e3, 8)


def test_the_order_of_the_stored_fields() -> None:
    interval = Interval(0.5, 0.4, 0.6, 12, 3, METHOD)
    stored = ["value", "ci_low", "ci_high", "n_tokens", "n_prompts", "method"]
    assert list(asdict(interval)) == stored
    assert list(asdict(Timed(1.0, 1.0, 1.0, 8))) == ["value", "ci_low", "ci_high", "n"]
