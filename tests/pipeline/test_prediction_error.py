"""Predictions, corrections and intervals against simulated grids whose truth is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppdmodel as ppd
from ppdmodel.decide.prediction import (
    predicted_compute,
    predicted_latency_s,
    predicted_match_rate,
    predicted_plain_latency_s,
    schedule_times,
)
from ppdmodel.errors import InvalidInputError
from ppdmodel.pipeline import prediction_error
from ppdmodel.pipeline.options import PpdSetting
from ppdmodel.pipeline.prediction_error import (
    CORRECTED,
    Corrections,
    SettingRuns,
    binomial_interval,
    coverage_over_splits,
    error_row,
    errors_summary,
    excluding_prompts,
    fit_corrections,
    predict,
    predicted_ratio,
)
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.timing import Timed, Timing, resampled_timing

CELLS = [PpdSetting(e, k) for e in (16, 19, 22, 25) for k in (1, 3)]
NO_CORRECTIONS = Corrections(dict.fromkeys(CORRECTED, 1.0), 0.0)
DATA = Path(__file__).parents[2] / "data"


def a_timing(**changes: float) -> Timing:
    """Times in seconds, about those of a small model on two cores."""
    rng = np.random.default_rng(0)

    def timed(value: float) -> tuple[Timed, list[float]]:
        """A time with this median, and eight repetitions of it."""
        drawn = value * rng.normal(1, 0.01, 8)
        drawn *= value / np.median(drawn)
        return Timed(value, value, value, 8), drawn.tolist()

    values = {
        "layer_time_s": 1.3e-3,
        "head_time_s": 8e-3,
        "token_time_s": 3e-4,
        "plain_latency_s": 47.3e-3,
        "split_latency_s": 36e-3,
    } | changes
    together = {
        "layer_time_s": 1.3e-3,
        "busy_layer_time_s": 1.35e-3,
        "batch_layer_time_s": 1.7e-3,
        "head_time_s": 8.1e-3,
        "exit_time_s": 8.5e-3,
        "token_time_s": 3e-4,
        "start_delay_s": 3e-5,
        "promotion_delay_s": 5e-5,
    }
    terms = {name: timed(value) for name, value in values.items()}
    by_k = {
        k: {name: (timed(value), timed(value)) for name, value in together.items()} for k in (1, 3)
    }
    return Timing(
        model="m",
        layers=30,
        units=2,
        terms={name: time for name, (time, _) in terms.items()},
        exit_layers=(10, 26),
        by_k={
            k: {name: (one[0], other[0]) for name, (one, other) in named.items()}
            for k, named in by_k.items()
        },
        layer_profile_s=(1.3e-3,) * 30,
        samples={
            "terms": {name: drawn for name, (_, drawn) in terms.items()},
            "by_k": {
                str(k): {name: [drawn for _, drawn in pair] for name, pair in named.items()}
                for k, named in by_k.items()
            },
        },
        provenance={
            "model": "m",
            "weights_sha256": ["0"],
            "dtype": "float32",
            "exit_kind": "logit",
            "units": 2,
            "machine": "a machine",
        },
    )


@cache
def committed_calibration() -> Calibration:
    """Of logit exits."""
    found = ppd.load(DATA / "smollm2-135m.calibration.json")
    assert isinstance(found, Calibration)
    return found


def a_calibration(prompts: int, seed: int = 0, tokens: int = 60) -> Calibration:
    """Match rates that rise with the layer and k, and differ from prompt to prompt."""
    rng = np.random.default_rng(seed)
    layer, k = np.arange(1, 31)[:, None] / 30, np.arange(1, 4)[None]
    logit = -4 + 7 * layer + 0.5 * np.log(k)
    hits = np.zeros((prompts, 30, 3), dtype=np.int64)
    for n in range(prompts):
        rates = 1 / (1 + np.exp(-(logit + rng.normal(0, 0.5))))
        hits[n] = (rng.random((tokens, 1, 1)) < rates).sum(0)
    base = committed_calibration()
    counts = np.full(prompts, tokens)
    rates = hits.sum(0) / counts.sum()
    return replace(
        base,
        layers=30,
        prompt_ids=tuple(f"p{n}" for n in range(prompts)),
        tokens=counts,
        hits=hits,
        p_correct=rates,
        ci_low=rates,
        ci_high=rates,
        recorded=None,
    )


def runs_of(
    timing: Timing,
    calibration: Calibration,
    cell: PpdSetting,
    factors: Any,
    noise: float,
    seed: int,
    texts: Any = 0.0,
) -> SettingRuns:
    """What real runs would give, if the model held but for a noise from prompt to prompt.

    `texts` is what the runs of a prompt have in common, [prompts].
    """
    rng = np.random.default_rng([seed, cell.exit_layer, cell.k])
    n = len(calibration.prompt_ids)
    matched = calibration.hits[:, cell.exit_layer - 1, cell.k - 1]
    plain = calibration.tokens * predicted_plain_latency_s(timing)
    ratios = [
        predicted_ratio(timing, m / t, cell, factors)
        for m, t in zip(matched, calibration.tokens, strict=True)
    ]
    ppd_s = plain * np.array(ratios) * np.exp(rng.normal(0, noise, n) + texts)
    return SettingRuns(cell, ppd_s, plain, calibration.tokens, matched, 0 * matched)


def test_the_terms_of_a_prediction() -> None:
    timing = a_timing()
    times = schedule_times(timing, 20, 3)
    assert times["batch_layer_time"] == 1.7e-3
    by_hand = ppd.calibrated_latency(0.6, 30, 20, **times)
    assert predicted_latency_s(timing, 0.6, 20, 3) == pytest.approx(by_hand, rel=1e-12)
    assert predicted_plain_latency_s(timing) == pytest.approx(30 * 1.3e-3 + 8e-3 + 3e-4)
    slower = predicted_latency_s(timing, 0.6, 20, 3, {"busy_layer_time": 1.1})
    assert slower > by_hand
    assert predicted_compute(timing, 0.6, 20, 3) > 30
    with pytest.raises(InvalidInputError, match="k must be one that was timed; got 2; timed: 1, 3"):
        predicted_latency_s(timing, 0.6, 20, 2)


def test_times_between_the_timed_exits_are_interpolated() -> None:
    timing = a_timing()
    terms = dict(timing.by_k[3])
    terms["exit_time_s"] = (Timed(8e-3, 8e-3, 8e-3, 8), Timed(10e-3, 10e-3, 10e-3, 8))
    timing = replace(timing, by_k={3: terms})
    for exit_layer, expected in ((2, 8e-3), (10, 8e-3), (14, 8.5e-3), (26, 10e-3), (29, 10e-3)):
        assert schedule_times(timing, exit_layer, 3)["exit_time"] == pytest.approx(expected)


def test_a_calibration_without_the_setting() -> None:
    calibration = a_calibration(4)
    assert predicted_match_rate(calibration, 20, 3) == calibration.p_correct[19, 2]
    for exit_layer, k in ((31, 1), (0, 1), (20, 4)):
        with pytest.raises(InvalidInputError, match="it has layers 1 to 30 and k to 3"):
            predicted_match_rate(calibration, exit_layer, k)


def test_the_prompts_that_judge_do_not_predict() -> None:
    calibration = a_calibration(6)
    others = excluding_prompts(calibration, ["p1", "p4"])
    assert others.prompt_ids == ("p0", "p2", "p3", "p5")
    kept = [0, 2, 3, 5]
    expected = calibration.hits[kept].sum(0) / calibration.tokens[kept].sum()
    assert np.allclose(others.p_correct, expected)
    with pytest.raises(InvalidInputError, match="must have prompts that are not validated on"):
        excluding_prompts(calibration, [f"p{n}" for n in range(5)])
    assert excluding_prompts(calibration, ["p0", "p1", "p2", "p3"]).prompt_ids == ("p4", "p5")
    measured = committed_calibration()
    assert measured.recorded is not None
    recorded = excluding_prompts(measured, measured.prompt_ids[:1]).recorded
    assert recorded is not None
    assert np.array_equal(recorded.tokens, measured.recorded.tokens[1:])


def test_corrections_find_what_was_put_in() -> None:
    timing, calibration = a_timing(), a_calibration(20)
    truth = {"busy_layer_time": 1.06, "batch_layer_time": 0.96, "exit_time": 1.1}
    runs = [runs_of(timing, calibration, cell, truth, 0.003, 1) for cell in CELLS]
    found = fit_corrections(timing, runs)
    assert found.deviation < 0.02
    for cell in CELLS:  # the factors trade off against each other; what they predict does not
        p = float(calibration.p_correct[cell.exit_layer - 1, cell.k - 1])
        made = predicted_ratio(timing, p, cell, found.factors)
        assert made == pytest.approx(predicted_ratio(timing, p, cell, truth), rel=0.01)


def test_without_runs_nothing_is_corrected() -> None:
    found = fit_corrections(a_timing(), [])
    assert found.deviation == pytest.approx(0.02)
    assert found.n_texts == 0
    assert all(factor == pytest.approx(1) for factor in found.factors.values())


def test_prediction_intervals_hold_as_often_as_they_say() -> None:
    timing, within, n = a_timing(), 0, 0
    for seed in range(30):
        known, new = a_calibration(40, seed), a_calibration(8, 1000 + seed)
        drawn = resampled_timing(timing, np.random.default_rng(seed))  # another day's timing
        correction = Corrections(dict.fromkeys(CORRECTED, 1.0), 0.002)
        for prediction in predict(
            known, timing, CELLS[:4:3], 8, correction, seed=seed, resamples=200
        ):
            runs = runs_of(drawn, new, prediction.setting, correction.factors, 0.005, seed)
            # PPD's seconds over those of plain decoding on the same day
            within += prediction.ci_low <= runs.ratio <= prediction.ci_high
            n += 1
    low, high = binomial_interval(within, n)
    assert low <= 0.95 <= high, f"{within} of {n}"


@pytest.mark.parametrize("fitted_on", [3, 6])
def test_intervals_know_that_texts_scatter(fitted_on: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real runs of a text lie 2 to 8% from others in common, and some 5% from each other.

    The times are exact in these worlds, and so are not resampled.
    """
    monkeypatch.setattr(prediction_error, "resampled_timing", lambda timing, rng: timing)
    monkeypatch.setattr(prediction_error, "TIMING_DRAWS", 1)
    timing, counts = a_timing(), {"all": 0, "as if texts were alike": 0}
    worlds, cells = 40, [CELLS[0], CELLS[3], CELLS[6]]
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        known = a_calibration(40, seed)
        first, new = a_calibration(fitted_on, 2000 + seed), a_calibration(8, 1000 + seed)
        common = [rng.normal(0, 0.07, len(c.prompt_ids)) for c in (first, new)]
        truth = NO_CORRECTIONS.factors
        runs = [runs_of(timing, first, cell, truth, 0.05, seed, common[0]) for cell in cells]
        found = fit_corrections(timing, runs)
        assert found.n_texts == fitted_on
        judge = runs_of(timing, new, cells[1], truth, 0.05, 999 + seed, common[1])
        alike = replace(found, n_texts=0, run_scatter=0.0)
        for name, corrections in zip(counts, (found, alike), strict=True):
            (asked,) = predict(known, timing, [cells[1]], 8, corrections, seed=seed, resamples=200)
            counts[name] += asked.ci_low <= judge.ratio <= asked.ci_high
    low, high = binomial_interval(counts["all"], worlds)
    assert low <= 0.95 <= high, counts
    assert counts["as if texts were alike"] < counts["all"], "or the scatter did not matter"


def test_the_scatter_of_texts_is_found() -> None:
    timing, many = a_timing(), a_calibration(400, tokens=400)
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.05, 400)
    runs = [runs_of(timing, many, c, NO_CORRECTIONS.factors, 0.04, 1, common) for c in CELLS]
    found = fit_corrections(timing, runs)
    # of a mean over eight cells, and of a run
    assert found.text_scatter == pytest.approx(np.hypot(0.05, 0.04 / np.sqrt(8)), rel=0.1)
    assert found.run_scatter == pytest.approx(np.hypot(0.05, 0.04), rel=0.1)
    one = fit_corrections(timing, [run.select([0]) for run in runs])  # says nothing of others
    assert one.n_texts == 1
    assert (one.text_scatter, one.run_scatter) == pytest.approx((0.03, 0.06))


def test_an_error_is_split_into_its_parts() -> None:
    timing, calibration = a_timing(), a_calibration(20)
    cell = CELLS[0]
    prediction = predict(calibration, timing, [cell], 20, NO_CORRECTIONS)[0]
    runs = runs_of(timing, a_calibration(20, 5), cell, {"exit_time": 1.3}, 0, 1)
    row = error_row(prediction, runs, timing, NO_CORRECTIONS)
    product = (1 + row["match_part"]) * (1 + row["latency_part"])
    assert product == pytest.approx(1 + row["error"], rel=1e-12)
    assert row["latency_part"] < -0.005, "the exit took longer than was thought"
    assert row["match_rate"] == row["right_rate"] == runs.match_rate
    assert row["predicted_match_rate"] == row["predicted_right_rate"] == prediction.p_correct
    unknown = error_row(prediction, replace(runs, n_late=None), timing, NO_CORRECTIONS)
    assert (unknown["late_rate"], unknown["right_rate"]) == (None, None)
    ideal = 1 - prediction.p_correct * (1 - cell.exit_layer / 30)
    assert row["error_uncalibrated"] == pytest.approx(ideal / runs.ratio - 1)
    for low, high, within in ((0.0, 0.0, True), (1e-9, 1.0, False), (-1.0, -1e-9, False)):
        asked = replace(prediction, ci_low=runs.ratio + low, ci_high=runs.ratio + high)
        assert error_row(asked, runs, timing, NO_CORRECTIONS)["within"] is within


def test_a_summary_counts_what_it_says() -> None:
    row = {"match_part": 0.0, "latency_part": 0.0, "error_uncalibrated": 0.2}
    rows = [row | {"error": e, "within": abs(e) < 0.05} for e in (0.01, -0.02, 0.03, -0.2)]
    found = errors_summary(rows)
    assert found["median_error"] == pytest.approx(0.025)
    assert found["p90_error"] == pytest.approx(0.149)  # 0.7 of the way from 0.03 to 0.2
    assert (found["within"], found["n_cells"]) == (3, 4)
    assert found["within_ci"] == list(binomial_interval(3, 4))
    assert errors_summary([]) == {"n_cells": 0}
    assert binomial_interval(0, 5)[0] == 0
    assert binomial_interval(5, 5)[1] == 1


def test_coverage_over_splits() -> None:
    timing, calibration = a_timing(), a_calibration(40)
    new = a_calibration(8, 3)
    runs = [runs_of(timing, new, cell, NO_CORRECTIONS.factors, 0.004, 2) for cell in CELLS[:2]]
    found = coverage_over_splits(calibration, timing, runs, NO_CORRECTIONS, splits=10)
    assert (found["n"], found["prompts"]) == (20, 4)
    rng = np.random.default_rng(0)
    ranges = predict(calibration, timing, CELLS[:2], 4, NO_CORRECTIONS, seed=0)
    within = 0
    for _ in range(10):
        half = rng.permutation(8)[:4]
        for asked, run in zip(ranges, runs, strict=True):
            ratio = run.ppd_s[half].sum() / run.plain_s[half].sum()
            within += asked.ci_low <= ratio <= asked.ci_high
    assert found["within"] == within > 0
    usual = coverage_over_splits(calibration, timing, runs, NO_CORRECTIONS)
    assert usual["splits"] == 40
    assert usual == coverage_over_splits(
        calibration, timing, runs, NO_CORRECTIONS, splits=40, seed=0
    )
    one, two = ([run.select(range(n)) for run in runs] for n in (1, 2))
    assert coverage_over_splits(calibration, timing, one, NO_CORRECTIONS) == {"within": 0, "n": 0}
    assert coverage_over_splits(calibration, timing, two, NO_CORRECTIONS, splits=3)["prompts"] == 1


def test_a_timing_file(tmp_path: Path) -> None:
    path = tmp_path / "timing.json"
    timing = a_timing()
    ppd.save(timing, path)
    again = ppd.load(path)
    assert again == timing
    text = path.read_text()
    for broken, words in (
        (text.replace('"layers": 30', '"layers": 29'), "a profile of 30 layers, not 29"),
        (text.replace('"layer_time_s"', '"layer_time"'), "must follow its schema"),
        (
            re.sub(r'"exit_layers": \[\s*10', '"exit_layers": [27', text),
            r"do not ascend below layer 30: \[27, 26\]",
        ),
        (re.sub(r'"exit_layers": \[\s*10,', '"exit_layers": [', text), "not one per exit layer"),
        (text[:200], "must be whole JSON"),
        (text.replace('"schema_version": 1', '"schema_version": 99'), "upgrade ppdmodel"),
    ):
        path.write_text(broken)
        with pytest.raises(InvalidInputError, match=words):
            ppd.load(path)


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        (["terms", "layer_time_s"], [1e-3] * 7, "not 8 samples of layer_time_s"),
        (["terms", "layer_time_s"], "many", "a fault at samples/terms/layer_time_s: 'many' is not"),
        (["by_k", "3"], {}, "not 8 samples of layer_time_s for k = 3 at exit layer 10"),
        (["by_k", "1", "exit_time_s"], [[0.0085] * 8], "not 8 samples of exit_time_s for k = 1 at"),
        (["by_k", "1", "exit_time_s"], [[1e-3] * 8] * 2, "which is not the median of its samples"),
        (["by_k", "1", "exit_time_s"], [[1e-3] * 8, ["1"] * 8], "exit_time_s/1/0: '1' is not of"),
    ],
)
def test_a_timing_file_whose_samples_are_not_those_of_its_terms(
    tmp_path: Path, where: list[str], value: Any, words: str
) -> None:
    path = tmp_path / "timing.json"
    ppd.save(a_timing(), path)
    document = json.loads(path.read_text())
    place = document["samples"]
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInputError, match=f"must .*; got .*{words}"):
        ppd.load(path)


# ---------------------------------------------------------------- by hand


def by_hand(seconds: list[list[float]], timing: Timing) -> list[SettingRuns]:
    """Runs of two settings at a match rate of 1/2, at multiples of what is predicted, [texts]."""
    found = []
    for setting, multiples in zip((PpdSetting(16, 1), PpdSetting(22, 3)), seconds, strict=True):
        n = np.full(len(multiples), 10)
        ratio = predicted_ratio(timing, 0.5, setting, NO_CORRECTIONS.factors)
        found.append(SettingRuns(setting, ratio * np.array(multiples) * 10, n * 1.0, n, n // 2))
    return found


def test_the_scatter_of_texts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log ratios of [0.2, -0.2, 0.3] and [0.1, 0, 0]; less their means, with three prior texts."""
    timing = a_timing()
    logs = np.array([[0.2, -0.2, 0.3], [0.1, 0.0, 0.0]])
    runs = by_hand(np.exp(logs).tolist(), timing)
    n, between, single = prediction_error._scatter_of_texts(timing, runs, NO_CORRECTIONS.factors)
    left = logs - logs.mean(1, keepdims=True)
    means = left.mean(0)
    assert n == 3
    assert between == pytest.approx(np.sqrt((np.sum(means**2) + 3 * 0.03**2) / (2 + 3)))
    assert single == pytest.approx(np.sqrt((np.sum(left**2) + 3 * 0.06**2) / (4 + 3)))


def test_the_fit_minimizes_the_posterior() -> None:
    """No factors near those found have a higher density; residuals are weighed with their prior."""
    timing = a_timing()
    runs = by_hand([[1.06, 1.06], [0.97, 0.97]], timing)
    found = fit_corrections(timing, runs)

    def residuals(factors: Any) -> np.ndarray:
        named = dict(zip(CORRECTED, factors, strict=True))
        made = [predicted_ratio(timing, 0.5, r.setting, named) / r.ratio for r in runs]
        return np.array(np.log(made))

    def badness(factors: Any) -> float:
        prior = (np.array(factors) - 1) / 0.05
        return float(np.sum((residuals(factors) / 0.02) ** 2) + np.sum(prior**2))

    best = [found.factors[name] for name in CORRECTED]
    assert badness(best) < badness([1, 1, 1])
    for n in range(3):
        for step in (-0.01, 0.01):
            moved = [factor + step * (m == n) for m, factor in enumerate(best)]
            assert badness(moved) > badness(best)
    left = residuals(best)
    assert found.deviation == pytest.approx(np.sqrt((np.sum(left**2) + 3 * 0.02**2) / 3))
    several = runs * 3
    more = fit_corrections(timing, several)
    factors = [more.factors[name] for name in CORRECTED]
    left = np.tile(residuals(factors), 3)
    expected = np.sqrt((np.sum(left**2) + 3 * 0.02**2) / (6 - 3 + 3))
    assert more.deviation == pytest.approx(expected)


def test_the_noise_of_a_prediction_by_hand() -> None:
    """Standard deviations of logarithms: of a residual, of new texts, and of the fitted factors."""
    size = 200_000

    def spread(corrections: Corrections, n_texts: int) -> float:
        logs = np.log(corrections.noise(np.random.default_rng(0), n_texts, size))
        assert abs(logs.mean()) < 0.002
        return float(logs.std())

    factors = NO_CORRECTIONS.factors
    assert Corrections(factors, 0.05) == Corrections(factors, 0.05, 0, 0.0, 0.0)
    assert spread(Corrections(factors, 0.05), 4) == pytest.approx(0.05, rel=0.02)
    scattered = Corrections(factors, 0.0, 0, 0.1, 0.2)
    assert spread(scattered, 4) == pytest.approx(0.2 / np.sqrt(4), rel=0.02)
    assert spread(scattered, 16) == pytest.approx(0.2 / np.sqrt(16), rel=0.02)
    for n_texts in (2, 9):
        fitted = Corrections(factors, 0.0, n_texts, 0.1, 0.0)
        freedom = n_texts - 1 + 3
        student = np.sqrt(freedom / (freedom - 2))
        expected = 0.1 / np.sqrt(n_texts) * student
        assert spread(fitted, 4) == pytest.approx(expected, rel=0.03)


def test_rows_without_tokens_do_not_count() -> None:
    row: dict[str, Any] = {"n_tokens": 4, "ppd_s": 3.0, "plain_per_token_s": 0.5, "n_matched": 1}
    rows = [row, row | {"n_tokens": 0, "plain_per_token_s": None}, row | {"ppd_s": 5.0}]
    runs = SettingRuns.of_rows(PpdSetting(3, 2), rows)
    assert runs.plain_s.tolist() == [2.0, 2.0]
    assert runs.ratio == 8 / 4
    assert runs.match_rate == 2 / 8
    assert runs.select([1]).ratio == 5 / 2
    assert runs.late_rate is runs.select([1]).late_rate is None, "nobody counted"
    counted = SettingRuns.of_rows(PpdSetting(3, 2), [r | {"n_late": n} for n, r in enumerate(rows)])
    assert counted.late_rate == 2 / 8
    assert counted.select([1]).late_rate == 2 / 4


@pytest.mark.parametrize(("share", "limit"), [(0.1, 0.0), (0.9, 1.0)])
def test_no_interval_reaches_beyond_a_rate_of_0_or_1(
    share: float, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that match always or never: two resamples of them may add up to more."""
    monkeypatch.setattr(prediction_error, "resampled_timing", lambda timing, rng: timing)
    timing, calibration, factors = a_timing(), a_calibration(10), NO_CORRECTIONS.factors
    always = np.arange(10) < 10 * share
    hits = np.zeros_like(calibration.hits) + 60 * always[:, None, None]
    rates = np.full_like(calibration.p_correct, share)
    calibration = replace(calibration, hits=hits, p_correct=rates)
    (asked,) = predict(calibration, timing, CELLS[:1], 10, NO_CORRECTIONS, resamples=400)
    end = asked.ci_low if limit else asked.ci_high
    assert end == pytest.approx(predicted_ratio(timing, limit, CELLS[0], factors), rel=1e-9)


def test_a_prediction_is_of_the_rate_and_the_times() -> None:
    timing, calibration = a_timing(), a_calibration(6)
    factors = {"exit_time": 1.2}
    asked = predict(calibration, timing, CELLS[:2], 5, Corrections(factors, 0.0), resamples=100)
    seeded = predict(
        calibration, timing, CELLS[:2], 5, Corrections(factors, 0.0), seed=0, resamples=100
    )
    assert asked == seeded
    for prediction, setting in zip(asked, CELLS[:2], strict=True):
        p = calibration.p_correct[setting.exit_layer - 1, setting.k - 1]
        assert prediction.setting == setting
        assert prediction.p_correct == p
        assert prediction.ratio == predicted_ratio(timing, p, setting, factors)
        assert prediction.ci_low < prediction.ratio < prediction.ci_high
    wide = predict(calibration, timing, CELLS[:1], 1, Corrections(factors, 0.0), resamples=400)[0]
    narrow = predict(calibration, timing, CELLS[:1], 500, Corrections(factors, 0.0), resamples=400)
    assert wide.ci_high - wide.ci_low > 1.2 * (narrow[0].ci_high - narrow[0].ci_low)


# ---------------------------------------------------------------- late guesses


def late_runs(exit_layer: int, k: int, matched: list[int], late: list[int]) -> SettingRuns:
    n, one = np.full(len(matched), 20), np.ones(len(matched))
    return SettingRuns(PpdSetting(exit_layer, k), one, one, n, np.array(matched), np.array(late))


def test_the_shares_in_time_are_those_of_the_right_guesses() -> None:
    """Of all runs of an exit layer, with one more in time; between the layers interpolated."""
    runs = [
        late_runs(16, 1, [3, 1], [0, 0]),
        late_runs(26, 1, [4, 2], [3, 1]),
        late_runs(26, 3, [9, 8], [2, 3]),
    ]
    found = fit_corrections(a_timing(), runs)
    assert found.in_time == {"16": 1.0, "26": (23 + 1) / (23 + 9 + 1)}
    for exit_layer, share in (
        (10, 1),
        (16, 1),
        (21, (1 + 24 / 33) / 2),
        (26, 24 / 33),
        (29, 24 / 33),
    ):
        assert found.share_in_time(exit_layer) == pytest.approx(share)
    assert NO_CORRECTIONS.share_in_time(20) == 1
    uncounted = [replace(run, n_late=None) for run in runs]
    assert fit_corrections(a_timing(), uncounted).in_time == {}
    assert fit_corrections(a_timing(), [late_runs(20, 1, [0], [0])]).in_time == {"20": 1.0}


def test_what_is_predicted_is_what_is_realized() -> None:
    """Matches in time with matches in time, all right guesses with all right guesses."""
    timing, calibration = a_timing(), a_calibration(20)
    setting, corrections = PpdSetting(25, 1), replace(NO_CORRECTIONS, in_time={"25": 0.75})
    (asked,) = predict(calibration, timing, [setting], 20, corrections)
    p = calibration.p_correct[24, 0]
    assert (asked.p_correct, asked.match_rate) == (p, 0.75 * p)
    assert asked.ratio == predicted_ratio(timing, 0.75 * p, setting, NO_CORRECTIONS.factors)
    assert asked.ci_low < asked.ratio < asked.ci_high
    runs = late_runs(25, 1, [8, 7], [2, 3])
    row = error_row(asked, runs, timing, corrections)
    assert (row["match_rate"], row["predicted_match_rate"]) == (15 / 40, 0.75 * p)
    assert (row["right_rate"], row["predicted_right_rate"]) == (20 / 40, p)
    assert row["late_rate"] == 5 / 40
    realized = predicted_ratio(timing, 15 / 40, setting, NO_CORRECTIONS.factors)
    assert row["match_part"] == asked.ratio / realized - 1


def test_intervals_do_not_reach_beyond_the_share_that_is_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prediction_error, "resampled_timing", lambda timing, rng: timing)
    timing, corrections = a_timing(), replace(NO_CORRECTIONS, in_time={"16": 0.5})
    calibration = a_calibration(10)
    hits = np.zeros_like(calibration.hits) + 60
    always = replace(calibration, hits=hits, p_correct=np.ones_like(calibration.p_correct))
    (asked,) = predict(always, timing, CELLS[:1], 10, corrections, resamples=100)
    half = predicted_ratio(timing, 0.5, CELLS[0], NO_CORRECTIONS.factors)
    assert (asked.ci_low, asked.ci_high) == pytest.approx((half, half))
