"""The whole estimate of one setting: given, measured, and inverted."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from ppdmodel import estimate, estimate_from, latency_per_token, required_p_correct
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.intervals import RATE_METHOD
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement
from tests.decide.test_methods import quick_fit


def test_the_readme_numbers() -> None:
    result = estimate(0.7, 40)
    expected = {
        "p_correct": 0.7,
        "layers": 40,
        "exit_layer": 20,
        "k": 1,
        "depth": 1,
        "latency_per_token": 26.0,
        "normalized_latency": 0.65,
        "speedup": 40 / 26,
        "compute_per_token": 46.0,
        "normalized_compute": 1.15,
        "mean_units": 46 / 26,
        "peak_units": 2,
        "reserved_units": 52.0,
        "exchange_rate": 6 / 14,
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected)


def test_default_exit_rounds_up() -> None:
    assert estimate(0.5, 7)["exit_layer"] == 4
    assert estimate(0.5, 1)["exit_layer"] == 1


@pytest.mark.parametrize(("p", "exit_layer"), [(0.0, 20), (0.7, 40)])
def test_what_is_undefined_is_none(p: float, exit_layer: int) -> None:
    result = estimate(p, 40, exit_layer)
    assert result["exchange_rate"] is None
    assert result["latency_per_token"] == 40
    assert all(not isinstance(v, float) or math.isfinite(v) for v in result.values())


def test_more_processes_than_a_float_can_count_are_none() -> None:
    result = estimate(0.5, 400, 1, 1000, None)
    assert result["peak_units"] is None
    assert result["compute_per_token"] is None
    assert result["reserved_units"] is None
    assert result["latency_per_token"] > 0


def test_overhead_counts_as_latency_and_moves_the_break_even() -> None:
    result = estimate(0.7, 40, overhead=5)
    assert result["latency_per_token"] == 31
    assert result["break_even_p_correct"] == 0.25
    assert estimate(0.1, 40, overhead=5)["speedup"] < 1


def test_tokens_and_seconds() -> None:
    result = estimate(0.7, 40, tokens=11, layer_time_s=0.5, overhead=1)
    assert result["total_latency"]["mean"] == pytest.approx(40 + 10 * 26 + 11)
    assert result["total_latency_s"]["mean"] == pytest.approx(0.5 * result["total_latency"]["mean"])
    assert result["latency_per_token_s"] == pytest.approx(0.5 * 27)
    assert list(result["total_latency"]) == ["mean", "std", "p50", "p95", "p99"]


def test_percentiles_of_the_total_latency_by_hand() -> None:
    """Of 2000 tokens each takes 20 layer times with probability 0.7, 40 without a match."""
    total = estimate(0.7, 40, tokens=2001, overhead=1)["total_latency"]
    for percent in (50, 95, 99):
        misses = int(binom.ppf(percent / 100, 2000, 0.3))
        assert total[f"p{percent}"] == 40 + 2000 * 20 + 20 * misses + 2001


@pytest.mark.parametrize("depth", [1, 2, None])
@pytest.mark.parametrize("target", [1.0, 1.1, 1.5, 3.0])
def test_required_match_rate_inverts_the_latency(depth: int | None, target: float) -> None:
    p = required_p_correct(target, 40, 10, depth)
    fastest = 40 / latency_per_token(1.0, 40, 10, depth)
    if target > fastest:
        assert p is None
    else:
        assert p is not None
        assert 40 / latency_per_token(p, 40, 10, depth) == pytest.approx(target)
    assert required_p_correct(target, 40, 10) == required_p_correct(target, 40, 10, 1)


def test_a_required_match_rate_has_twelve_digits_and_may_be_one() -> None:
    assert required_p_correct(1.1, 40, 20) == 0.181818181818
    assert required_p_correct(2, 40, 20) == 1
    assert required_p_correct(2.001, 40, 20) is None


@pytest.mark.parametrize("target", [1, 1.5])
def test_a_target_speed_up_gets_its_match_rate(target: float) -> None:
    result = estimate(0.7, 40, target_speedup=target, overhead=1)
    assert result["target_speedup"] == target
    assert result["p_correct_for_target"] == required_p_correct(target, 40, 20, 1, 1)


def test_from_a_measurement_gives_intervals(measurement: Measurement) -> None:
    result = estimate_from(measurement, 4, 2)
    hits = int((measurement.rank[:, 3] <= 2).sum())
    p = result["p_correct"]
    assert p["value"] == hits / 240
    assert (p["n_tokens"], p["n_prompts"]) == (240, 12)
    assert p["ci_low"] < p["value"] < p["ci_high"]
    latency = result["latency_per_token"]
    assert latency["ci_low"] == pytest.approx(latency_per_token(p["ci_high"], 6, 4))
    assert latency["ci_high"] == pytest.approx(latency_per_token(p["ci_low"], 6, 4))
    assert result["peak_units"] == 3
    assert result == estimate_from(measurement, 4, 2) == estimate_from(measurement, 4, 2, depth=1)
    assert result["peak_units"] < estimate_from(measurement, 2, 2, depth=2)["peak_units"]


def test_from_a_calibration_agrees_with_its_measurement(measurement: Measurement) -> None:
    calibration = quick_fit(measurement, k_max=4)
    assert estimate_from(calibration, 4, 2) == estimate_from(measurement, 4, 2)
    ends = estimate_from(calibration, 4, 2)["p_correct"]
    assert ends["ci_low"] == pytest.approx(calibration.ci_low[3, 1])
    assert ends["ci_high"] == pytest.approx(calibration.ci_high[3, 1])
    assert ends["method"] == RATE_METHOD
    with pytest.raises(InvalidInputError, match=r"k must not exceed .*; got 5; it has 1 to 4"):
        estimate_from(calibration, 4, 5)


def test_a_quantity_that_turns_within_the_interval_spans_its_values(
    measurement: Measurement,
) -> None:
    """Latency falls with the match rate; what it is at every rate of the interval lies within."""
    for exit_layer, k, depth in ((2, 1, None), (3, 2, 2), (5, 4, 1)):
        result = estimate_from(measurement, exit_layer, k, depth)
        rate = result["p_correct"]
        for p in np.linspace(rate["ci_low"], rate["ci_high"], 17):
            single = estimate(float(p), 6, exit_layer, k, depth)
            for name in ("latency_per_token", "compute_per_token", "mean_units", "exchange_rate"):
                low, high = result[name]["ci_low"], result[name]["ci_high"]
                assert low - 1e-9 <= single[name] <= high + 1e-9, name


def test_an_exchange_rate_that_passes_infinity_has_no_interval(measurement: Measurement) -> None:
    narrow = estimate_from(measurement, 4, 2, overhead=0.9)
    assert narrow["exchange_rate"]["ci_low"] is not None
    wide = estimate_from(make_measurement(prompts=2, tokens=12), 3, overhead=1.0)
    assert wide["p_correct"]["ci_low"] < 1 / 3 < wide["p_correct"]["ci_high"]
    assert wide["exchange_rate"]["ci_low"] is wide["exchange_rate"]["ci_high"] is None


def test_seconds_keep_their_interval(measurement: Measurement) -> None:
    result = estimate_from(measurement, 4, 2, layer_time_s=2.0)
    for end in ("value", "ci_low", "ci_high"):
        assert result["latency_per_token_s"][end] == pytest.approx(
            2 * result["latency_per_token"][end]
        )


def test_an_impossible_price_has_no_interval(measurement: Measurement) -> None:
    result = estimate_from(measurement, 6)
    assert result["p_correct"]["value"] == 1
    assert result["exchange_rate"]["value"] is None
    assert result["exchange_rate"]["ci_low"] is None


def test_a_k_beyond_every_rank_hits_always(measurement: Measurement) -> None:
    assert estimate_from(measurement, 3, 10**6)["p_correct"]["value"] == 1
    for k in (1, 4):
        assert measurement.hits_by_prompt_at(3, k).tolist() == (
            measurement.hits_by_prompt(4)[:, 2, k - 1].tolist()
        )


def test_more_processes_than_a_float_can_count_have_no_interval() -> None:
    result = estimate_from(make_measurement(layers=400, tokens=1), 1, 1000, None)
    for name in ("compute_per_token", "reserved_units"):
        assert (result[name]["value"], result[name]["ci_low"]) == (None, None)
    assert result["latency_per_token"]["value"] > 0


def test_one_prompt_gives_no_interval() -> None:
    result = estimate_from(make_measurement(prompts=1), 3)
    assert result["p_correct"]["n_prompts"] == 1
    assert result["p_correct"]["ci_low"] is None
    two = estimate_from(make_measurement(prompts=2), 3)["p_correct"]
    assert two["ci_low"] <= two["value"] <= two["ci_high"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"p_correct": math.nan}, "p_correct must lie in [0, 1]; got nan"),
    ({"layers": 0}, "layers must be a positive integer; got 0"),
    ({"exit_layer": 41}, "exit_layer must not exceed layers; got 41"),
    ({"k": 1.5}, "k must be a positive integer; got 1.5"),
    ({"depth": -1}, "depth must be a positive integer; got -1"),
    ({"tokens": 0}, "tokens must be a positive integer; got 0"),
    ({"overhead": math.nan}, "overhead must be a number of at least 0; got nan"),
    ({"layer_time_s": 0.0}, "layer_time_s must be a positive number; got 0.0"),
    ({"layer_time_s": math.inf}, "layer_time_s must be a positive number; got inf"),
    ({"target_speedup": 0.5}, "target_speedup must be at least 1; got 0.5"),
    ({"target_speedup": math.inf}, "target_speedup must be at least 1; got inf"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_bad_input_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        estimate(**({"p_correct": 0.5, "layers": 40} | change))
    assert str(caught.value).startswith(words)


def test_intervals_rest_on_prompts_not_tokens() -> None:
    """The same tokens, cut into fewer independent prompts, say less."""
    wide = make_measurement(prompts=4, tokens=60, seed=3)
    many = make_measurement(prompts=60, tokens=4)
    ends = [estimate_from(m, 3)["p_correct"] for m in (wide, many)]
    spans = [end["ci_high"] - end["ci_low"] for end in ends]
    assert spans[0] > spans[1] * 0.8
    assert np.all(np.array(spans) > 0)


def test_numbers_of_numpy_become_plain() -> None:
    numbers: Any = (np.float32(0.5), np.int64(40))
    found = estimate(*numbers)
    assert type(found["p_correct"]) is float
    assert json.loads(json.dumps(found)) == found
