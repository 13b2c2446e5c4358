"""What a fit takes and gives; tests/fitting/test_curve_fit.py has the fitted curve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdmodel import fit, load, save
from ppdmodel.checks import MOST_K
from ppdmodel.cli import run
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.calibrate import check_layers, check_recorded_k
from ppdmodel.fitting.guess_reliability import reliability_of
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.intervals import MIN_RESAMPLES, RATE_METHOD, rate_ends
from ppdmodel.results.measurement import Measurement
from ppdmodel.results.prompt_lookup import joined_hits
from tests.conftest import make_measurement
from tests.pipeline.test_prediction_error import a_timing
from tests.support.tables import repeating_guesses


def test_rates_have_the_interval_of_the_jackknife(measurement: Measurement) -> None:
    """Whatever the resamples, which are for the curve."""
    result = fit(measurement, k_max=3, resamples=200, seed=5, family="rank tail")
    hits, tokens = measurement.hits_by_prompt(3), measurement.tokens_by_prompt()
    assert result.p_correct == pytest.approx(hits.sum(axis=0) / tokens.sum())
    low, high = rate_ends(hits, tokens)
    assert (result.ci_low.tolist(), result.ci_high.tolist()) == (low.tolist(), high.tolist())
    other = fit(measurement, k_max=3, resamples=100, seed=6, family="rank tail")
    assert np.array_equal(other.ci_low, result.ci_low)
    assert {row.p_correct.method for row in result._rows()} == {RATE_METHOD}
    again = fit(measurement, k_max=3, resamples=200, seed=5, family="rank tail")
    assert repr(again.curve) == repr(result.curve) != repr(other.curve)


def test_bad_input_is_named(measurement: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="an interval needs at least 2 prompts; got 1"):
        fit(make_measurement(prompts=1))
    with pytest.raises(InvalidInputError, match="a fit needs at least 2 layers; got 1"):
        fit(make_measurement(layers=1))
    with pytest.raises(InvalidInputError, match="k_max must be a positive integer; got 0"):
        fit(measurement, k_max=0)
    monkeypatch.setattr("ppdmodel.fitting.calibrate.MIN_RESAMPLES", MIN_RESAMPLES)
    with pytest.raises(InvalidInputError, match="resamples must be at least 400, of which ten"):
        fit(measurement, resamples=399)
    recorded = replace(measurement, provenance={**measurement.provenance, "k_max": 31})
    with pytest.raises(InvalidInputError, match="k must be at most 31, as far as ranks were"):
        fit(recorded)
    with pytest.raises(InvalidInputError, match=r"k must be at most 31, .*; got 1000"):
        fit(recorded, k_max=MOST_K)


def test_several_measurements_of_one_model(tmp_path: Path) -> None:
    one, other = make_measurement(seed=1), make_measurement(seed=2)
    with pytest.raises(InvalidInputError, match="in one measurement only; got 'p0' twice"):
        fit([one, other])
    names = tuple(f"q{n}" for n in range(12))
    both = [one, Measurement(**{**vars(other), "prompt_ids": names})]
    together = fit(both, k_max=4, family="rank tail", resamples=40)
    assert together.prompt_ids == one.prompt_ids + names
    apart = [fit(m, k_max=4, family="rank tail", resamples=40) for m in both]
    assert together.p_correct == pytest.approx((apart[0].p_correct + apart[1].p_correct) / 2)
    about = {**one.provenance, "exit_kind": "trained"}
    with pytest.raises(
        InvalidInputError, match="measurement 2 with exit_kind 'trained' instead of 'logit'"
    ):
        fit([one, Measurement(**{**vars(both[1]), "provenance": about})])
    for number, each in enumerate(both):
        save(each, tmp_path / str(number))
    out = tmp_path / "cal.json"
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert run(["fit", *folders, "--out", str(out), "--resamples", "40"]) == 0
    found = load(out)
    assert isinstance(found, Calibration)
    assert len(found.prompt_ids) == 24


def test_numbers_at_the_ends_of_what_is_taken(measurement: Measurement) -> None:
    least = fit(measurement, k_max=1, family="rank tail", resamples=MIN_RESAMPLES)
    assert (least.resamples, least.seed, least.k_max) == (400, 0, 1)
    with pytest.raises(InvalidInputError, match="k_max must be at most 1000; got 1001"):
        fit(measurement, k_max=MOST_K + 1)
    with pytest.raises(InvalidInputError, match="seed must be 0 or more; got -1"):
        fit(measurement, seed=-1)
    check_layers(2)
    for most, fits in ((31, False), (32, True), (None, True)):
        recorded = replace(measurement, provenance={**measurement.provenance, "k_max": most})
        if fits:
            check_recorded_k(recorded, 32)
            continue
        with pytest.raises(InvalidInputError, match="k must be at most 31"):
            check_recorded_k(recorded, 32)


def test_a_timing_of_the_model_is_kept_and_of_another_refused(measurement: Measurement) -> None:
    about = {name: measurement.provenance[name] for name in ("weights_sha256", "dtype")}
    about |= {"exit_kind": "logit"}
    timing = replace(a_timing(), layers=6, provenance=about)
    options: dict[str, Any] = {"k_max": 2, "family": "rank tail", "resamples": 40}
    assert fit(measurement, timing=timing, **options).timing is timing
    with pytest.raises(InvalidInputError, match="the timing must be of the measured model; got"):
        fit(measurement, timing=a_timing(), **options)


def test_a_fit_says_what_it_is_of(measurement: Measurement) -> None:
    result = fit(measurement, k_max=2, family="rank tail", resamples=40, seed=4)
    assert result.provenance["measurement"] == measurement.provenance
    assert set(result.provenance["fit"]["packages"]) == {"ppdmodel", "numpy", "scipy"}
    assert (result.model, result.layers, result.seed) == ("made-up", 6, 4)
    assert result.prompt_ids == measurement.prompt_ids
    assert (result.exit_layers, result.ks, result.timing) == (None, None, None)


def test_guesses_go_with_their_measurements(measurement: Measurement) -> None:
    guesses = repeating_guesses(measurement)
    other = replace(measurement, prompt_ids=tuple(f"q{n}" for n in range(12)))
    options: dict[str, Any] = {"k_max": 2, "family": "rank tail", "resamples": 40}
    both = fit([measurement, other], guesses=[guesses, None], **options)
    assert both.recorded is not None
    assert both.recorded.shared is None
    assert both.reliability == ()
    alone = fit(measurement, guesses=guesses, **options)
    assert alone.reliability == reliability_of([(measurement, guesses)], alone.seed)
    assert [one.exit_layer for one in alone.reliability] == [3, 4, 5]
    for given, words in (([guesses], "got 1 for 2"), ([None] * 3, "got 3 for 2")):
        with pytest.raises(InvalidInputError, match=f"for each measurement; {words}"):
            fit([measurement, other], guesses=given, **options)


def with_prompts(measurement: Measurement) -> Measurement:
    """Of few tokens, which come again."""
    texts = len(measurement.starts()) - 1
    repeats = replace(measurement, token_id=measurement.token_id % 5)
    return replace(repeats, context_ids=(repeats.token_id[:9],) * texts)


def test_a_guess_by_prompt_lookup_is_counted(measurement: Measurement) -> None:
    known = with_prompts(measurement)
    guesses = repeating_guesses(known)
    options: dict[str, Any] = {"family": "floored power", "resamples": 400}
    joined = fit(known, guesses=guesses, ngrams=2, **options)
    assert np.array_equal(joined.hits, joined_hits(known, guesses, 2))
    assert joined.k_max == 8
    assert joined.measured["ngrams"] == 2
    assert joined.title == "made-up, a guess by prompt lookup"
    fewer = fit(known, guesses=guesses, ngrams=2, k_max=3, **options)
    assert np.array_equal(fewer.hits, joined.hits[:, :, :3])
    plain = fit(known, guesses=guesses, **options)
    assert plain.k_max == 32
    assert "ngrams" not in plain.measured
    with pytest.raises(InvalidInputError, match="k_max must be at most 8, as many guesses as"):
        fit(known, guesses=guesses, ngrams=2, k_max=9, **options)
    with pytest.raises(InvalidInputError, match="got a measurement without guesses; measure again"):
        fit(known, ngrams=2, **options)
    with pytest.raises(InvalidInputError, match="got a measurement without prompts; measure again"):
        fit(measurement, guesses=repeating_guesses(measurement), ngrams=2, **options)
