"""The chosen settings against brute force, and the honesty of what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel import compute_per_token, estimate_from, latency_per_token, optimize
from ppdmodel.decide.costs import TimedCosts
from ppdmodel.decide.methods import MethodSettings, gated, two_exits
from ppdmodel.decide.prediction import (
    predicted_compute,
    predicted_latency_s,
    predicted_plain_latency_s,
)
from ppdmodel.decide.selection import Rule
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement
from tests.decide.test_methods import quick_fit
from tests.pipeline.test_prediction_error import a_calibration, a_timing

K_MAX = 6


@pytest.fixture(scope="module")
def calibration(measurement: Measurement) -> Calibration:
    return quick_fit(measurement, k_max=K_MAX, resamples=200)


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


@pytest.mark.parametrize(("max_depth", "pairs"), [(1, 5), (3, 5 + 2 + 1), (9, 5 + 2 + 1 + 1 + 1)])
def test_choices_are_the_best_there_are(
    calibration: Calibration, max_depth: int, pairs: int
) -> None:
    """Among all, also those of depths that change nothing, which are not tried."""
    decision = optimize(calibration, max_compute=[1.1, 1.5, 2, 3, 9], max_depth=max_depth)
    assert decision.settings == pairs * K_MAX
    for choice in decision.choices:
        assert choice.setting is not None
        assert choice.max_compute is not None
        latency, best = brute_force(calibration, choice.max_compute, max_depth)
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


def test_of_equally_fast_settings_the_frontier_has_the_cheapest(measurement: Measurement) -> None:
    """No token ranks below the second, so more guesses than two only cost more."""
    ranks = replace(measurement, rank=np.minimum(measurement.rank, 2))
    frontier = optimize(quick_fit(ranks, k_max=4, resamples=40)).frontier
    assert {s.k for s in frontier} == {1, 2}
    latency = [s.normalized_latency.value for s in frontier]
    assert len(set(latency)) == len(latency)


def test_intervals_enclose_and_shares_are_shares(calibration: Calibration) -> None:
    for choice in optimize(calibration).choices:
        assert choice.setting is not None
        for value in (choice.setting.normalized_latency, choice.setting.p_correct):
            assert value.ci_low <= value.value <= value.ci_high
        rate = estimate_from(calibration, choice.setting.exit_layer, choice.setting.k)["p_correct"]
        for end in ("value", "ci_low", "ci_high"):
            assert getattr(choice.setting.p_correct, end) == pytest.approx(rate[end], rel=1e-6)
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
        (choice,) = optimize(quick_fit(level_measurement(seed), k_max=1, resamples=40)).choices[:1]
        assert choice.setting is not None
        assert choice.held_out_latency is not None
        seen.append(choice.setting.normalized_latency.value)
        held_out.append(choice.held_out_latency.value)
    truth = 1 - 0.8 / 20
    assert np.mean(seen) < truth - 0.005
    assert abs(np.mean(held_out) - truth) < 0.01


def test_too_few_prompts_to_hold_any_out() -> None:
    few = quick_fit(make_measurement(prompts=5), k_max=2, resamples=40)
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


def families_of(calibration: Calibration) -> dict[str, MethodSettings]:
    assert calibration.recorded is not None
    several = two_exits(calibration.recorded)
    assert several is not None
    return {family.name: family for family in (gated(calibration.recorded), several)}


def test_gated_and_two_exit_ppd_stand_beside(calibration: Calibration) -> None:
    everyone = np.ones((1, len(calibration.tokens)), dtype=np.int64)
    families = families_of(calibration)
    decision = optimize(calibration, max_compute=[1.3, 2], price=[2.0], max_units=4)
    for choice in decision.choices:
        assert [method.name for method in choice.others] == list(families)
        rule = Rule(choice.max_compute, choice.price)
        for method in choice.others:
            family = families[method.name]
            places = np.flatnonzero(family.units <= 4)
            latency, compute = (x[0] for x in family.evaluate(everyone, places))
            best = int(rule.best(latency, compute))
            assert method.latency.value == pytest.approx(latency[best])
            assert method.setting == family.settings[places[best]]
            assert method.units <= 4
            assert method.latency.ci_low <= method.latency.value <= method.latency.ci_high
            assert method.held_out is not None
            assert method.held_out_compute is not None
    frame = decision.to_frame()
    assert len(frame) == len(decision.frontier) + 6
    assert list(frame["policy"].tail(2)) == list(families)
    assert frame["held_out_compute"].notna().sum() == 6
    cells = decision._repr_html_().split("<tr>")[1:]
    assert {row.count("<td>") for row in cells[1:]} == {cells[0].count("<th>")}


def test_what_is_not_judged_is_said(calibration: Calibration) -> None:
    (alone,) = optimize(calibration, max_compute=9, max_units=2).left_out
    assert alone == "PPD, two exits: it takes 3 units or more"
    (old,) = optimize(replace(calibration, recorded=None)).left_out
    assert "there are no counts of recorded tokens" in old
    nothing = optimize(calibration, max_compute=1.0)
    assert [choice.others for choice in nothing.choices] == [()]


def test_compute_too_is_judged_on_other_prompts() -> None:
    """Where rates differ between prompts, what a choice costs is not what it seemed to cost."""
    for seed in range(3):
        (choice,) = optimize(
            quick_fit(level_measurement(seed), k_max=1, resamples=40), max_compute=2
        ).choices
        assert choice.setting is not None
        assert choice.held_out_latency is not None
        assert choice.held_out_compute is not None
        seen, held_out = choice.setting.normalized_compute, choice.held_out_compute
        assert held_out.ci_low < held_out.value < held_out.ci_high
        assert held_out.value > 1
        assert seen.value != held_out.value


def test_bad_input_is_named(calibration: Calibration) -> None:
    with pytest.raises(InvalidInputError, match=r"max_compute must be at least 1; got 0\.5"):
        optimize(calibration, max_compute=[0.5])
    with pytest.raises(InvalidInputError, match="max_depth must be a positive integer; got 0"):
        optimize(calibration, max_depth=0)


def test_a_price_makes_a_weighted_sum_least(calibration: Calibration) -> None:
    d = calibration.layers
    decision = optimize(calibration, price=[0.0, 0.5, 2, 10], max_depth=2)
    assert [choice.price for choice in decision.choices] == [0.0, 0.5, 2, 10]
    for choice in decision.choices:
        price = choice.price
        assert price is not None
        sums = [
            price * latency_per_token(p, d, e, depth) / d + compute_per_token(p, d, e, k, depth) / d
            for depth in (1, 2)
            for e in range(1, d)
            for k in range(1, K_MAX + 1)
            for p in [float(calibration.p_correct[e - 1, k - 1])]
        ]
        setting = choice.setting
        if setting is None:
            assert min(sums) >= price + 1
        else:
            found = price * setting.normalized_latency.value + setting.normalized_compute.value
            assert found == pytest.approx(min(sums))
    assert decision.choices[0].setting is None, "what is worth nothing is not bought"


@pytest.fixture(scope="module")
def timed() -> Calibration:
    return replace(a_calibration(20), timing=a_timing(), resamples=100)


def test_with_times_it_decides_in_seconds(timed: Calibration) -> None:
    timing = a_timing()
    decision = optimize(timed, max_compute=9)
    plain = predicted_plain_latency_s(timing)
    assert decision.costs == "measured times"
    assert "no counts of recorded tokens" in decision.left_out[0]
    assert decision.plain_latency_s == plain
    assert decision.split_latency == pytest.approx(36e-3 / plain)
    every = {
        (e, k): float(predicted_latency_s(timing, timed.p_correct[e - 1, k - 1], e, k)) / plain
        for e in range(1, 30)
        for k in (1, 3)
    }
    assert decision.settings == len(every)
    assert max(every.values()) > 1
    assert all(s.normalized_latency.value < 1 for s in decision.frontier), "slower ones are none"
    (choice,) = decision.choices
    setting = choice.setting
    assert setting is not None
    assert setting.normalized_latency.value == pytest.approx(min(every.values()))
    assert setting.peak_units == 2
    seconds = setting.latency_per_token_s
    assert seconds is not None
    assert seconds.value == pytest.approx(plain * setting.normalized_latency.value)
    assert seconds.ci_low < seconds.value < seconds.ci_high
    heads = timing.terms["head_time_s"].value / timing.terms["layer_time_s"].value
    p = setting.p_correct.value
    compute = predicted_compute(timing, p, setting.exit_layer, setting.k) / (30 + heads)
    assert setting.normalized_compute.value == pytest.approx(compute)
    assert choice.break_even is not None
    at_it = predicted_latency_s(timing, choice.break_even, setting.exit_layer, setting.k)
    assert float(at_it) == pytest.approx(plain, rel=1e-6)


def test_the_interval_knows_that_times_are_measured_too(timed: Calibration) -> None:
    grid = TimedCosts(a_timing()).grid(30, 3, 1)
    p = np.full((100, grid.size), 0.5)
    costs = TimedCosts(a_timing())
    latency, compute = costs.drawn_ratios(grid, p)
    assert latency.std(axis=0).min() > 1e-4
    assert compute.std(axis=0).min() > 1e-5


def test_times_can_be_left_out(timed: Calibration) -> None:
    decision = optimize(timed, max_depth=2, ideal=True)
    assert decision.costs == "layers"
    assert decision.plain_latency_s is None
    with pytest.raises(InvalidInputError, match="max_depth must be 1 with measured times; got 2"):
        optimize(timed, max_depth=2)
    with pytest.raises(InvalidInputError, match="price must be"):
        optimize(timed, price=-1)


def test_where_ppd_does_not_pay_it_says_so(timed: Calibration) -> None:
    """Reading an exit takes longer than all layers after it."""
    slow = a_timing()
    heavy = {
        k: {**terms, "exit_time_s": tuple(replace(t, value=0.2) for t in terms["exit_time_s"])}
        for k, terms in slow.by_k.items()
    }
    decision = optimize(replace(timed, timing=replace(slow, by_k=heavy)), max_compute=9)
    assert decision.choices[0].setting is None


def test_a_decision_travels(timed: Calibration) -> None:
    decision = optimize(timed, max_compute=9)
    frame = decision.to_frame()
    assert len(frame) == len(decision.frontier)
    assert {"exit_layer", "k", "latency_per_token_s", "normalized_latency_low"} <= set(frame)
    assert "<table>" in decision._repr_html_()
