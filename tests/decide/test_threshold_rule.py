"""The threshold rule where the truth is known, and against policies counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel import threshold, threshold_report
from ppdmodel.decide.selection import MOST_PRICE
from ppdmodel.decide.threshold_policies import Reading
from ppdmodel.decide.threshold_rule import Priced, ThresholdReport, _cost
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.guess_reliability import reliability_of
from ppdmodel.results.measurement import Guesses, Measurement
from tests.conftest import make_measurement
from tests.pipeline.test_prediction_error import a_timing

LAYERS, PROMPTS, TOKENS = 6, 20, 150


def made_up(
    temperature: float = 1.0, seed: int = 0, tokens: int = TOKENS
) -> tuple[Measurement, Guesses]:
    """Tokens whose candidates' probabilities are known; recorded ones are sharpened.

    One token in three is easy, one hard: what a fixed k cannot tell apart.
    """
    rng = np.random.default_rng(seed)
    n = PROMPTS * tokens
    logits = rng.normal(0, 1, (n, LAYERS, 9)) * rng.choice([0.3, 2.0, 5.0], (n, 1, 1))
    logits.sort(axis=2)
    true = np.exp(logits[..., ::-1])
    true /= true.sum(axis=2, keepdims=True)
    draws = rng.random((n, LAYERS, 1))
    rank = 1 + (draws > true.cumsum(axis=2)[..., :8]).sum(axis=2)
    rank = np.where(rank > 8, 300, rank)
    rank[:, -1] = 1
    odds = true[..., :8] / (1 - true[..., :8])
    sharp = odds ** (1 / temperature)
    base = make_measurement(prompts=PROMPTS, tokens=tokens, layers=LAYERS)
    measurement = replace(base, rank=rank, token_id=np.full(n, 100))
    ids = np.tile(np.arange(8), (n, LAYERS, 1))
    row, layer = np.nonzero(rank <= 8)
    ids[row, layer, rank[row, layer] - 1] = 100  # the true token stands where it ranks
    guesses = Guesses(
        prompt_ids=base.prompt_ids,
        prompt_index=base.prompt_index,
        turn=base.turn,
        position=base.position,
        vocabulary=1000,
        ids=ids,
        probs=(sharp / (1 + sharp)).astype(np.float32),
    )
    return measurement, guesses


@pytest.fixture(scope="module")
def report() -> ThresholdReport:
    return threshold_report(*made_up(temperature=0.5), prices=(0.2, 1.0, 3.0, 8.0))


def test_a_temperature_is_found_and_taken_out(report: ThresholdReport) -> None:
    assert [exit_.exit_layer for exit_ in report.reliability] == [3, 4, 5]
    for exit_ in report.reliability:
        assert exit_.scale == pytest.approx(0.5, abs=0.05)
        assert exit_.shift == pytest.approx(0, abs=0.1)
        assert exit_.first is not None
        assert exit_.first_raw is not None
        assert exit_.started is not None
        assert exit_.started_raw is not None
        assert exit_.first < 0.03 < exit_.first_raw
        assert exit_.started < 0.03 < exit_.started_raw
    for row in report.prices:
        assert (row.error is None) == (row.exit_layer is None)
        assert row.error is None or row.error < 0.05
    assert report.reliability == reliability_of([made_up(temperature=0.5)])


def test_the_rule_beats_every_fixed_setting(report: ThresholdReport) -> None:
    for row in report.prices:
        assert row.threshold == threshold(row.price)
        assert row.gain.value > -0.002
        assert row.gain.ci_low <= row.gain.value <= row.gain.ci_high
        gain = row.price * (row.fixed_latency.value - row.latency.value)
        gain += row.fixed_compute.value - row.compute.value
        assert row.gain.value == pytest.approx(gain)
        more = row.price * (row.latency.value - row.several_latency.value)
        more += row.compute.value - row.several_compute.value
        assert row.several_gain.value == pytest.approx(more)
        assert len(row.several_thresholds) == len(row.several_exits) == 3
    assert max(row.gain.ci_low for row in report.prices) > 0.005
    latency = [row.latency.value for row in report.prices]
    assert latency == sorted(latency, reverse=True), "a higher price buys less latency"


def test_numbers_are_those_of_a_policy_run_by_hand() -> None:
    """With one exit to choose and known probabilities, token by token."""
    measurement, guesses = made_up()
    report = threshold_report(measurement, guesses, prices=(2.0,))
    (row,) = report.prices
    e = row.exit_layer
    assert e is not None
    q = guesses.probs[:, e - 1].astype(float)
    started = (q >= 1 / 3).sum(axis=1)
    hit = measurement.rank[:, e - 1] <= started
    latency = 1 - hit.mean() * (LAYERS - e) / LAYERS
    compute = 1 + (started - hit).mean() * (LAYERS - e) / LAYERS
    assert row.latency.value == pytest.approx(latency, abs=0.02)
    assert row.compute.value == pytest.approx(compute, abs=0.02)


def test_at_no_price_nothing_is_started() -> None:
    (row,) = threshold_report(*made_up(), prices=(0.0,)).prices
    assert row.exit_layer is None
    assert row.fixed_exit_layer is None
    assert (row.latency.value, row.compute.value, row.gain.value) == pytest.approx((1, 1, 0))


def pair_by_hand(row: Priced, measurement: Measurement, guesses: Guesses) -> tuple[float, float]:
    """Latency and compute of the two fixed exits, token by token."""
    assert row.two_exits is not None
    assert row.two_k is not None
    (early, late), (a, b) = row.two_exits, row.two_k
    takes, costs = 0.0, 0.0
    for n in range(measurement.n_tokens):
        first = measurement.rank[n, early - 1] <= a
        second = not first and measurement.rank[n, late - 1] <= b
        before = set(guesses.ids[n, early - 1, :a].tolist())
        new = len(set(guesses.ids[n, late - 1, :b].tolist()) - before)
        takes += LAYERS - first * (LAYERS - early) - second * (LAYERS - late)
        costs += LAYERS + (a - first) * (LAYERS - early) + (new - second) * (LAYERS - late)
    return takes / measurement.n_tokens / LAYERS, costs / measurement.n_tokens / LAYERS


def test_two_fixed_exits_stand_beside_one() -> None:
    measurement, guesses = made_up()
    (row,) = threshold_report(measurement, guesses, prices=(6.0,)).prices
    latency, compute = pair_by_hand(row, measurement, guesses)
    assert row.two_latency.value == pytest.approx(latency, abs=0.02)
    assert row.two_compute.value == pytest.approx(compute, abs=0.04)
    gain = 6 * (row.fixed_latency.value - row.two_latency.value)
    gain += row.fixed_compute.value - row.two_compute.value
    assert row.two_gain.value == pytest.approx(gain)


def test_dear_readings_are_not_bought() -> None:
    measurement, guesses = made_up(tokens=50)
    reports = [
        threshold_report(measurement, guesses, prices=(6.0,), exit_cost=cost)
        for cost in (0.0, 0.3, 30.0)
    ]
    free, some, none = (report.prices[0] for report in reports)
    read = [np.isfinite(row.several_thresholds).sum() for row in (free, some, none)]
    assert read[0] == 3
    assert 1 <= read[1] <= 3
    assert read[2] == 0
    assert free.several_latency.value < some.several_latency.value < 1
    for value in (none.latency, none.compute, none.several_latency, none.two_compute):
        assert value.value == 1
    assert (none.exit_layer, none.two_exits) == (None, None)
    assert (reports[1].exit_cost, reports[1].head_cost) == (0.3, 0.3)


def test_bad_costs_are_named() -> None:
    made = made_up(tokens=5)
    for wrong, message in (
        ({"exit_cost": -1.0}, "exit_cost"),
        ({"exit_cost": np.nan}, "exit_cost"),
        ({"exit_cost": 1e300}, r"exit_cost must be at most 1e\+06"),
        ({"head_cost": -1.0}, "head_cost"),
        ({"exit_cost": 9.0, "head_cost": 0.0}, "reading an exit must leave time for its guesses"),
        ({"exit_cost": 1.0, "timing": a_timing()}, "given or from a timing; got both"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            threshold_report(*made, **wrong)


def test_bad_input_is_named() -> None:
    measurement, guesses = made_up(tokens=30)
    with pytest.raises(InvalidInputError, match="the timing must be of the measured model"):
        threshold_report(measurement, guesses, timing=a_timing())
    with pytest.raises(InvalidInputError, match="price"):
        threshold_report(make_measurement(prompts=4), guesses, prices=(1, -1))  # before all else
    with pytest.raises(InvalidInputError, match="got 4 prompts; measure at least 10"):
        threshold_report(
            make_measurement(prompts=4),
            replace(guesses, ids=guesses.ids[:80], probs=guesses.probs[:80]),
        )
    with pytest.raises(InvalidInputError, match="an exit must lie below the last layer; got 1"):
        threshold_report(
            replace(
                measurement, rank=measurement.rank[:, -1:], top_prob=measurement.top_prob[:, -1:]
            ),
            replace(guesses, ids=guesses.ids[:, :0], probs=guesses.probs[:, :0]),
        )
    with pytest.raises(InvalidInputError, match="that are not where the tokens ranked"):
        threshold_report(measurement, replace(guesses, ids=guesses.ids % 100))
    with pytest.raises(InvalidInputError, match="guesses must be of the measured tokens"):
        threshold_report(measurement, replace(guesses, ids=guesses.ids[:-1]))


def test_ten_prompts_and_two_layers_are_enough() -> None:
    """At the one exit there is, where the seed is 0 unless given."""
    measurement, guesses = made_up(tokens=20)
    rows = measurement.prompt_index < 10
    few = replace(
        measurement,
        prompt_ids=measurement.prompt_ids[:10],
        categories=measurement.categories[:10],
        prompt_index=measurement.prompt_index[rows],
        turn=measurement.turn[rows],
        position=measurement.position[rows],
        token_id=measurement.token_id[rows],
        rank=measurement.rank[rows, -2:],
        top_prob=measurement.top_prob[rows, -2:],
    )
    ids, probs = guesses.ids[rows, -2:], guesses.probs[rows, -2:]
    made = few, replace(guesses, ids=ids, probs=probs)
    report = threshold_report(*made, prices=(4.0,))
    (row,) = report.prices
    assert (row.several_exits, row.two_exits, row.two_k) == ((1,), None, None)
    assert (row.exit_layer, row.fixed_exit_layer) == (1, 1)
    assert row.fixed_k is not None
    assert report == threshold_report(*made, prices=(4.0,), seed=0)
    assert report != threshold_report(*made, prices=(4.0,), seed=1)


def test_a_timing_of_the_model_gives_both_costs() -> None:
    measurement, guesses = made_up(tokens=20)
    about = {**measurement.provenance, "weights_sha256": ["0"]}
    timing = replace(a_timing(), layers=LAYERS)
    made = replace(measurement, provenance=about), guesses
    report = threshold_report(*made, prices=(6.0,), timing=timing)
    reading = Reading.of_timing(timing)
    assert (report.exit_cost, report.head_cost) == (reading.exit_cost, reading.head_cost)
    assert report == threshold_report(
        *made, prices=(6.0,), exit_cost=reading.exit_cost, head_cost=reading.head_cost
    )


def test_the_table_has_a_row_per_price(report: ThresholdReport) -> None:
    table = report.to_frame()
    assert table["price"].tolist() == [row.price for row in report.prices]


def test_the_largest_cost_is_a_cost() -> None:
    assert _cost("exit_cost", MOST_PRICE) == MOST_PRICE
