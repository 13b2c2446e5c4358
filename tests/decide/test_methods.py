"""Each method counted token by token by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from ppdmodel import compute_per_token, fit, latency_per_token
from ppdmodel.decide.costs import LayerCosts, TimedCosts
from ppdmodel.decide.methods import (
    GIVEN,
    NOTHING,
    MethodSettings,
    PpdSettings,
    best_methods,
    beyond,
    gated,
    given,
    ppd,
    prompt_lookup,
    self_speculation,
    two_exits,
)
from ppdmodel.decide.prediction import (
    predicted_latency_s,
    predicted_plain_latency_s,
    verification_times,
)
from ppdmodel.decide.selection import PromptSample, Rule, Selection
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.measurement import Guesses, Measurement
from ppdmodel.results.prompt_lookup import LOOKED_UP, NGRAMS, lookup_rounds
from ppdmodel.results.token_counts import (
    DRAFT_GATES,
    DRAFTED,
    GATED_K,
    TokenCounts,
    gated_rounds_of,
    rounds_of,
)
from tests.conftest import make_measurement
from tests.pipeline.test_prediction_error import a_calibration, a_timing
from tests.support.tables import repeating_guesses


def with_turns() -> Measurement:
    """Twelve prompts, eight layers, of which two texts are one prompt's turns."""
    made = make_measurement(tokens=21, layers=8, seed=2)
    rng = np.random.default_rng(5)
    turn = np.where((made.prompt_index == 3) & (made.position >= 13), 1, 0)
    position = np.where(turn == 1, made.position - 13, made.position)
    top_prob = rng.random(made.rank.shape).astype(np.float32)
    return replace(made, turn=turn.astype(np.int16), position=position, top_prob=top_prob)


def quick_fit(measurement: Measurement, *, resamples: int = 1000, **options: Any) -> Calibration:
    """The calibration of `fit` in what decisions use: counts, resamples and the seed.

    The curve, which decisions leave out, is one family's with few resamples.
    """
    quick = fit(measurement, family="floored power", resamples=40, **options)
    return replace(quick, resamples=resamples)


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return with_turns()


def weights_of(measurement: Measurement) -> np.ndarray:
    """Everyone once, and two resamples."""
    prompts = len(measurement.prompt_ids)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=2)
    return np.concatenate([np.ones((1, prompts), dtype=np.int64), drawn])


def all_of(family: MethodSettings, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return family.evaluate(weights, np.arange(len(family.settings)))


def test_rounds_of_self_speculation_by_hand(measurement: Measurement) -> None:
    found = rounds_of(measurement)
    slow = np.zeros_like(found)
    for start, end in pairwise(measurement.starts().tolist()):
        for layer in range(measurement.layers):
            for column, drafted in enumerate(DRAFTED):
                place = start
                while place < end:
                    accepted = 0
                    while (
                        accepted < drafted
                        and place + accepted < end
                        and measurement.rank[place + accepted, layer] == 1
                    ):
                        accepted += 1
                    place += accepted + 1
                    slow[measurement.prompt_index[start], layer, column] += 1
    assert (found == slow).all()


def test_self_speculation_takes_its_rounds(measurement: Measurement) -> None:
    family = self_speculation(TokenCounts.of(measurement))
    weights = weights_of(measurement)
    latency, compute = all_of(family, weights)
    rounds, tokens, d = rounds_of(measurement), measurement.tokens_by_prompt(), measurement.layers
    place = family.settings.index("exit 5, 3 drafted")
    for row, weight in enumerate(weights):
        per_token = (weight @ rounds[:, 4, 2]) / (weight @ tokens)
        assert latency[row, place] == pytest.approx(per_token * (3 * 5 + d) / d)
        assert compute[row, place] == pytest.approx(per_token * 4 * d / d)
    perfect = replace(measurement, rank=np.ones_like(measurement.rank))
    at_exit = self_speculation(TokenCounts.of(perfect))
    assert all_of(at_exit, weights)[0].min() < 0.5, "a perfect draft is much faster"


def test_gated_self_speculation_takes_its_rounds_and_drafts(measurement: Measurement) -> None:
    """A round of G drafts takes G e + d layers and runs G + 1 tokens through d."""
    rng = np.random.default_rng(4)
    unsure = replace(measurement, top_prob=rng.random(measurement.rank.shape))
    counts = TokenCounts.of(unsure)
    family = self_speculation(counts)
    weights, d = weights_of(unsure), unsure.layers
    latency, compute = all_of(family, weights)
    rounds, drafts = gated_rounds_of(unsure)
    for e, most, gate in ((3, 2, 0.5), (7, 8, 0.1), (1, 1, 0.9)):
        place = family.settings.index(f"exit {e}, up to {most} drafted, gate {gate:g}")
        at = (slice(None), e - 1, DRAFT_GATES.index(gate), GATED_K.index(most))
        for row, weight in enumerate(weights):
            n, made, drafted = (weight @ x for x in (counts.tokens, rounds[at], drafts[at]))
            assert latency[row, place] == pytest.approx((made * d + drafted * e) / n / d)
            assert compute[row, place] == pytest.approx((made + drafted) / n)
    sure = replace(measurement, top_prob=np.ones_like(measurement.top_prob))
    always = self_speculation(TokenCounts.of(sure))
    for values in all_of(always, weights):
        ungated = values[:, always.settings.index("exit 4, 3 drafted")]
        place = always.settings.index("exit 4, up to 3 drafted, gate 0.9")
        assert values[:, place] == pytest.approx(ungated)
    older = self_speculation(replace(counts, gated_rounds=None))
    assert older.settings == family.settings[: 7 * len(DRAFTED)]


def test_prompt_lookup_takes_its_rounds(measurement: Measurement) -> None:
    repeats = replace(measurement, token_id=measurement.token_id % 4)
    counts = TokenCounts.of(repeats)
    rounds, weights = lookup_rounds(repeats), weights_of(repeats)
    family = prompt_lookup(counts)
    assert family is not None
    assert family.name == "prompt lookup"
    timing = replace(a_timing(), by_k={1: a_timing().by_k[1], 3: slower(a_timing().by_k[3], 1.2)})
    costs = TimedCosts(timing)
    timed = prompt_lookup(counts, costs)
    assert timed is not None
    assert timed.name == "prompt lookup, timed"
    assert {words.split(", ")[1] for words in timed.settings} == {"1 drafted", "2 drafted"}
    for n, m in ((1, 2), (3, 1), (2, 10)):
        words = f"n-grams of up to {n}, {m} drafted"
        mine = rounds[:, NGRAMS.index(n), LOOKED_UP.index(m)]
        for row, weight in enumerate(weights):
            by_draft = (weight @ mine) / (weight @ counts.tokens)
            latency, compute = (x[row] for x in all_of(family, weights))
            place = family.settings.index(words)
            assert latency[place] == pytest.approx(by_draft.sum())
            assert compute[place] == pytest.approx(by_draft @ (1 + np.arange(11)))
            if m > 2:
                assert words not in timed.settings
                continue
            place = timed.settings.index(words)
            latency, compute = (x[0] for x in all_of(timed, weight[None]))
            times = verification_times(timing, 3)
            assert latency[place] == pytest.approx(by_draft[:3] @ times)
            assert compute[place] == pytest.approx(by_draft @ (1 + np.arange(11)))
    assert (family.units == 1).all()
    drawn = all_of(timed, np.repeat(weights[:1], 3, axis=0))[0]
    assert len(np.unique(drawn[:, -1])) == 3, "each row has a resampled timing"
    assert prompt_lookup(replace(counts, lookups=None)) is None
    alone = TimedCosts(replace(timing, by_k={1: timing.by_k[1]}))
    assert prompt_lookup(counts, alone) is None, "no batch of two was timed"


def slower(terms: Any, factor: float) -> Any:
    """The terms of a number of guesses whose layers take longer."""
    name = "batch_layer_time_s"
    return {**terms, name: tuple(replace(t, value=factor * t.value) for t in terms[name])}


@pytest.mark.parametrize("link_time", [0.0, 1.5])
def test_a_gate_by_hand(measurement: Measurement, link_time: float) -> None:
    """A link moves the start of the guesses later, at most to the last layer."""
    family = gated(TokenCounts.of(measurement), link_time)
    weights = weights_of(measurement)
    latency, compute = all_of(family, weights)
    d, tokens = measurement.layers, measurement.tokens_by_prompt()
    assert not any(name.startswith("exit 3,") for name in family.settings), "the second half"
    for e, k, gate in ((4, 2, 0.3), (6, 1, 0.8), (5, 8, 0.5), (7, 3, 0.2)):
        place = family.settings.index(f"exit {e}, k = {k}, gate {gate:g}")
        opens = measurement.top_prob[:, e - 1] >= gate
        hit = opens & (measurement.rank[:, e - 1] <= k)
        left = d - min(e + link_time, d)
        takes = d - hit * left
        costs = d + opens * (k - hit) * left
        for row, weight in enumerate(weights):
            w = weight[measurement.prompt_index]
            assert latency[row, place] == pytest.approx((w @ takes) / (weight @ tokens) / d)
            assert compute[row, place] == pytest.approx((w @ costs) / (weight @ tokens) / d)
        assert family.units[place] == k + 1


def test_a_gate_that_opens_once_or_never(measurement: Measurement) -> None:
    top_prob, rank = np.zeros_like(measurement.top_prob), measurement.rank.copy()
    top_prob[5, 4], rank[5, 4] = 0.35, 1
    family = gated(TokenCounts.of(replace(measurement, top_prob=top_prob, rank=rank)))
    latency = all_of(family, weights_of(measurement)[:1])[0][0]
    for gate, saved in ((0.3, (8 - 5) / 8 / measurement.n_tokens), (0.4, 0)):
        place = family.settings.index(f"exit 5, k = 1, gate {gate:g}")
        assert latency[place] == pytest.approx(1 - saved, rel=1e-12)


@pytest.mark.parametrize("with_guesses", [True, False])
def test_two_exits_by_hand(measurement: Measurement, with_guesses: bool) -> None:
    guesses = repeating_guesses(measurement) if with_guesses else None
    family, weights = pairs(measurement, guesses), weights_of(measurement)
    latency, compute = all_of(family, weights)
    d, tokens = measurement.layers, measurement.tokens_by_prompt()
    assert ("an upper bound" in family.note) is (guesses is None)
    for early, late, a, b in ((4, 6, 2, 3), (5, 7, 1, 1), (4, 5, 5, 5)):
        place = family.settings.index(f"exits {early}, {late}, k = {a}, {b}")
        takes, costs = np.zeros(measurement.n_tokens), np.zeros(measurement.n_tokens)
        for row in range(measurement.n_tokens):
            first = measurement.rank[row, early - 1] <= a
            second = not first and measurement.rank[row, late - 1] <= b
            started = b
            if guesses is not None:
                before = set(guesses.ids[row, early - 1, :a].tolist())
                started = len(set(guesses.ids[row, late - 1, :b].tolist()) - before)
            takes[row] = d - first * (d - early) - second * (d - late)
            costs[row] = d + (a - first) * (d - early) + (started - second) * (d - late)
        assert family.units[place] == 1 + a + b
        for row, weight in enumerate(weights):
            w = weight[measurement.prompt_index]
            assert latency[row, place] == pytest.approx((w @ takes) / (weight @ tokens) / d)
            assert compute[row, place] == pytest.approx((w @ costs) / (weight @ tokens) / d)


def test_a_link_delays_the_guesses_of_both_exits(measurement: Measurement) -> None:
    """As if each exit lay so much later: equation (6.1) at the recorded rates."""
    counts, link = TokenCounts.of(measurement), 0.25
    family = two_exits(counts, link)
    assert family is not None
    weights = weights_of(measurement)
    latency, compute = all_of(family, weights)
    near, less = all_of(pairs(measurement), weights)
    d, found = measurement.layers, pairs(measurement).settings
    place, same = family.settings.index("exits 4, 6, k = 2, 3"), found.index("exits 4, 6, k = 2, 3")
    rank = measurement.rank
    hit = (rank[:, 3] <= 2) | (rank[:, 5] <= 3)
    assert latency[0, place] - near[0, same] == pytest.approx(link * hit.mean() / d)
    assert less[0, same] - compute[0, place] == pytest.approx(link * (5 - hit.mean()) / d)


def pairs(measurement: Measurement, guesses: Guesses | None = None) -> MethodSettings:
    family = two_exits(TokenCounts.of(measurement, guesses))
    assert family is not None
    return family


def ppd_of(measurement: Measurement, link_time: float = 0.0) -> PpdSettings:
    costs = LayerCosts()
    hits, tokens = measurement.hits_by_prompt(4), measurement.tokens_by_prompt()
    return PpdSettings(costs.grid(measurement.layers, 4, 2), costs, hits, tokens, link_time)


@pytest.mark.parametrize("link_time", [0.0, 0.75])
def test_ppd_is_the_closed_form_at_the_match_rates(
    measurement: Measurement, link_time: float
) -> None:
    space, weights = ppd_of(measurement, link_time), weights_of(measurement)
    d, grid, every = measurement.layers, space.grid, np.arange(space.size)
    found = [space.evaluate(rows, every) for rows in (weights[:1], weights)]
    assert space.size == (7 + 3) * 4, "at half of the layers and later, depth 2 changes nothing"
    for place in (0, 5, 20, 31, 39):
        e, k, depth = (int(x[place]) for x in (grid.exit_layer, grid.k, grid.depth))
        hit, at = measurement.rank[:, e - 1] <= k, min(e + link_time, d)
        for row, weight in enumerate(weights):
            w = weight[measurement.prompt_index]
            p = (w @ hit) / w.sum()
            expected = (
                latency_per_token(p, d, at, depth) / d,
                compute_per_token(p, d, at, k, depth) / d,
            )
            assert [x[row, place] for x in found[1]] == pytest.approx(expected)
            if row == 0:
                assert [x[0, place] for x in found[0]] == pytest.approx(expected)
        assert space.units[place] == grid.peak_units()[place]
        assert space.evaluate(weights, np.array([place]))[0][:, 0] == pytest.approx(
            found[1][0][:, place]
        )


def test_draws_are_those_of_every_setting(measurement: Measurement) -> None:
    space, weights = ppd_of(measurement), weights_of(measurement)
    n = (weights @ space.tokens)[:, None, None]
    counted = np.einsum("rp,pek->rek", weights, space.hits) / n
    for mine, slow in zip(
        space.draws(counted), space.evaluate(weights, np.arange(space.size)), strict=True
    ):
        assert mine == pytest.approx(slow)


def test_ppd_settings_are_those_that_were_counted(measurement: Measurement) -> None:
    calibration = quick_fit(measurement, k_max=4)
    some = replace(calibration, exit_layers=(2, 5), ks=(1, 3))
    for counts, exits, ks in ((calibration, range(1, 8), range(1, 5)), (some, (2, 5), (1, 3))):
        for depths in (1, 2):
            space = PpdSettings.of(counts, LayerCosts(), depths)
            grid = space.grid
            found = [*zip(grid.depth, grid.exit_layer, grid.k, strict=True)]
            every = product(range(1, depths + 1), exits, ks)
            assert found == [s for s in every if s[0] == 1 or s[1] < 4]
    alone = PpdSettings.of(calibration, LayerCosts())
    assert set(alone.grid.depth) == {1}
    assert alone.link_time == 0
    assert np.array_equal(alone.hits, calibration.hits)


def test_ppd_in_words(measurement: Measurement) -> None:
    method = ppd(ppd_of(measurement), "PPD, timed", "a note")
    assert (method.name, method.note) == ("PPD, timed", "a note")
    assert method.settings[:5] == [
        "exit 1, k = 1", "exit 1, k = 2", "exit 1, k = 3", "exit 1, k = 4", "exit 2, k = 1",
    ]  # fmt: skip


def test_settings_within_the_units(measurement: Measurement) -> None:
    method, weights = gated(TokenCounts.of(measurement)), weights_of(measurement)
    assert method.within(None) is method
    kept = method.within(3)
    places = [n for n, units in enumerate(method.units) if units <= 3]
    assert kept.settings == [method.settings[n] for n in places]
    assert 0 < kept.size < method.size
    assert kept.units.max() == 3, "all units may be used"
    for mine, whole in zip(all_of(kept, weights), all_of(method, weights), strict=True):
        assert np.array_equal(mine, whole[:, places])
    assert method.within(1).size == 0


def test_methods_beyond_the_units_are_named() -> None:
    least = {"PPD": 2, "PPD, two exits": 3}
    assert beyond(least, 1) == [f"{name}: it takes {n} units or more" for name, n in least.items()]
    assert beyond(least, 2) == ["PPD, two exits: it takes 3 units or more"]
    assert beyond(least, 3) == beyond(least, None) == []


@pytest.fixture(scope="module")
def sample(measurement: Measurement) -> PromptSample:
    return PromptSample(measurement.tokens_by_prompt(), 80, 3)


def test_the_best_of_a_method_as_a_row(measurement: Measurement, sample: PromptSample) -> None:
    space, rule = gated(TokenCounts.of(measurement)), Rule(max_compute=1.6)
    selection = Selection(sample, space)
    (method,) = best_methods(selection, [rule], "measured")
    latency, compute = (x[0] for x in all_of(space, sample.all_once))
    allowed = np.where(compute <= 1.6, latency, np.inf)
    place = int(np.argmin(allowed))
    assert method.setting == space.settings[place]
    assert (method.name, method.basis, method.note) == (space.name, "measured", space.note)
    assert method.units == space.units[place]
    assert (method.latency.value, method.compute.value) == (latency[place], compute[place])
    (held_out,) = selection.held_out([rule])
    assert held_out is not None
    both = best_methods(selection, [Rule(price=3), rule], "measured")
    assert both[1] == method, "whatever other rules there are"
    assert both[0] == best_methods(selection, [Rule(price=3)], "measured")[0] != method
    assert (method.held_out, method.held_out_compute) == (held_out.latency, held_out.compute)


def test_a_method_that_is_not_faster_and_one_without_settings(
    measurement: Measurement, sample: PromptSample
) -> None:
    space = gated(TokenCounts.of(measurement))
    (slow,) = best_methods(Selection(sample, space), [Rule(max_compute=0.5)], "measured")
    assert (slow.setting, slow.units, slow.note) == (NOTHING, 1, space.note)
    assert slow.held_out is not None
    for interval in (slow.latency, slow.compute, slow.held_out):
        assert (interval.value, interval.ci_low, interval.ci_high) == pytest.approx((1, 1, 1))
    assert best_methods(Selection(sample, space.within(1)), [Rule()], "measured") == []


def test_a_given_method_has_no_uncertainty() -> None:
    method = given("plain", "as it is", 0.5, 2.0, 3, "ideal", "a note")
    assert (method.name, method.setting, method.basis, method.note) == (
        "plain", "as it is", "ideal", "a note",
    )  # fmt: skip
    for interval, value in ((method.latency, 0.5), (method.compute, 2.0)):
        assert (interval.value, interval.ci_low, interval.ci_high) == (value,) * 3
        assert (interval.n_tokens, interval.n_prompts, interval.method) == (0, 0, GIVEN)
    assert (method.held_out, method.held_out_compute, method.units) == (None, None, 3)


def test_two_exits_need_time_for_the_later_one(measurement: Measurement) -> None:
    recorded = TokenCounts.of(measurement)
    for link_time, latest in ((0, 7), (0.5, 7), (1, 6)):
        family = two_exits(recorded, link_time)
        assert family is not None
        late = [int(words.split(",")[1]) for words in family.settings]
        assert max(late) == latest
    assert two_exits(recorded, link_time=measurement.layers) is None


def test_too_few_prompts_to_hold_some_out_still_give_a_row(measurement: Measurement) -> None:
    few = make_measurement(prompts=3)
    selection = Selection(PromptSample(few.tokens_by_prompt(), 40, 0), gated(TokenCounts.of(few)))
    assert selection.held_out([Rule()]) == [None]
    (method,) = best_methods(selection, [Rule()], "measured")
    assert method.held_out is method.held_out_compute is None


def test_on_all_prompts_once_times_are_the_measured_ones() -> None:
    calibration, timing = a_calibration(12), a_timing()
    costs = TimedCosts(timing)
    grid = costs.grid(30, 3, 1)
    space = PpdSettings(grid, costs, calibration.hits, calibration.tokens)
    latency, _ = space.evaluate(np.ones((1, 12), dtype=np.int64), np.arange(space.size))
    for place in (0, space.size // 2, space.size - 1):
        e, k = int(grid.exit_layer[place]), int(grid.k[place])
        p = calibration.hits[:, e - 1, k - 1].sum() / calibration.tokens.sum()
        expected = predicted_latency_s(timing, p, e, k) / predicted_plain_latency_s(timing)
        assert latency[0, place] == pytest.approx(expected)
