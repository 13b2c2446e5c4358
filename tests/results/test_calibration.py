"""A calibration: what was measured, titles, tables, standard errors."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ppdmodel import Calibration, fit
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.calibration import MatchCurve
from ppdmodel.results.measurement import Measurement


@pytest.fixture(scope="module")
def calibration(measurement: Measurement) -> Calibration:
    return fit(measurement, k_max=3, family="rank tail", resamples=40)


def test_a_title_says_what_sets_a_calibration_apart(measurement: Measurement) -> None:
    assert fit(measurement, family="rank tail", resamples=40).title == "made-up"
    about = {"exit_kind": "trained", "decoding": "sampled", "temperature": 0.7}
    sampled = replace(
        measurement,
        provenance={**measurement.provenance, **about},
        coupled_rank=np.minimum(measurement.rank, 2),
    )
    calibration = fit(sampled.coupled(), family="rank tail", resamples=40)
    assert calibration.title == (
        "made-up, trained exits, sampled at temperature 0.7, coupled guesses"
    )
    assert (calibration.p_correct[:, 1] == 1).all()
    with pytest.raises(InvalidInputError, match="coupled guesses need sampled text"):
        measurement.coupled()


def test_a_calibration_is_a_table_of_rates(calibration: Calibration) -> None:
    result = calibration
    frame = result.to_frame()
    assert list(frame.columns) == [
        "exit_layer", "k", "p_correct", "p_correct_low", "p_correct_high"
    ]  # fmt: skip
    assert len(frame) == 6 * 3
    row = frame[(frame.exit_layer == 4) & (frame.k == 2)].iloc[0]
    assert row.p_correct == result.p_correct[3, 1]
    assert json.loads(result.to_json())["layers"] == 6
    assert (row.p_correct_low, row.p_correct_high) == (result.ci_low[3, 1], result.ci_high[3, 1])
    first = result._rows()[0].p_correct
    assert (first.n_tokens, first.n_prompts) == (240, 12)


def test_what_was_measured(calibration: Calibration) -> None:
    assert calibration.k_max == 3
    assert [bool(calibration.has(e, k)) for e, k in ((1, 1), (6, 3), (0, 1), (7, 1), (1, 4))] == [
        True, True, False, False, False
    ]  # fmt: skip
    some = replace(calibration, exit_layers=(2, 4), ks=(1, 3))
    e, k = np.arange(1, 7)[:, None], np.arange(1, 4)
    expected = np.zeros((6, 3), dtype=bool)
    expected[np.ix_([1, 3], [0, 2])] = True
    assert np.array_equal(some.has(e, k), expected)
    assert [(r.exit_layer, r.k) for r in some._rows()] == [(2, 1), (2, 3), (4, 1), (4, 3)]


def test_standard_errors_are_roots_of_variances(calibration: Calibration) -> None:
    curve = replace(
        calibration.curve,
        parameters=dict(list(calibration.curve.parameters.items())[:2]),
        covariance=((4.0, 1.0), (1.0, float("nan"))),
    )
    assert isinstance(curve, MatchCurve)
    assert list(curve.standard_errors.values()) == [2.0, None]
    older = replace(curve, covariance=())
    assert older.standard_errors == {}


def test_a_table_has_no_title_of_its_own(calibration: Calibration) -> None:
    assert replace(calibration, provenance={}).title == "made-up"
