"""A timing, and its bootstrap over repetitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel.results.timing import Timing, resampled_timing
from tests.pipeline.test_prediction_error import a_timing


def numbered() -> Timing:
    """Samples that tell which repetition they are of: 0...7, and tens for each term."""
    timing = a_timing()
    ones = np.arange(8.0)
    terms = {name: (10 * n + ones).tolist() for n, name in enumerate(timing.terms)}
    by_k = {
        str(k): {
            name: [(1000 * k + 100 * place + 10 * n + ones).tolist() for place in range(2)]
            for n, name in enumerate(each)
        }
        for k, each in timing.by_k.items()
    }
    return replace(timing, samples={"terms": terms, "by_k": by_k})


def test_all_terms_of_a_repetition_are_drawn_at_once() -> None:
    """So terms of the same repetition stay together: each is another by a constant."""
    timing, rng, seen = numbered(), np.random.default_rng(0), set()
    for _ in range(20):
        drawn = resampled_timing(timing, rng)
        first = next(iter(drawn.terms.values()))
        assert first.value == first.ci_low == first.ci_high
        assert first.n == 8
        seen.add(first.value)
        for n, term in enumerate(drawn.terms.values()):
            assert term.value == pytest.approx(first.value + 10 * n)
        for k, each in drawn.by_k.items():
            for n, terms in enumerate(each.values()):
                for place, term in enumerate(terms):
                    assert term.value == pytest.approx(
                        first.value + 1000 * k + 100 * place + 10 * n
                    )
    assert len(seen) > 5


def test_draws_scatter_as_the_median_of_repetitions_does() -> None:
    """Exactly: the bootstrap distribution of a median of 8 numbers, from many draws of them."""
    timing, rng = numbered(), np.random.default_rng(1)
    drawn = [resampled_timing(timing, rng).terms["layer_time_s"].value for _ in range(1000)]
    other = np.random.default_rng(2).integers(0, 8, (20_000, 8))
    expected = np.median(other, axis=1)
    assert np.mean(drawn) == pytest.approx(expected.mean(), abs=0.15)
    assert np.std(drawn) == pytest.approx(expected.std(), rel=0.1)


def test_what_a_timing_stays_the_same_in() -> None:
    timing = numbered()
    drawn = resampled_timing(timing, np.random.default_rng(0))
    for name in ("model", "layers", "units", "exit_layers", "layer_profile_s", "provenance"):
        assert getattr(drawn, name) == getattr(timing, name)
    assert list(drawn.by_k) == [1, 3]


def test_what_decides_is_read_from_the_provenance_once() -> None:
    timing = a_timing()
    assert (timing.is_ideal, timing.units_per_process) == (False, 1)
    about = {"machine": "an abacus", "basis": "ideal", "units_per_process": 4}
    ideal = replace(timing, provenance=about)
    assert (ideal.machine, ideal.is_ideal, ideal.units_per_process) == ("an abacus", True, 4)
    assert replace(timing, provenance={}).machine is None
