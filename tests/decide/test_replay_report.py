"""Replayed policies beside what independent matches would give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel import Policy, expected_total_latency, replay, replay_report
from ppdmodel.decide.replay_report import ReplayReport
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement


def test_means_are_those_of_the_replay(measurement: Measurement) -> None:
    policy = Policy(4, k=2)
    report, run = replay_report(measurement, policy), replay(measurement, policy)
    assert report.latency.value == pytest.approx(run.latency_per_token)
    assert report.compute.value == pytest.approx(run.compute_per_token)
    assert report.normalized_latency.value == pytest.approx(run.latency_per_token / 6)
    assert report.normalized_compute.value == pytest.approx(run.compute_per_token / 6)
    assert report.peak_units == max(generation.peak_units for generation in run.generations)
    assert report == replay_report(measurement, policy, seed=0)
    assert report.latency.ci_low < report.latency.value < report.latency.ci_high
    assert report.n_texts == len(run.generations)


def test_for_late_exits_matches_need_not_be_independent(measurement: Measurement) -> None:
    report = replay_report(measurement, Policy(4, k=2))
    assert report.closed_form == pytest.approx(report.latency.value)
    assert report.misleads is None
    assert report.match_rate is not None
    total = expected_total_latency(report.match_rate, 6, 4, 20)
    assert report.closed_form == pytest.approx(total / 20)


def report_on(*matches: str) -> ReplayReport:
    """Of an early exit, for which matches in a row count; texts with these matches, six of each."""
    base = make_measurement(prompts=6 * len(matches), tokens=len(matches[0]), layers=8)
    hit = np.array([list(text) for text in matches * 6]).ravel() == "x"
    rank = np.where(hit, 1, 300)[:, None] * np.ones(8, dtype=np.int64)
    return replay_report(replace(base, rank=rank), Policy(1, k=1))


@pytest.mark.parametrize(("matches", "sign"), [("x." * 20, 1), ("x" * 20 + "." * 20, -1)])
def test_where_independence_misleads_it_says_so(matches: str, sign: int) -> None:
    """Matches that alternate, and matches that stand together."""
    report = report_on(matches)
    assert report.autocorrelation is not None
    assert sign * report.autocorrelation < -0.8
    assert report.closed_form is not None
    assert report.misleads == pytest.approx(report.closed_form / report.latency.value - 1)
    assert sign * (report.misleads or 0) > 0.01


def test_an_error_that_is_small_or_within_the_interval_does_not_mislead() -> None:
    small, uncertain = report_on(".x" + "." * 38), report_on("x" * 40, "." * 40)
    for report, within in ((small, False), (uncertain, True)):
        assert report.closed_form is not None
        latency = report.latency
        assert (latency.ci_low <= report.closed_form <= latency.ci_high) is within
        assert (abs(report.closed_form / latency.value - 1) > 0.01) is within
        assert report.misleads is None


def test_texts_of_one_token_have_no_match_rate() -> None:
    report = replay_report(make_measurement(tokens=1), Policy(4))
    assert report.match_rate is report.closed_form is report.misleads is None
    assert report.normalized_latency.value == 1


def test_without_a_closed_form(measurement: Measurement) -> None:
    for policy in (Policy((3, 5), k=1, depth=None), Policy(4, gate=0.5)):
        report = replay_report(measurement, policy)
        assert report.closed_form is None
        assert report.simulated is None
    assert "normalized_latency_low" in report.to_frame()


def test_one_prompt_has_no_interval() -> None:
    report = replay_report(make_measurement(prompts=1), Policy(4))
    assert np.isnan(report.latency.ci_low)
    assert '"ci_low": null' in report.to_json()


def test_two_prompts_have_an_interval() -> None:
    report = replay_report(make_measurement(prompts=2), Policy(4))
    assert report.latency.ci_low < report.latency.value < report.latency.ci_high


def test_bad_input_is_named(measurement: Measurement) -> None:
    with pytest.raises(InvalidInputError, match="exit_layer"):
        replay_report(measurement, Policy(7))
    with pytest.raises(InvalidInputError, match="exit_layer must lie below layer 6, the last"):
        replay_report(measurement, Policy((3, 6)))
    recorded = replace(measurement, provenance={**measurement.provenance, "k_max": 100})
    assert replay_report(recorded, Policy(4, k=100)).match_rate is not None
    with pytest.raises(InvalidInputError, match="k must be at most 100, as far as ranks were"):
        replay_report(recorded, Policy((3, 4), k=(1, 101)))
