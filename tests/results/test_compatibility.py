"""Results that do not belong together are refused: in what they differ, both values, the fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ppdmodel import Calibration, fit
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.compatibility import (
    MATCH_RATE_KEYS,
    MAX_SHOWN_CHARS,
    check_agree,
    check_runs,
    check_timing,
    check_together,
)
from ppdmodel.results.measurement import Measurement
from ppdmodel.results.timing import Timing
from tests.pipeline.test_prediction_error import a_timing

WORDS = {"rule": "two must be one", "what": "a second", "fix": "give one"}


def refusal(check: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        check(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def about(measurement: Measurement, **changes: Any) -> Measurement:
    return replace(measurement, provenance={**measurement.provenance, **changes})


def renamed(measurement: Measurement, **changes: Any) -> Measurement:
    names = tuple(f"q{n}" for n in range(len(measurement.prompt_ids)))
    return about(replace(measurement, prompt_ids=names), **changes)


def test_a_difference_is_named_with_both_values() -> None:
    found, expected = {"a": 1, "b": "x", "c": 5}, {"a": 1, "b": "y", "c": 6}
    check_agree(found, expected, ["a"], **WORDS)
    said = refusal(check_agree, found, expected, ["a", "b", "c"], **WORDS)
    assert said == "two must be one; got a second with b 'x' instead of 'y'; give one"


def test_what_both_lack_is_the_same_and_what_one_lacks_is_not() -> None:
    check_agree({}, {}, ["a"], **WORDS)
    check_agree({"a": None}, {}, ["a"], **WORDS)
    assert "with a None instead of 3" in refusal(check_agree, {}, {"a": 3}, ["a"], **WORDS)


def test_weights_are_told_by_their_model_too_and_long_values_are_cut() -> None:
    found = {"weights_sha256": ["01"], "model": "one"}
    expected = {"weights_sha256": ["02"], "model": "other"}
    said = refusal(check_agree, found, expected, ["weights_sha256"], **WORDS)
    assert "weights_sha256 ['01'] (one) instead of ['02'] (other);" in said
    said = refusal(check_agree, {"a": "x" * 999}, {"a": 1}, ["a"], **WORDS)
    assert f"with a '{'x' * (MAX_SHOWN_CHARS - 1)}... instead of 1" in said


@pytest.mark.parametrize("name", MATCH_RATE_KEYS)
def test_measurements_of_other_models_are_not_fitted_together(
    measurement: Measurement, name: str
) -> None:
    said = refusal(check_together, [measurement, renamed(measurement, **{name: "other"})])
    assert said.startswith("measurements that are fitted together must be of one model and setting")
    assert f"got measurement 2 with {name} 'other'" in said
    assert said.endswith("fit them apart")


def test_measurements_that_belong_together_may_differ_in_the_rest(
    measurement: Measurement,
) -> None:
    check_together([measurement, renamed(measurement, device="cuda", n_prompts=3, command="x")])


def test_a_prompt_is_in_one_measurement_only(measurement: Measurement) -> None:
    check_together([measurement])
    other = replace(renamed(measurement), prompt_ids=("p3", *(f"q{n}" for n in range(11))))
    assert "only; got 'p3' twice; merge shards" in refusal(check_together, [measurement, other])
    third = [measurement, renamed(measurement), other]
    assert "twice" in refusal(check_together, third)
    assert refusal(check_together, []) == "a fit needs a measurement; got none; measure one"


@pytest.fixture
def timing(measurement: Measurement) -> Timing:
    """Of the made-up model."""
    known = {name: measurement.provenance[name] for name in ("weights_sha256", "dtype", "model")}
    known |= {"exit_kind": "logit", "exits_sha256": None, "machine": "an abacus"}
    return replace(a_timing(), layers=6, provenance=known)


def test_a_timing_is_of_the_measured_model(measurement: Measurement, timing: Timing) -> None:
    measured = measurement.provenance
    check_timing(timing, measured, 6)
    rule = "the timing must be of the measured model; got a timing with "
    assert refusal(check_timing, timing, measured, 7) == (
        f"{rule}layers 6 instead of 7; time the model that was measured"
    )
    for name in ("weights_sha256", "dtype", "exit_kind"):
        other = replace(timing, provenance={**timing.provenance, name: "other"})
        assert f"{rule}{name} 'other'" in refusal(check_timing, other, measured, 6)


def test_trained_exits_are_the_same_ones(measurement: Measurement, timing: Timing) -> None:
    measured = {**measurement.provenance, "exit_kind": "trained", "exits_sha256": "1"}
    its = {**timing.provenance, "exit_kind": "trained", "exits_sha256": "1"}
    check_timing(replace(timing, provenance=its), measured, 6)
    other = replace(timing, provenance={**its, "exits_sha256": "2"})
    assert "exits_sha256 '2' instead of '1'" in refusal(check_timing, other, measured, 6)


@pytest.fixture(scope="module")
def calibration(measurement: Measurement) -> Calibration:
    return fit(measurement, k_max=2, family="rank tail", resamples=40)


def running(timing: Timing, **changes: Any) -> dict[str, Any]:
    return {**timing.provenance, "machine": "an abacus", **changes}


def test_what_runs_is_what_was_measured_and_timed(calibration: Calibration, timing: Timing) -> None:
    assert check_runs(running(timing), calibration, timing) == []
    assert check_runs(running(timing), None, None) == []
    for name in ("weights_sha256", "dtype", "exit_kind"):
        others = running(timing, **{name: "other"})
        for kind, results in (("calibration", (calibration, None)), ("timing", (None, timing))):
            said = refusal(check_runs, others, *results)
            assert said.startswith(f"the {kind} must be of the model, number type and exits that")
            assert f"got a {kind} with {name} " in said
            assert "instead of 'other'" in said


def test_exits_are_compared(
    measurement: Measurement, calibration: Calibration, timing: Timing
) -> None:
    """Logit exits over a shortlist are other exits than those over all tokens."""
    others = running(timing, exits_sha256="1")
    words = "exits_sha256 None instead of '1'"
    assert words in refusal(check_runs, others, calibration, None)
    assert words in refusal(check_runs, others, None, timing)
    listed = {**measurement.provenance, "exits_sha256": "1"}
    assert words in refusal(check_timing, timing, listed, 6)
    its = replace(timing, provenance={**timing.provenance, "exits_sha256": "1"})
    check_timing(its, listed, 6)
    assert check_runs(others, None, its) == []


def test_a_timing_of_another_machine_is_a_warning(timing: Timing) -> None:
    (said,) = check_runs(running(timing, machine="a mill"), None, timing)
    assert said.startswith("WARNING: the timing is of another machine (an abacus); predicted times")


def test_a_table_of_counts_is_of_no_known_model(calibration: Calibration, timing: Timing) -> None:
    table = replace(calibration, provenance={"measurement": {"model": "table"}})
    assert "weights_sha256 None (table)" in refusal(check_runs, running(timing), table, None)


RANDOM = {"random_weights": {"config_sha256": "1", "seed": 0}, "weights_sha256": [], "model": "r"}
MIXED = "results of random weights must not be mixed with those of a model; got a "


def test_a_timing_of_random_weights_is_refused_for_a_model_whatever_else_agrees() -> None:
    timing = a_timing()
    about = {**timing.provenance, "weights_sha256": []}
    random = replace(timing, provenance=about | RANDOM)
    said = refusal(check_timing, random, about, timing.layers)
    assert said.startswith(f"{MIXED}timing of r for match rates of ")
    assert said.endswith("time the model that was measured")
    check_timing(replace(timing, provenance=about), about, timing.layers)
    check_timing(random, about | RANDOM, timing.layers)
    assert random.has_random_weights
    assert not timing.has_random_weights


def test_runs_of_random_weights_take_a_timing_of_the_same_shape_alone(
    measurement: Measurement,
) -> None:
    timing = a_timing()
    running = {**timing.provenance, **RANDOM, "machine": timing.machine}
    random = replace(timing, provenance={**timing.provenance, **RANDOM})
    assert check_runs(running, None, random) == []
    assert f"{MIXED}timing of " in refusal(check_runs, running, None, timing)
    real = {**timing.provenance, "machine": timing.machine}
    assert f"{MIXED}timing of r for a run of " in refusal(check_runs, real, None, random)
    calibration = fit(measurement, resamples=400)
    assert f"{MIXED}calibration of " in refusal(check_runs, running, calibration, None)
    other = {**running, "random_weights": {"config_sha256": "2", "seed": 0}}
    assert "a timing with random_weights {'config" in refusal(check_runs, other, None, random)
