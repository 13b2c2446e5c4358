"""Grids of settings, and what each costs by the closed forms and by measured times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel import normalized_compute, normalized_latency, peak_units
from ppdmodel.decide.costs import Grid, LayerCosts, TimedCosts, cost_model
from ppdmodel.decide.hardware import device, shape
from ppdmodel.decide.prediction import (
    predicted_compute,
    predicted_latency_s,
    predicted_plain_compute,
    predicted_plain_latency_s,
)
from ppdmodel.decide.roofline import roofline
from tests.pipeline.test_prediction_error import a_calibration, a_timing


def settings_of(grid: Grid) -> list[tuple[int, int, int]]:
    return [*zip(grid.exit_layer, grid.k, grid.depth, strict=True)]


def test_a_grid_holds_every_setting_once() -> None:
    grid = Grid.of(4, 2, 3)
    pairs = [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)]  # deeper changes nothing from exit layer 2 on
    every = [(e, k, depth) for e, depth in pairs for k in (1, 2)]
    assert settings_of(grid) == every
    assert grid.size == 10
    assert settings_of(Grid.of(3, (2, 5), 1)) == [(1, 2, 1), (1, 5, 1), (2, 2, 1), (2, 5, 1)]
    assert settings_of(grid.only(grid.k == 2)) == [s for s in every if s[1] == 2]
    assert grid.peak_units().tolist() == [peak_units(4, *setting) for setting in every]


def test_rates_are_picked_by_exit_and_k() -> None:
    grid, table = Grid.of(4, 2, 2), np.arange(24.0).reshape(3, 4, 2)
    for row in range(3):
        expected = [table[row, e - 1, k - 1] for e, k, _ in settings_of(grid)]
        assert grid.rates(table)[row].tolist() == expected


@pytest.mark.parametrize("draws", [1, 2**16, 2**20])
def test_blocks_hold_every_setting_once_at_one_depth(draws: int) -> None:
    grid = Grid.of(8, 3, 2)
    places = []
    for depth, at in grid.blocks(draws):
        assert set(grid.depth[at]) == {depth}
        assert len(at) <= max(2**18 // draws, 1)
        places += at.tolist()
    assert sorted(places) == list(range(grid.size))


def test_layers_cost_the_closed_forms() -> None:
    costs = LayerCosts()
    grid = costs.grid(6, 3, 2)
    p = np.random.default_rng(0).random((5, grid.size))
    latency, compute = costs.ratios(grid, p)
    for place, (e, k, depth) in enumerate(settings_of(grid)):
        assert latency[:, place] == pytest.approx(normalized_latency(p[:, place], 6, e, depth))
        assert compute[:, place] == pytest.approx(normalized_compute(p[:, place], 6, e, k, depth))
    assert costs.ratios(grid, p.astype(np.float32))[0].dtype == np.float32
    assert costs.units(grid).tolist() == grid.peak_units().tolist()
    assert costs.break_even(2, 1) == 0


def test_times_cost_the_calibrated_model() -> None:
    timing = a_timing()
    costs = TimedCosts(timing)
    grid = costs.grid(30, 2, 1)
    assert set(grid.k) == {1}, "k = 3 was timed and not recorded"
    grid = costs.grid(30, 3, 1)
    assert settings_of(grid) == [(e, k, 1) for e in range(1, 30) for k in (1, 3)]
    p = np.random.default_rng(0).random(grid.size)
    latency, compute = costs.ratios(grid, p)
    plain_s, plain = predicted_plain_latency_s(timing), predicted_plain_compute(timing)
    for place in (0, 17, 57):
        e, k, _ = settings_of(grid)[place]
        assert latency[place] == pytest.approx(
            float(predicted_latency_s(timing, p[place], e, k)) / plain_s
        )
        assert compute[place] == pytest.approx(
            float(predicted_compute(timing, p[place], e, k)) / plain
        )
    assert costs.units(grid).tolist() == [2] * grid.size
    assert costs.plain_s == plain_s


def test_draws_take_the_resampled_timings_in_turn() -> None:
    costs = TimedCosts(a_timing(), seed=3)
    grid = costs.grid(30, 3, 1)
    grid = grid.only(np.isin(grid.exit_layer, (10, 20)))
    p = np.random.default_rng(1).random((45, grid.size))
    latency, compute = costs.drawn_ratios(grid, p)
    for row in (0, 1, 19, 20, 44):
        timing = costs.draws[row % 20].timing
        (e, k, _), plain = settings_of(grid)[2], predicted_plain_latency_s(timing)
        expected = float(predicted_latency_s(timing, p[row, 2], e, k)) / plain
        assert latency[row, 2] == pytest.approx(expected)
        executed = float(predicted_compute(timing, p[row, 2], e, k))
        assert compute[row, 2] == pytest.approx(executed / predicted_plain_compute(timing))
    again = TimedCosts(a_timing(), seed=3).drawn_ratios(grid, p)
    assert np.array_equal(again[0], latency)
    mine, its, others = (
        [drawn.timing for drawn in each.draws]
        for each in (TimedCosts(a_timing()), TimedCosts(a_timing(), seed=0), costs)
    )
    assert mine == its != others


def test_where_times_break_even() -> None:
    costs = TimedCosts(a_timing())
    p = costs.break_even(20, 1)
    assert p is not None
    assert 0 < p < 1
    for rate, pays in ((p + 1e-6, True), (p - 1e-6, False)):
        seconds = float(predicted_latency_s(costs.timing, rate, 20, 1))
        assert (seconds < costs.plain_s) is pays


def test_what_is_never_faster_has_no_break_even() -> None:
    """Guesses that arrive after the verification change nothing, at any match rate."""
    far = TimedCosts(roofline(shape("SmolLM2 135M"), device("H100 SXM"), link_time_s=1.0))
    assert far.break_even(20, 1) is None


def test_the_costs_of_a_calibration() -> None:
    calibration = a_calibration(12)
    assert cost_model(calibration).name == "layers"
    timed = replace(calibration, timing=a_timing())
    assert cost_model(timed).name == "measured times"
    assert cost_model(timed, ideal=True).name == "layers"
    paper = roofline(shape("SmolLM2 135M"), device("H100 SXM"), units_per_process=3)
    costs = cost_model(replace(calibration, timing=paper))
    assert isinstance(costs, TimedCosts)
    assert (costs.name, costs.n_units) == ("ideal times", 6)
