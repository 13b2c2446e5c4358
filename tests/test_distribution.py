"""Total latency of a finite generation against the sum over all match sequences."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest

from ppdmodel import latency_per_token, simulate_matches, total_latency
from ppdmodel.errors import InvalidInputError


def exhaustive(p: float, d: int, e: int, tokens: int, depth: int | None) -> dict[int, float]:
    found: dict[int, float] = defaultdict(float)
    for matches in itertools.product([False, True], repeat=tokens - 1):
        time = simulate_matches(matches, d, e, 1, depth).finish_times[-1]
        hits = sum(matches)
        found[time] += p**hits * (1 - p) ** (tokens - 1 - hits)
    return {time: q for time, q in found.items() if q > 0}


@pytest.mark.parametrize(
    ("p", "d", "e", "tokens", "depth"),
    [
        (0.6, 8, 1, 8, 1),
        (0.6, 8, 1, 8, 2),
        (0.3, 8, 2, 9, 1),
        (0.9, 10, 1, 8, 3),
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
    assert total.mean == pytest.approx(sum(t * q for t, q in expected.items()))


def test_quantiles_of_a_long_generation() -> None:
    total = total_latency(0.7, 40, 20, 101)
    assert total.mean == pytest.approx(40 + 100 * 26)
    assert total.std == pytest.approx(20 * (100 * 0.7 * 0.3) ** 0.5)
    quantiles = [total.quantile(q) for q in (0.05, 0.5, 0.95, 1.0)]
    assert quantiles == sorted(quantiles)
    assert quantiles[1] == pytest.approx(total.mean, abs=20)
    assert total.quantile(1.0) == total.times[-1]


def test_a_long_deep_generation_stays_normalized() -> None:
    total = total_latency(0.6, 80, 5, 3000, 3)
    assert total.probabilities.sum() == pytest.approx(1)
    assert total.mean == pytest.approx(3000 * latency_per_token(0.6, 80, 5, 3), rel=1e-3)


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidInputError, match="tokens must be a positive integer; got 0"):
        total_latency(0.5, 8, 4, 0)
    with pytest.raises(InvalidInputError, match=r"q must lie in \(0, 1\]; got 0"):
        total_latency(0.5, 8, 4, 3).quantile(0)
    with pytest.raises(InvalidInputError, match="exit_layer must not exceed layers"):
        total_latency(0.5, 8, 9, 3)
