"""Decisions and comparisons as tables."""

from __future__ import annotations

from dataclasses import replace

from ppdmodel.decide.methods import given
from ppdmodel.decide.outcomes import Choice, Comparison, Decision, Row, Setting
from ppdmodel.results.intervals import Interval


def number(value: float) -> Interval:
    return Interval(value, value - 0.1, value + 0.1, 100, 10, "made up")


SETTING = Setting(4, 2, 1, number(0.6), number(0.8), number(1.4), 3)
METHOD = replace(
    given("PPD, gated", "exit 4, k = 2", 0.7, 1.5, 3, "measured"),
    held_out=number(0.75),
    held_out_compute=number(1.6),
)


def test_a_row_of_a_setting() -> None:
    row = Row.of_setting(replace(SETTING, latency_per_token_s=number(0.02)))
    assert (row.policy, row.setting, row.exit_layer, row.k, row.depth) == (
        "PPD", "exit 4, k = 2", 4, 2, 1,
    )  # fmt: skip
    assert (row.normalized_latency, row.normalized_compute) == (number(0.8), number(1.4))
    assert (row.p_correct, row.latency_per_token_s) == (number(0.6), number(0.02))
    assert (row.peak_units, row.max_compute, row.held_out_latency) == (3, None, None)


def test_a_decision_is_the_frontier_then_other_methods() -> None:
    choices = (
        Choice(2.0, None, SETTING, None, 0.5, None, others=(METHOD,)),
        Choice(None, 3.0, SETTING, None, 0.5, None, others=(METHOD,)),
    )
    decision = Decision("made up", 8, 100, 10, 1, choices, (SETTING,), {})
    frame = decision.to_frame()
    assert list(frame["policy"]) == ["PPD", "PPD, gated", "PPD, gated"]
    assert list(frame["normalized_latency"]) == [0.8, 0.7, 0.7]
    assert list(frame["held_out_latency"][1:]) == [0.75, 0.75]
    assert list(frame["held_out_compute"][1:]) == [1.6, 1.6]
    assert (frame["max_compute"][1], frame["price"][2]) == (2.0, 3.0)
    assert (decision.costs, decision.left_out) == ("layers", ())


def test_a_comparison_is_its_methods() -> None:
    comparison = Comparison("made up", "m", 8, 100, 10, 2.0, None, (METHOD, METHOD), (), {})
    frame = comparison.to_frame()
    assert list(frame["name"]) == ["PPD, gated"] * 2
    assert list(frame["latency"]) == [0.7, 0.7]
    assert list(frame["held_out"]) == [0.75, 0.75]
