"""The fitted curve: what it recovers, what it says of itself, and how its family is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ppdmodel import Calibration, fit, fit_table, load, save
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.cross_validation import FOLDS
from ppdmodel.fitting.curve_fit import _undetermined, curve_values, fit_curve, residuals
from ppdmodel.fitting.curves import FAMILIES, CurveFamily, family_of
from ppdmodel.fitting.likelihood import Cells, maximize
from ppdmodel.results.calibration import MatchCurve
from ppdmodel.results.hit_counts import HitCounts
from ppdmodel.results.intervals import percentiles, prompt_weights
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


def surface_of(curve: MatchCurve, layers: int, k_max: int) -> np.ndarray:
    x = np.arange(1, layers + 1)[:, None] / layers
    return curve_values(curve, x, np.arange(1.0, k_max + 1))


def test_the_surface_rises_with_depth_and_k_and_ends_at_one(measurement: Measurement) -> None:
    values = surface_of(fit(measurement, k_max=8, resamples=40).curve, 6, 8)
    assert (np.diff(values, axis=0) >= -1e-12).all()
    assert (np.diff(values, axis=1) >= -1e-12).all()
    assert values[-1] == pytest.approx(1)
    assert ((values >= 0) & (values <= 1)).all()


def test_residuals_are_measured_less_fitted(measurement: Measurement) -> None:
    result = fit(measurement, k_max=4, resamples=40)
    left = residuals(result)
    assert left == pytest.approx(result.p_correct - surface_of(result.curve, 6, 4))
    inner = left[:-1]
    assert np.sqrt(np.mean(inner**2)) == pytest.approx(result.curve.rms_residual)
    worst = np.unravel_index(np.abs(inner).argmax(), inner.shape)
    assert result.curve.largest_residual_layer == worst[0] + 1
    assert result.curve.largest_residual_k == worst[1] + 1


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


# ---------------------------------------------------------------- the choice of a family

EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


def drawn_from(family: CurveFamily, prompts: int = 30, tokens: int = 200) -> Measurement:
    """Ranks of which a surface of the family is the truth, to k = 8."""
    layers, k_max = 12, 8
    x, k = np.meshgrid(np.arange(1, layers + 1) / layers, np.arange(1.0, k_max + 1), indexing="ij")
    with np.errstate(divide="ignore"):
        rates = -np.expm1(family.log_miss(TRUTH[family.name], x, k))
    draws = np.random.default_rng(1).random((prompts * tokens, layers, 1))
    base = make_measurement(prompts=prompts, tokens=tokens, layers=layers)
    return replace(base, rank=1 + (draws >= rates[None]).sum(axis=2))


#: as unlike each other as the families allow
TRUTH = {
    "floored Kumaraswamy": np.array([1.6, -1.2, 0.5, -2.5, 1.0, 0.4]),
    "floored power": np.array([1.4, 0.6, -2.5, 0.8, 0.5]),
    "rank tail": np.array([1.0, -0.3, -4.0, 0.02, 1.2]),
}


@EACH
def test_held_out_likelihood_finds_the_family_or_one_that_predicts_as_well(
    family: CurveFamily,
) -> None:
    curve = fit(drawn_from(family), k_max=8, resamples=40).curve
    assert len(curve.candidates) == len(FAMILIES)
    true = next(c for c in curve.candidates if c.family == family.name)
    assert true.behind <= 2 * true.behind_se + 1e-12
    assert curve.candidates[0].family == curve.family
    assert curve.candidates[0].behind == 0
    behind = [c.behind for c in curve.candidates]
    assert behind == sorted(behind)
    x, k = np.arange(1, 13)[:, None] / 12, np.arange(1.0, 9)
    with np.errstate(divide="ignore"):
        truth = -np.expm1(family.log_miss(TRUTH[family.name], x + 0 * k, k + 0.0 * x))
    assert np.abs(curve_values(curve, x, k) - truth).max() < 0.02


def test_a_given_family_is_taken() -> None:
    curve = fit(make_measurement(), family="rank tail", k_max=4, resamples=40).curve
    assert curve.family == "rank tail"
    assert [c.family for c in curve.candidates] == ["rank tail"]
    assert list(curve.standard_errors) == list(family_of("rank tail").parameters)
    for name, error in curve.standard_errors.items():
        value = curve.parameters[name]
        if error is None:  # held at its bound
            assert np.isnan([value.ci_low, value.ci_high]).all()
            continue
        assert error > 0
        assert value.ci_low < value.ci_high
    covariance = np.array(curve.covariance)
    assert covariance == pytest.approx(covariance.T, nan_ok=True)
    with pytest.raises(InvalidInputError, match="the family must be one of floored Kumaraswamy"):
        fit(make_measurement(), family="spline")


def test_one_cell_determines_no_parameter(tmp_path: Path) -> None:
    """Steepness, weight and floor trade off: one rate is not three numbers."""
    path = tmp_path / "one.csv"
    rows = [f"12,1,{31 - n},110,q{n}" for n in range(4)]
    path.write_text("\n".join(["exit_layer,k,hits,n,prompt_id", *rows]) + "\n", encoding="utf-8")
    for family in FAMILIES:
        curve = fit_table(path, 24, family=family, resamples=40).curve
        assert set(curve.standard_errors.values()) == {None}
        assert all(np.isnan(value.ci_low) for value in curve.parameters.values())


@pytest.fixture(scope="module")
def chosen(measurement: Measurement) -> Calibration:
    return fit(measurement, k_max=4, resamples=40, seed=3)


def test_scores_are_those_of_folds_by_hand(chosen: Calibration) -> None:
    """Each fold's log-likelihood under the fit to the others, per token and averaged over cells."""
    prompts, tokens = len(chosen.tokens), chosen.tokens.astype(float)
    inner = chosen.hits[:, :5].astype(float)
    fold = np.random.default_rng(3).permutation(prompts) % FOLDS
    found = {}
    for name, family in FAMILIES.items():
        cells = Cells.of(family, 6, np.arange(1, 6), np.arange(1, 5))
        score = np.zeros(prompts)
        for number in range(FOLDS):
            inside = fold != number
            theta, converged = maximize(cells, inner[inside].sum(0), tokens[inside].sum())
            assert converged
            p = cells.rates(theta)
            for prompt in np.flatnonzero(fold == number):
                hits, n = inner[prompt], tokens[prompt]
                score[prompt] = (hits * np.log(p) + (n - hits) * np.log1p(-p)).mean()
        found[name] = score
    best = max(found.values(), key=np.sum)
    for row in chosen.curve.candidates:
        score = found[row.family]
        assert row.held_out == pytest.approx(score.sum() / tokens.sum(), abs=1e-5)
        behind = (best - score) / tokens.sum()
        assert row.behind == pytest.approx(behind.sum(), abs=1e-5)
        assert row.behind_se == pytest.approx(behind.std(ddof=1) * prompts**0.5, abs=1e-5)


def test_intervals_and_covariance_are_of_refits_to_resampled_prompts(chosen: Calibration) -> None:
    curve = chosen.curve
    cells = Cells.of(family_of(curve.family), 6, np.arange(1, 6), np.arange(1, 5))
    inner, tokens = chosen.hits[:, :5].astype(float), chosen.tokens.astype(float)
    weights = prompt_weights(12, 40, 3)
    best, _ = maximize(cells, inner.sum(0), tokens.sum())
    assert [p.value for p in curve.parameters.values()] == pytest.approx(best, abs=1e-3)
    draws = np.array(
        [maximize(cells, np.tensordot(w, inner, 1), float(w @ tokens), best)[0] for w in weights]
    )
    low, high = percentiles(draws, 12)
    known = [name for name, error in curve.standard_errors.items() if error is not None]
    assert known
    for place, (name, value) in enumerate(curve.parameters.items()):
        assert (value.n_tokens, value.n_prompts) == (240, 12)
        if name in known:
            assert value.ci_low == pytest.approx(low[place], abs=0.02)
            assert value.ci_high == pytest.approx(high[place], abs=0.02)
            error = curve.standard_errors[name]
            assert error == pytest.approx(draws[:, place].std(ddof=1), rel=0.05)


def test_cells_that_were_not_counted_are_not_fitted(measurement: Measurement) -> None:
    """A table of exits 2 and 4 at k = 1 and 3 is fitted at those four cells alone."""
    counts = replace(
        HitCounts.of(measurement, k_max=3, with_recorded=False), exit_layers=(2, 4, 6), ks=(1, 3)
    )
    family = family_of("rank tail")
    curve = fit_curve(counts, [family], prompt_weights(12, 40, 0))
    cells = Cells.of(family, 6, np.array([2, 4]), np.array([1, 3]))
    inner = counts.hits[:, [1, 3]][:, :, [0, 2]].sum(0).astype(float)
    theta, _ = maximize(cells, inner, 240.0)
    left = inner / 240 - cells.rates(theta)
    assert curve.rms_residual == pytest.approx(np.sqrt((left**2).mean()), rel=1e-3, abs=1e-6)
    assert (curve.largest_residual_layer, curve.largest_residual_k) in {
        (e, k) for e in (2, 4) for k in (1, 3)
    }
    whole = replace(
        fit(measurement, k_max=3, family="rank tail", resamples=40), exit_layers=(2, 4), ks=(1, 3)
    )
    assert np.isfinite(residuals(whole)).sum() == 4


def test_what_is_determined_does_not_depend_on_the_units_of_parameters() -> None:
    """Two parameters that are well apart, one of them in units a million times as large."""
    draws = np.random.default_rng(0).random((9, 3))

    def unknown(correlation: float, units: float) -> list[bool]:
        scale = np.outer([1.0, units, 1.0], [1.0, units, 1.0])
        matrix = np.array([[1.0, correlation, 0.0], [correlation, 1.0, 0.0], [0.0, 0.0, 1.0]])
        cells: Any = SimpleNamespace(
            gradient_and_information=lambda *_: (0.0, np.zeros(3), matrix * scale)
        )
        found: list[bool] = _undetermined(cells, np.ones(3), draws, draws, 1.0).tolist()
        return found

    for units in (1.0, 1e-6, 1e6):
        assert not any(unknown(0.5, units))
        assert unknown(1 - 1e-14, units) == [True, True, False], "they trade off exactly"


def test_a_curve_that_is_not_of_its_family_is_refused(chosen: Calibration) -> None:
    """A file may hold any number for a parameter; beyond its bounds it is no match-rate curve."""
    curve = chosen.curve
    name, *_ = curve.parameters
    value = curve.parameters[name]
    for other, words in (
        ({}, "got none"),
        ({name: replace(value, value=99.0)}, "got 99.0"),
        ({name: replace(value, value=-99.0)}, "got -99.0"),
        ({name: replace(value, value=float("nan"))}, "got nan"),
    ):
        kept = {key: x for key, x in curve.parameters.items() if key != name}
        with pytest.raises(InvalidInputError, match=f"^{name} of the curve .* {words}; fit again"):
            curve_values(replace(curve, parameters=kept | other), 0.5, 1)
    low, high = family_of(curve.family).bounds[0]
    for bound in (low, high):
        at = dict(curve.parameters) | {name: replace(value, value=bound)}
        assert 0 <= curve_values(replace(curve, parameters=at), 0.5, 1) <= 1
