"""Total latency of a finite generation against the sum over all match sequences."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from ppdmodel import Policy, formulas, latency_per_token, replay, simulate, total_latency
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.formulas import distribution


def probability(matches: tuple[bool, ...], p: float, rho: float) -> float:
    """Of one sequence of a two-state Markov chain that starts at its long-run rate."""
    product, rate = 1.0, p
    for match in matches:
        product *= rate if match else 1 - rate
        rate = p + rho * (1 - p) if match else p * (1 - rho)
    return product


def exhaustive(
    p: float, d: int, e: int, tokens: int, depth: int | None, rho: float = 0.0
) -> dict[float, float]:
    """The sum over all sequences, each run through the simulator."""
    found: dict[float, float] = defaultdict(float)
    for matches in itertools.product([False, True], repeat=tokens - 1):
        run = replay(matches, Policy(e, 1, depth), layers=d).generations[0]
        found[float(run.finish_times[-1])] += probability(matches, p, rho)
    return {time: q for time, q in found.items() if q > 0}


@pytest.mark.parametrize(
    ("p", "d", "e", "tokens", "depth"),
    [
        (0.6, 8, 1, 8, 1),
        (0.6, 8, 1, 8, 2),
        (0.3, 8, 2, 9, 1),
        (0.9, 10, 1, 8, 3),
        (0.7, 9, 2, 12, 1),
        (0.4, 12, 1, 12, 2),
        (0.8, 12, 5, 12, None),
        (0.5, 8, 4, 6, 1),
        (0.5, 8, 3, 6, None),
        (1.0, 8, 1, 6, 1),
        (0.0, 8, 1, 6, 1),
        (0.5, 8, 1, 1, 1),
    ],
)
def test_equals_the_sum_over_all_sequences(
    p: float, d: int, e: int, tokens: int, depth: int | None
) -> None:
    total = total_latency(p, d, e, tokens, depth)
    times, probabilities = total.pmf()
    expected = exhaustive(p, d, e, tokens, depth)
    assert dict(zip(times.tolist(), probabilities.tolist(), strict=True)) == pytest.approx(expected)
    mean = sum(t * q for t, q in expected.items())
    assert total.mean == pytest.approx(mean)
    assert formulas.expected_total_latency(p, d, e, tokens, depth) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("p", "d", "e", "tokens", "depth", "rho"),
    [
        (0.6, 8, 1, 9, 1, 0.5),
        (0.6, 8, 1, 9, 2, -0.4),
        (0.3, 8, 2, 12, 1, 0.8),
        (0.5, 8, 4, 10, 1, 0.6),
        (0.5, 8, 3, 10, None, -0.9),
        (0.5, 8, 1, 1, 1, 0.5),
        (0.5, 8, 1, 2, 1, 0.5),
        (0.0, 8, 1, 5, 1, 0.5),
        (1.0, 8, 1, 5, 1, 0.5),
    ],
)
def test_correlated_equals_the_sum_over_all_sequences(
    p: float, d: int, e: int, tokens: int, depth: int | None, rho: float
) -> None:
    total = total_latency(p, d, e, tokens, depth, rho)
    expected = exhaustive(p, d, e, tokens, depth, rho)
    found = dict(zip(total.times.tolist(), total.probabilities.tolist(), strict=True))
    assert found == pytest.approx(expected)
    mean = sum(t * q for t, q in expected.items())
    assert formulas.correlated_total_latency(p, d, e, tokens, depth, rho) == pytest.approx(mean)
    if depth is None or (depth + 1) * e >= d:
        variance = sum((t - mean) ** 2 * q for t, q in expected.items())
        assert formulas.total_latency_variance(p, d, e, tokens, rho) == pytest.approx(variance)


def test_correlation_widens_the_total_as_simulated() -> None:
    """theory/05: the mean stays for (D+1)e >= d, the spread does not."""
    totals = [
        simulate(0.7, 40, 20, tokens=60, autocorrelation=0.6, seed=s).finish_times[-1]
        for s in range(3000)
    ]
    plain, chained = (total_latency(0.7, 40, 20, 60, 1, rho) for rho in (0.0, 0.6))
    assert chained.mean == pytest.approx(plain.mean)
    assert chained.std > 1.9 * plain.std
    assert np.mean(totals) == pytest.approx(chained.mean, abs=4 * chained.std / 3000**0.5)
    assert np.std(totals) == pytest.approx(chained.std, rel=0.06)


def test_quantiles_of_a_long_generation() -> None:
    total = total_latency(0.7, 40, 20, 101)
    assert total.mean == pytest.approx(40 + 100 * 26)
    assert total.std == pytest.approx(20 * (100 * 0.7 * 0.3) ** 0.5)
    quantiles = [total.quantile(q) for q in (0.05, 0.5, 0.95, 1.0)]
    assert quantiles == sorted(quantiles)
    assert quantiles[1] == pytest.approx(total.mean, abs=20)
    assert total.quantile(1.0) == total.times[-1]


def test_a_quantile_at_a_step_is_the_step() -> None:
    total = total_latency(0.5, 8, 4, tokens=4)
    assert total.probabilities == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8], rel=1e-15)
    assert [total.quantile(q) for q in (1 / 8, 4 / 8, 7 / 8, 1)] == total.times.tolist()
    assert [total.quantile(q) for q in (0.1, 0.4, 0.8, 0.99)] == total.times.tolist()


def test_by_default_matches_are_independent_and_the_depth_is_one() -> None:
    total = total_latency(0.6, 8, 1, 6)
    assert total.probabilities == pytest.approx(total_latency(0.6, 8, 1, 6, 1, 0).probabilities)
    assert total.mean == pytest.approx(formulas.expected_total_latency(0.6, 8, 1, 6, 1))


def test_a_long_deep_generation_stays_normalized() -> None:
    total = total_latency(0.6, 80, 5, 3000, 3)
    assert total.probabilities.sum() == pytest.approx(1)
    assert total.mean == pytest.approx(3000 * latency_per_token(0.6, 80, 5, 3), rel=1e-3)


@pytest.mark.parametrize(
    ("p", "d", "e", "tokens", "depth"),
    [(0.7, 40, 10, 6000, 1), (0.95, 80, 5, 6000, 3), (0.5, 40, 4, 6000, 2)],
)
def test_thousands_of_tokens_keep_their_mean(
    p: float, d: int, e: int, tokens: int, depth: int
) -> None:
    """The weights of so many misses do not fit a float unless they are scaled."""
    total = total_latency(p, d, e, tokens, depth)
    mean = formulas.expected_total_latency(p, d, e, tokens, depth)
    assert total.mean == pytest.approx(mean, rel=1e-10)
    low, high = total.quantile(0.16), total.quantile(0.84)
    assert (high - low) / 2 == pytest.approx(total.std, rel=0.05)


def test_what_takes_too_long_is_refused() -> None:
    for arguments, most in (
        ((0.7, 40, 20, 10**8), 10**7),
        ((0.7, 40, 10, 10**6), 20_000),
        ((0.7, 40, 20, 10**6, 1, 0.3), 20_000),
        ((0.7, 40, 10, 10**4, 1, 0.3), 2000),
    ):
        with pytest.raises(InvalidInputError, match=f"tokens must not exceed {most} for this"):
            total_latency(*arguments)


@pytest.mark.parametrize(
    ("chained", "grouped", "most"),
    [(False, False, 10**7), (False, True, 20_000), (True, False, 20_000), (True, True, 2000)],
)
def test_the_largest_size_is_accepted(chained: bool, grouped: bool, most: int) -> None:
    size, rho = (2 if grouped else None), (0.3 if chained else 0.0)
    distribution._check_size(most, chained=chained, grouped=grouped)
    with pytest.raises(InvalidInputError, match=f"not exceed {most} .*; got {most + 1}; ask"):
        distribution._counts(most, 0.7, size, rho)


def test_counts_too_unlikely_for_a_float_take_no_room() -> None:
    _, _, probabilities = distribution._counts(1500, 0.9, 2, 0.0)
    assert (probabilities > 0).all()


def test_one_setting_at_a_time() -> None:
    with pytest.raises(InvalidInputError, match="p_correct must be one number; got array"):
        total_latency(np.array([0.5, 0.6]), 8, 4, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="q must be a number of at least 0; got 'a'"):
        total_latency(0.5, 8, 4, 3).quantile("a")  # type: ignore[arg-type]


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidInputError, match="tokens must be a positive integer; got 0"):
        total_latency(0.5, 8, 4, 0)
    with pytest.raises(InvalidInputError, match=r"q must lie in \(0, 1\]; got 0"):
        total_latency(0.5, 8, 4, 3).quantile(0)
    with pytest.raises(InvalidInputError, match="q must lie in "):
        total_latency(0.5, 8, 4, 3).quantile(1.5)
    with pytest.raises(InvalidInputError, match=r"autocorrelation must lie in \[-1, 1\); got 1"):
        total_latency(0.5, 8, 4, 3, autocorrelation=1)
    with pytest.raises(InvalidInputError, match="autocorrelation must be at least"):
        total_latency(0.1, 8, 4, 3, autocorrelation=-0.5)
    with pytest.raises(InvalidInputError, match="exit_layer must not exceed layers"):
        total_latency(0.5, 8, 9, 3)


def test_probabilities_that_were_lost_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss by rounding is made up for."""

    def fewer(*arguments: Any) -> Any:
        *counts, probabilities = original(*arguments)
        return *counts, probabilities * share

    original, share = distribution._counts, 1 - 1e-7
    monkeypatch.setattr(distribution, "_counts", fewer)
    total = total_latency(0.5, 40, 20, tokens=8)
    assert total.probabilities.sum() == pytest.approx(1, abs=1e-12)
    share = 0.5
    with pytest.raises(RunFailedError, match=r"must add up to 1; got 0\.50*4?; ask for fewer"):
        total_latency(0.5, 40, 20, tokens=8)
