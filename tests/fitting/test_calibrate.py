"""What a fit recovers from made-up data; tests/fitting/test_curves.py has the families."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppdmodel import fit, load, save
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.curve_fit import curve_values, residuals
from ppdmodel.fitting.curves import family_of
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.intervals import prompt_weights, resampled_rates
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement

KUMARASWAMY = family_of("floored Kumaraswamy")


def surface(theta: dict[str, float], layers: int, k_max: int) -> np.ndarray:
    x, k = np.meshgrid(np.arange(1, layers + 1) / layers, np.arange(1.0, k_max + 1), indexing="ij")
    values = np.array([theta[name] for name in KUMARASWAMY.parameters])
    rates: np.ndarray = -np.expm1(KUMARASWAMY.log_miss(values, x, k))
    return rates


def test_recovers_a_known_surface() -> None:
    theta = {
        "log_steepness": 1.2,
        "log_weight": -0.6,
        "weight_gain": 0.25,
        "floor_logit": -2.8,
        "floor_gain": 1.0,
        "k_curvature": 0.4,
    }
    layers, k_max, prompts, tokens = 16, 12, 40, 400
    rates = surface(theta, layers, k_max)
    rng = np.random.default_rng(1)
    draws = rng.random((prompts * tokens, layers, 1))
    rank = 1 + (draws >= rates[None]).sum(axis=2)
    base = make_measurement(prompts=prompts, tokens=tokens, layers=layers)
    made = Measurement(**{**vars(base), "rank": rank})
    result = fit(made, k_max=k_max, resamples=40)
    assert result.curve.converged
    assert np.abs(surface_of(result.curve, layers, k_max) - rates).max() < 0.02
    assert result.curve.rms_residual < 0.01


def surface_of(curve: object, layers: int, k_max: int) -> np.ndarray:
    x = np.arange(1, layers + 1)[:, None] / layers
    return curve_values(curve, x, np.arange(1, k_max + 1))  # type: ignore[arg-type]


def test_the_surface_rises_with_depth_and_k_and_ends_at_one(measurement: Measurement) -> None:
    values = surface_of(fit(measurement, k_max=8, resamples=40).curve, 6, 8)
    assert (np.diff(values, axis=0) >= -1e-12).all()
    assert (np.diff(values, axis=1) >= -1e-12).all()
    assert values[-1] == pytest.approx(1)
    assert ((values >= 0) & (values <= 1)).all()


def test_rates_and_intervals_are_those_of_resampled_prompts(measurement: Measurement) -> None:
    result = fit(measurement, k_max=3, resamples=200, seed=5)
    hits, tokens = measurement.hits_by_prompt(3), measurement.tokens_by_prompt()
    assert result.p_correct == pytest.approx(hits.sum(axis=0) / tokens.sum())
    draws = resampled_rates(hits, tokens, prompt_weights(12, 200, 5))
    assert result.ci_low == pytest.approx(np.percentile(draws, 2.5, axis=0))
    assert result.ci_high == pytest.approx(np.percentile(draws, 97.5, axis=0))
    again = fit(measurement, k_max=3, resamples=200, seed=5)
    assert again.curve == result.curve


def test_residuals_are_measured_less_fitted(measurement: Measurement) -> None:
    result = fit(measurement, k_max=4, resamples=40)
    left = residuals(result)
    assert left == pytest.approx(result.p_correct - surface_of(result.curve, 6, 4))
    inner = left[:-1]
    assert np.sqrt(np.mean(inner**2)) == pytest.approx(result.curve.rms_residual)
    worst = np.unravel_index(np.abs(inner).argmax(), inner.shape)
    assert result.curve.largest_residual_layer == worst[0] + 1
    assert result.curve.largest_residual_k == worst[1] + 1


def test_resampled_rates_by_hand() -> None:
    hits, tokens = np.array([[1], [4]]), np.array([2, 8])
    weights = np.array([[2, 0], [1, 1], [0, 2]])
    assert resampled_rates(hits, tokens, weights)[:, 0].tolist() == [0.5, 0.5, 0.5]
    assert resampled_rates(np.array([[2], [0]]), tokens, weights)[:, 0].tolist() == [1.0, 0.2, 0.0]


def test_bad_input_is_named(measurement: Measurement) -> None:
    with pytest.raises(InvalidInputError, match="an interval needs at least 2 prompts; got 1"):
        fit(make_measurement(prompts=1))
    with pytest.raises(InvalidInputError, match="a fit needs at least 2 layers; got 1"):
        fit(make_measurement(layers=1))
    with pytest.raises(InvalidInputError, match="k_max must be a positive integer; got 0"):
        fit(measurement, k_max=0)
    with pytest.raises(InvalidInputError, match="resamples must be at least 40, of which one lies"):
        fit(measurement, resamples=39)
    recorded = replace(measurement, provenance={**measurement.provenance, "k_max": 31})
    with pytest.raises(InvalidInputError, match="k must be at most 31, as far as ranks were"):
        fit(recorded)


def test_what_the_counts_do_not_determine_has_no_interval(
    measurement: Measurement, tmp_path: Path
) -> None:
    """With one k nothing says how rates rise with k."""
    result = fit(measurement, family="floored Kumaraswamy", k_max=1, resamples=40)
    undetermined = {"weight_gain", "floor_gain", "k_curvature"}
    save(result, tmp_path / "cal.json")
    again = load(tmp_path / "cal.json")
    assert isinstance(again, Calibration)
    for curve in (result.curve, again.curve):
        for name, value in curve.parameters.items():
            assert np.isnan(value.ci_low) == np.isnan(value.ci_high) == (name in undetermined)
            assert (curve.standard_errors[name] is None) == (name in undetermined)
            assert value.ci_low != value.ci_high
    assert np.isfinite(surface_of(again.curve, 6, 1)).all()


def test_a_title_says_what_sets_a_calibration_apart(measurement: Measurement) -> None:
    assert fit(measurement, resamples=40).title == "made-up"
    about = {"exit_kind": "trained", "decoding": "sampled", "temperature": 0.7}
    sampled = replace(
        measurement,
        provenance={**measurement.provenance, **about},
        coupled_rank=np.minimum(measurement.rank, 2),
    )
    calibration = fit(sampled.coupled(), resamples=40)
    assert calibration.title == (
        "made-up, trained exits, sampled at temperature 0.7, coupled guesses"
    )
    assert (calibration.p_correct[:, 1] == 1).all()
    with pytest.raises(InvalidInputError, match="coupled guesses need sampled text"):
        measurement.coupled()


def test_a_calibration_is_a_table_of_rates(measurement: Measurement) -> None:
    result = fit(measurement, k_max=3, resamples=40)
    frame = result.to_frame()
    assert list(frame.columns) == [
        "exit_layer", "k", "p_correct", "p_correct_low", "p_correct_high"
    ]  # fmt: skip
    assert len(frame) == 6 * 3
    row = frame[(frame.exit_layer == 4) & (frame.k == 2)].iloc[0]
    assert row.p_correct == result.p_correct[3, 1]
    assert json.loads(result.to_json())["layers"] == 6
