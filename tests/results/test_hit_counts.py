"""Hits and tokens of a measurement and of its calibration are the same; one way to get them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel import Calibration, fit
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.hit_counts import K_MAX, HitCounts, hits_at
from ppdmodel.results.intervals import prompt_weights
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement
from tests.support.tables import repeating_guesses


@pytest.fixture(scope="module")
def calibration(measurement: Measurement) -> Calibration:
    return fit(measurement, k_max=5, family="rank tail", resamples=50, seed=9)


def test_counts_of_a_measurement(measurement: Measurement) -> None:
    counts = HitCounts.of(measurement, k_max=7)
    assert (counts.model, counts.layers) == ("made-up", 6)
    assert counts.prompt_ids == measurement.prompt_ids
    assert counts.tokens.tolist() == [20] * 12
    assert counts.hits.shape == (12, 6, 7)
    first = measurement.rank[measurement.prompt_index == 3, 2]
    assert counts.hits[3, 2].tolist() == [(first <= k).sum() for k in range(1, 8)]
    assert counts.provenance is measurement.provenance
    assert (counts.exit_layers, counts.ks) == (None, None)
    assert HitCounts.of(measurement).hits.shape[2] == K_MAX == 32


def test_a_calibration_gives_what_it_was_made_from(
    measurement: Measurement, calibration: Calibration
) -> None:
    mine, its = HitCounts.of(measurement, k_max=5), HitCounts.of(calibration)
    for name in ("model", "layers", "prompt_ids", "exit_layers", "ks", "provenance", "title"):
        assert getattr(mine, name) == getattr(its, name), name
    assert np.array_equal(mine.hits, its.hits)
    assert np.array_equal(mine.tokens, its.tokens)
    assert (its.resamples, its.seed) == (50, 9)
    assert (mine.resamples, mine.seed) == (1000, 0)
    assert its.recorded is calibration.recorded
    some = HitCounts.of(replace(calibration, exit_layers=(2,), ks=(1, 3)))
    assert (some.exit_layers, some.ks) == ((2,), (1, 3))


def test_resamples_are_those_of_the_prompts(calibration: Calibration) -> None:
    weights = HitCounts.of(calibration).weights()
    assert np.array_equal(weights, prompt_weights(12, 50, 9))


def test_counts_of_recorded_tokens_come_along_if_wanted(measurement: Measurement) -> None:
    assert HitCounts.of(measurement, with_recorded=False).recorded is None
    plain = HitCounts.of(measurement).recorded
    assert plain is not None
    assert plain.shared is None
    full = HitCounts.of(measurement, guesses=repeating_guesses(measurement)).recorded
    assert full is not None
    assert full.shared is not None


def test_several_are_put_one_after_another(measurement: Measurement) -> None:
    other = replace(
        make_measurement(prompts=3, seed=4), prompt_ids=("a", "b", "c"), categories=("x",) * 3
    )
    parts = [HitCounts.of(one, k_max=4) for one in (measurement, other)]
    whole = HitCounts.joined(parts)
    assert whole.prompt_ids == (*measurement.prompt_ids, "a", "b", "c")
    assert whole.tokens.tolist() == [20] * 15
    assert np.array_equal(whole.hits[12:], parts[1].hits)
    assert whole.recorded is not None
    assert len(whole.recorded.tokens) == 15
    without = replace(parts[1], recorded=None)
    assert HitCounts.joined([parts[0], without]).recorded is None


def test_guesses_are_not_of_a_calibration(
    measurement: Measurement, calibration: Calibration
) -> None:
    with pytest.raises(InvalidInputError, match="guesses must be left out for a calibration"):
        HitCounts.of(calibration, guesses=repeating_guesses(measurement))


def test_hits_at_one_setting(measurement: Measurement, calibration: Calibration) -> None:
    for source in (measurement, calibration):
        hits, tokens = hits_at(source, 4, 5)
        assert hits.tolist() == calibration.hits[:, 3, 4].tolist()
        assert tokens.tolist() == [20] * 12
    beyond, _ = hits_at(measurement, 4, 900)
    assert beyond.tolist() == [20] * 12
    with pytest.raises(InvalidInputError, match="what the calibration recorded; got 6; it has 1 t"):
        hits_at(calibration, 4, 6)
    some = replace(calibration, exit_layers=(2, 4), ks=(1, 5))
    assert hits_at(some, 4, 5)[0].tolist() == calibration.hits[:, 3, 4].tolist()
    for e, k in ((3, 5), (4, 2)):
        with pytest.raises(InvalidInputError, match=r"got exit layer ., k = .; it has exit layers"):
            hits_at(some, e, k)
