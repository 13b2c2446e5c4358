"""The chosen settings against brute force, and the honesty of what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel import compute_per_token, fit, latency_per_token, optimize
from ppdmodel.errors import InvalidInputError
from ppdmodel.results import Calibration, Measurement

from .conftest import make_measurement

K_MAX = 6


@pytest.fixture(scope="module")
def calibration(measurement: Measurement) -> Calibration:
    return fit(measurement, k_max=K_MAX, resamples=200)


def brute_force(
    calibration: Calibration, budget: float, max_depth: int
) -> tuple[float, tuple[int, int, int]]:
    d, best = calibration.layers, (1.0, (0, 0, 0))
    for depth in range(1, max_depth + 1):
        for e in range(1, d):
            for k in range(1, K_MAX + 1):
                p = float(calibration.p_correct[e - 1, k - 1])
                if compute_per_token(p, d, e, k, depth) / d <= budget:
                    best = min(best, (latency_per_token(p, d, e, depth) / d, (e, k, depth)))
    return best


@pytest.mark.parametrize("max_depth", [1, 3])
def test_choices_are_the_best_there_are(calibration: Calibration, max_depth: int) -> None:
    decision = optimize(calibration, max_compute=[1.1, 1.5, 2, 3, 9], max_depth=max_depth)
    assert decision.settings == max_depth * 5 * K_MAX
    for choice in decision.choices:
        latency, best = brute_force(calibration, choice.max_compute, max_depth)
        assert choice.setting is not None
        assert choice.setting.normalized_latency.value == pytest.approx(latency)
        found = (choice.setting.exit_layer, choice.setting.k, choice.setting.depth)
        d = calibration.layers
        p = float(calibration.p_correct[found[0] - 1, found[1] - 1])
        assert latency_per_token(p, d, found[0], found[2]) / d == pytest.approx(latency)
        assert choice.setting.normalized_compute.value <= choice.max_compute
        assert best[0] > 0


def test_no_setting_of_the_frontier_is_beaten(calibration: Calibration) -> None:
    frontier = optimize(calibration).frontier
    compute = [s.normalized_compute.value for s in frontier]
    latency = [s.normalized_latency.value for s in frontier]
    assert compute == sorted(compute)
    assert latency == sorted(latency, reverse=True)
    for x, y in zip(compute, latency, strict=True):
        assert brute_force(calibration, x, 1)[0] == pytest.approx(y)


def test_intervals_enclose_and_shares_are_shares(calibration: Calibration) -> None:
    for choice in optimize(calibration).choices:
        assert choice.setting is not None
        for value in (choice.setting.normalized_latency, choice.setting.p_correct):
            assert value.ci_low <= value.value <= value.ci_high
        assert choice.chosen_share is not None
        assert 0 < choice.chosen_share <= 1
        assert choice.runner_up is not None
        assert choice.runner_up.normalized_latency.value >= choice.setting.normalized_latency.value


def level_measurement(
    seed: int, prompts: int = 12, tokens: int = 8, layers: int = 20
) -> Measurement:
    """Ranks of which every exit saves 0.8 layers on average: whichever looks best is luck."""
    prompts, tokens, layers = 12, 8, 20
    base = make_measurement(prompts=prompts, tokens=tokens, layers=layers)
    rate = np.append(0.8 / (layers - np.arange(1, layers)), 1.0)
    hit = np.random.default_rng(seed).random((prompts * tokens, layers)) < rate
    return replace(base, rank=np.where(hit, 1, 2))


def test_held_out_latency_shows_selection_bias() -> None:
    """What looks best on the prompts that chose it does worse on those that did not."""
    seen, held_out = [], []
    for seed in range(20):
        (choice,) = optimize(fit(level_measurement(seed), k_max=1, resamples=2)).choices[:1]
        assert choice.setting is not None
        assert choice.held_out_latency is not None
        seen.append(choice.setting.normalized_latency.value)
        held_out.append(choice.held_out_latency.value)
    truth = 1 - 0.8 / 20
    assert np.mean(seen) < truth - 0.005
    assert abs(np.mean(held_out) - truth) < 0.01


def test_too_few_prompts_to_hold_any_out() -> None:
    few = fit(make_measurement(prompts=5), k_max=2, resamples=10)
    assert optimize(few).choices[0].held_out_latency is None


def test_units_limit_the_settings(calibration: Calibration) -> None:
    decision = optimize(calibration, max_compute=[9], max_units=3)
    (choice,) = decision.choices
    assert choice.setting is not None
    assert choice.setting.k == 2
    assert choice.setting.peak_units == 3


def test_says_when_nothing_fits(calibration: Calibration) -> None:
    for decision in (
        optimize(calibration, max_compute=[1.0]),
        optimize(calibration, max_units=1),
    ):
        assert decision.choices[0].setting is None


def test_bad_input_is_named(calibration: Calibration) -> None:
    with pytest.raises(InvalidInputError, match=r"max_compute must be at least 1; got 0\.5"):
        optimize(calibration, max_compute=[0.5])
    with pytest.raises(InvalidInputError, match="max_depth must be a positive integer; got 0"):
        optimize(calibration, max_depth=0)
