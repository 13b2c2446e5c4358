"""The best of each method beside the others, within a budget and so many units."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ppdmodel as ppd
from ppdmodel import compare
from ppdmodel.decide.compare import NO_CONTEXTS, OLDER
from ppdmodel.decide.methods import (
    gated,
    prompt_lookup,
    self_speculation,
)
from ppdmodel.decide.outcomes import Comparison, Method
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.measurement import Measurement
from ppdmodel.results.token_counts import TokenCounts
from tests.conftest import make_measurement
from tests.decide.test_methods import all_of, pairs, quick_fit, with_turns
from tests.pipeline.test_prediction_error import a_timing
from tests.support.tables import repeating_guesses


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    """Twelve prompts, eight layers, of which two texts are one prompt's turns."""
    return with_turns()


def named(result: Comparison, name: str) -> Method:
    return next(method for method in result.methods if method.name == name)


def test_the_best_of_each_within_the_budget(measurement: Measurement) -> None:
    result = compare(measurement, max_compute=1.8, acceptance_rate=0.8, draft_time=0.05)
    weights = np.ones((1, len(measurement.prompt_ids)), dtype=np.int64)
    counts = TokenCounts.of(measurement)
    lookup = prompt_lookup(counts)
    assert lookup is not None
    for family in (gated(counts), self_speculation(counts), pairs(measurement), lookup):
        latency, compute = (x[0] for x in all_of(family, weights))
        within = latency[(compute <= 1.8) & (latency < 1)]
        method = named(result, family.name)
        assert method.latency.value == pytest.approx(min(within, default=1.0))
        assert method.compute.value <= 1.8
        assert method.latency.ci_low <= method.latency.value <= method.latency.ci_high
        assert method.held_out is not None
        assert method.basis == "measured"
    best = ppd.optimize(quick_fit(measurement, resamples=40), max_compute=1.8).choices[0].setting
    assert best is not None
    mine = named(result, "PPD")
    assert mine.latency.value == pytest.approx(best.normalized_latency.value)
    assert mine.setting == f"exit {best.exit_layer}, k = {best.k}"
    assert mine.units == best.peak_units
    given = named(result, "speculative")
    latency = [
        ppd.speculative_latency(0.8, 8, n, 0.05) / 8
        for n in range(1, 17)
        if ppd.speculative_compute(0.8, 8, n, 0.05) / 8 <= 1.8
    ]
    assert given.latency.value == pytest.approx(min(latency))
    assert given.basis == "ideal"
    split = named(result, "split layers")
    assert split.latency.value == pytest.approx(1 / mine.units)
    both = named(result, "PPD, split layers")
    assert both.latency.value == pytest.approx(mine.latency.value / 2)
    assert both.units == 2 * mine.units
    assert mine.held_out is not None
    assert both.held_out is not None
    assert both.held_out.value == pytest.approx(mine.held_out.value / 2)
    plain = named(result, "plain decoding")
    assert (plain.latency.value, plain.compute.value) == (1, 1)
    assert (plain.units, given.units) == (1, 1)


def test_the_budget_is_twice_plain_decoding_unless_given(measurement: Measurement) -> None:
    defaults = {"max_compute": 2, "draft_time": 0.1, "efficiency": 1, "link_time": 0}
    for given in ({}, {"acceptance_rate": 0.8}):
        assert compare(measurement, **given) == compare(measurement, **(defaults | given))  # type: ignore[arg-type]
    assert compare(measurement) != compare(measurement, max_compute=3)


@pytest.mark.parametrize(("acceptance_rate", "drafted"), [(0.01, 1), (0.999, 16)])
def test_one_to_sixteen_tokens_are_drafted(
    measurement: Measurement, acceptance_rate: float, drafted: int
) -> None:
    result = compare(measurement, max_compute=20, acceptance_rate=acceptance_rate, draft_time=1e-3)
    best = named(result, "speculative")
    assert best.setting == f"alpha = {acceptance_rate:g}, c = 0.001, {drafted} drafted"
    latency = ppd.speculative_latency(acceptance_rate, 8, drafted, 1e-3) / 8
    assert best.latency.value == pytest.approx(latency)


def test_units_limit_every_method(measurement: Measurement) -> None:
    result = compare(measurement, max_compute=9, max_units=2, efficiency=0.8)
    assert all(method.units <= 2 for method in result.methods)
    assert named(result, "PPD").setting.endswith("k = 1")
    assert named(result, "split layers").latency.value == pytest.approx(1 / 1.6)
    alone = compare(measurement, max_units=1)
    assert [m.name for m in alone.methods] == [
        "plain decoding", "self-speculation", "prompt lookup",
    ]  # fmt: skip
    assert alone.left_out == (
        NO_CONTEXTS,
        "PPD: it takes 2 units or more",
        "PPD, gated: it takes 2 units or more",
        "PPD, two exits: it takes 3 units or more",
        "split layers: it takes 2 units or more",
        "PPD, split layers: it takes 4 units or more",
    )
    assert compare(measurement, max_compute=9, max_units=4).left_out == (NO_CONTEXTS,)
    slow = compare(measurement, max_compute=1, acceptance_rate=0.5)
    assert "no number of drafted tokens is faster" in slow.left_out[-1]


@pytest.mark.parametrize(
    ("units", "efficiency", "link_time"), [(12, 0.9, 0.0), (12, 1.0, 0.5), (40, 1.0, 0.0)]
)
def test_a_hybrid_takes_the_best_split_of_its_units(
    measurement: Measurement, units: int, efficiency: float, link_time: float
) -> None:
    """Processes of 2 to 8 units each; a link also takes 2 ceil(log2 n) messages a layer."""
    few = replace(quick_fit(measurement, resamples=40), recorded=None)
    given = {"max_compute": 9, "link_time": link_time}
    result = compare(few, max_units=units, efficiency=efficiency, **given)  # type: ignore[arg-type]
    by_hand = {}
    for n in range(2, min(8, units // 2) + 1):
        inner = named(compare(few, max_units=units // n, **given), "PPD")  # type: ignore[arg-type]
        factor = (8 / n / efficiency + (2 * 8 + 1) * math.ceil(math.log2(n)) * link_time) / 8
        by_hand[inner.latency.value * factor] = (n * inner.units, inner.setting, n)
    best = named(result, "PPD, split layers")
    assert best.latency.value == pytest.approx(min(by_hand))
    of_all, setting, n = by_hand[min(by_hand)]
    assert best.units == of_all <= units
    assert best.setting.startswith(f"{setting}, {n} units each, efficiency {efficiency:g}")
    names = [method.name for method in result.methods]
    assert len(set(names)) == len(names), "one row each"


def test_a_link_delays_matches_by_one_message_and_split_layers_by_two_a_layer(
    measurement: Measurement,
) -> None:
    near, far = (compare(measurement, max_units=2, link_time=x) for x in (0.0, 0.25))
    split = named(far, "split layers").latency.value - named(near, "split layers").latency.value
    assert split == pytest.approx((2 * 8 + 1) * 0.25 / 8)
    assert named(near, "split layers").setting == "2 units, efficiency 1"
    assert named(far, "split layers").setting == "2 units, efficiency 1, link 0.25"
    d = measurement.layers
    p = (measurement.rank <= 1).mean(axis=0)
    linked = [float(ppd.ppd_linked_latency(p[e - 1], d, e, 0.25, 1.0)) / d for e in range(4, 8)]
    mine = named(far, "PPD")
    e = int(mine.setting.split(",")[0].removeprefix("exit "))
    if e >= 4:
        assert mine.latency.value == pytest.approx(linked[e - 4])
    assert mine.latency.value <= min(linked) + 1e-12
    for name in ("PPD, gated", "PPD, two exits"):
        a, b = (compare(measurement, max_units=4, link_time=x) for x in (0.0, 0.25))
        assert named(b, name).latency.value > named(a, name).latency.value


def test_held_out_shows_selection_bias(measurement: Measurement) -> None:
    """Where no setting is truly better, the chosen one does worse on other prompts."""
    seen, held_out = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        base = make_measurement(prompts=12, tokens=6, layers=20, seed=seed)
        rate = np.append(0.8 / (20 - np.arange(1, 20)), 1.0)
        rank = np.where(rng.random(base.rank.shape) < rate, 1, 300)
        method = named(compare(replace(base, rank=rank), max_compute=1.9), "PPD")
        seen.append(method.latency.value)
        assert method.held_out is not None
        held_out.append(method.held_out.value)
    assert np.mean(seen) < np.mean(held_out) - 0.005


def test_without_a_setting_that_pays_two_units_split_the_layers() -> None:
    made = make_measurement()
    never = replace(made, rank=np.where(np.arange(1, 7) < 6, 250, 1) + 0 * made.rank)
    result = compare(never)
    assert named(result, "PPD").units == 1
    split = named(result, "split layers")
    assert (split.units, split.compute.value) == (2, 1.0)
    assert split.latency.value == 0.5
    assert "PPD, split layers" not in [method.name for method in result.methods]


def test_prompt_lookup_says_what_it_could_not_search(measurement: Measurement) -> None:
    texts = len(measurement.starts()) - 1
    known = replace(measurement, context_ids=(measurement.token_id[:30],) * texts)
    assert NO_CONTEXTS not in compare(known).left_out
    assert "searched: prompt and text" in named(compare(known), "prompt lookup").note
    alone = compare(measurement)
    assert NO_CONTEXTS in alone.left_out
    assert "searched: generated text alone" in named(alone, "prompt lookup").note
    old = quick_fit(measurement, resamples=40)
    assert old.recorded is not None
    uncounted = replace(old.recorded, lookups=None, gated_rounds=None, gated_drafts=None)
    older = compare(replace(old, recorded=uncounted))
    assert OLDER in older.left_out
    assert not any("lookup" in method.name for method in older.methods)


def test_two_layers_are_enough() -> None:
    assert named(compare(make_measurement(layers=2)), "PPD").setting.startswith("exit 1, k = ")
    with pytest.raises(InvalidInputError, match="an exit must lie below the last layer; got 1"):
        compare(make_measurement(layers=1))


def test_times_add_rows_in_seconds() -> None:
    made = make_measurement(layers=30)
    about = {**made.provenance, "weights_sha256": ["0"], "exit_kind": "logit"}
    result = compare(replace(made, provenance=about), timing=a_timing())
    timed = named(result, "PPD, timed")
    assert timed.basis == "fitted"
    split = named(result, "split layers, timed")
    assert split.units == 2
    assert (split.latency.n_tokens, split.latency.n_prompts) == (0, 0), "from no token"
    assert split.latency.value == pytest.approx(36 / 47.3, abs=0.01)
    assert split.latency.ci_low == split.latency.value == split.latency.ci_high
    assert split.compute.value == 1
    calibration = replace(quick_fit(replace(made, provenance=about)), timing=a_timing())
    mine = compare(calibration, max_units=2)
    lookup = named(result, "prompt lookup, timed")
    assert (lookup.basis, lookup.units) == ("fitted", 1)
    rows = (timed, lookup, split)
    assert mine.methods[-3:] == rows, "its own timing, and all units may be used"
    alone = compare(replace(made, provenance=about), timing=a_timing(), max_units=1)
    assert [m.name for m in alone.methods if "timed" in m.name] == ["prompt lookup, timed"]
    assert {"PPD, timed: it takes 2 units or more"} < set(alone.left_out)
    with pytest.raises(InvalidInputError, match="the timing must be of the measured model"):
        compare(make_measurement(), timing=a_timing())


@pytest.mark.parametrize("with_guesses", [True, False])
def test_a_calibration_gives_what_its_measurement_gives(
    measurement: Measurement, tmp_path: Path, with_guesses: bool
) -> None:
    guesses = repeating_guesses(measurement) if with_guesses else None
    ppd.save(quick_fit(measurement, guesses=guesses), tmp_path / "cal.json")
    calibration = ppd.load(tmp_path / "cal.json")
    assert isinstance(calibration, Calibration)
    mine, its = (
        compare(measurement, guesses=guesses, max_units=4),
        compare(calibration, max_units=4),
    )
    assert its.methods == mine.methods
    assert "PPD, two exits" in [method.name for method in its.methods]
    for given in ({"timing": a_timing()}, {"guesses": repeating_guesses(measurement)}):
        with pytest.raises(InvalidInputError, match="must be left out for a calibration"):
            compare(calibration, **given)


def test_a_calibration_without_tokens_has_fewer_methods(measurement: Measurement) -> None:
    result = compare(replace(quick_fit(measurement, resamples=100), recorded=None))
    assert "self-speculation" not in [method.name for method in result.methods]
    assert "counts of the recorded tokens" in result.left_out[0]


def test_answers_travel(measurement: Measurement) -> None:
    result = compare(measurement)
    frame = result.to_frame()
    assert list(frame["name"]) == [method.name for method in result.methods]
    assert frame["latency_low"].le(frame["latency"]).all()
    document = json.loads(result.to_json())
    assert document["methods"][1]["latency"]["value"] == result.methods[1].latency.value
    hostile = replace(result, methods=(replace(result.methods[0], name="<b>"),))
    assert "&lt;b&gt;" in hostile._repr_html_()
    assert "<b>" not in hostile._repr_html_()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_compute": 0.9}, "max_compute must be at least 1"),
        ({"max_units": 0}, "max_units must be a positive integer"),
        ({"link_time": -1.0}, "link_time"),
        ({"efficiency": 1.5}, r"efficiency must lie in \(0, 1\]"),
        ({"efficiency": 0.0}, r"efficiency must lie in \(0, 1\]; got 0\.0"),
        ({"efficiency": -0.5}, "efficiency must be a number of at least 0; got -0.5"),
        ({"acceptance_rate": 1.5}, "acceptance_rate must lie in"),
    ],
)
def test_bad_input_is_named(
    measurement: Measurement, wrong: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        compare(measurement, **wrong)  # type: ignore[arg-type]
