"""Threshold policies and fixed settings counted token by token, and what reading costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel import threshold
from ppdmodel.decide.selection import Rule
from ppdmodel.decide.threshold_policies import Policies, PolicySettings, Reading, _eliminated
from ppdmodel.errors import InvalidInputError
from tests.decide.test_threshold_rule import LAYERS, PROMPTS, made_up
from tests.pipeline.test_prediction_error import a_timing

TOKENS = 20
UNCHANGED = dict.fromkeys(range(3, 6), (1.0, 0.0))
ALL = np.ones(PROMPTS, dtype=bool)
ONCE = ALL[None].astype(np.int64)


def policies_of(exit_cost: float = 0.0, head_cost: float = 0.0) -> Policies:
    return Policies(*made_up(tokens=TOKENS), Reading(exit_cost, head_cost))


def all_of(space: PolicySettings, weights: np.ndarray = ONCE) -> tuple[np.ndarray, np.ndarray]:
    return space.evaluate(weights, np.arange(space.size))


def test_every_fixed_setting_by_hand() -> None:
    measurement, _ = made_up(tokens=TOKENS)
    space = policies_of().fixed()
    weights = np.random.default_rng(3).integers(0, 4, (3, PROMPTS))
    latency, compute = all_of(space, weights)
    settings = [(e, k) for e in (3, 4, 5) for k in range(1, 9)]
    assert list(zip(space.exits[0], space.k[0], strict=True)) == settings
    for place, (e, k) in enumerate(settings):
        hit = measurement.rank[:, e - 1] <= k
        for row, weight in enumerate(weights):
            w = weight[measurement.prompt_index]
            saved = (w @ hit) / w.sum() * (LAYERS - e) / LAYERS
            wasted = (w @ (k - hit)) / w.sum() * (LAYERS - e) / LAYERS
            assert latency[row, place] == pytest.approx(1 - saved)
            assert compute[row, place] == pytest.approx(1 + wasted)


@pytest.mark.parametrize("price", [0.7, 3.0])
def test_the_threshold_rule_by_hand(price: float) -> None:
    """Calibrated probabilities of at least 1 / (1 + price) start, where scale and shift differ."""
    measurement, guesses = made_up(tokens=TOKENS)
    fitted = {3: (1.0, 0.0), 4: (0.5, 0.3), 5: (1.4, -0.2)}
    space = policies_of().by_threshold(price, fitted)
    latency, compute = (values[0] for values in all_of(space))
    assert space.exits[0].tolist() == [3, 4, 5]
    for place, (e, (scale, shift)) in enumerate(fitted.items()):
        odds = guesses.probs[:, e - 1].astype(float)
        odds = (odds / (1 - odds)) ** scale * np.exp(shift)
        q = odds / (1 + odds)
        q /= np.maximum(q.sum(axis=1), 1)[:, None]
        started = (q >= threshold(price)).sum(axis=1)
        hit = measurement.rank[:, e - 1] <= started
        left = (LAYERS - e) / LAYERS
        assert latency[place] == pytest.approx(1 - hit.mean() * left)
        assert compute[place] == pytest.approx(1 + (started - hit).mean() * left)


def test_what_is_certain_starts_at_any_price() -> None:
    """At no price the threshold is 1."""
    measurement, guesses = made_up(tokens=TOKENS)
    certain = replace(guesses, probs=np.where(np.arange(8) == 0, 1, 0 * guesses.probs))
    policies = Policies(measurement, certain)
    assert policies.reading == Reading(0, 0)
    space = policies.by_threshold(0, UNCHANGED)
    assert np.array_equal(space.started[0], np.tile(policies.tokens[:, None], 3))


def test_two_fixed_exits_start_a_shared_guess_once() -> None:
    measurement, guesses = made_up(tokens=TOKENS)
    space = policies_of().two_fixed()
    names = [*zip(*space.exits, *space.k, strict=True)]
    latency, compute = (values[0] for values in all_of(space))
    for early, late, a, b in ((3, 4, 2, 3), (3, 5, 1, 5), (4, 5, 5, 1)):
        first = measurement.rank[:, early - 1] <= a
        second = ~first & (measurement.rank[:, late - 1] <= b)
        new = np.array(
            [
                len({*ids[late - 1, :b].tolist()} - {*ids[early - 1, :a].tolist()})
                for ids in guesses.ids
            ]
        )
        place = names.index((early, late, a, b))
        takes = LAYERS - first * (LAYERS - early) - second * (LAYERS - late)
        costs = LAYERS + (a - first) * (LAYERS - early) + (new - second) * (LAYERS - late)
        assert latency[place] == pytest.approx(takes.mean() / LAYERS)
        assert compute[place] == pytest.approx(costs.mean() / LAYERS)


def test_reading_counts_once_for_each_exit_that_is_read() -> None:
    """With a head that takes as long, delays cancel: what is saved is the same, and costs more."""
    free, paid = policies_of(), policies_of(0.5, 0.5)
    for name, exits in (("fixed", 1), ("two_fixed", 2)):
        layers = [x * LAYERS for x in all_of(getattr(free, name)())]
        latency, compute = (x * (LAYERS + 0.5) for x in all_of(getattr(paid, name)()))
        assert latency == pytest.approx(layers[0] + 0.5)
        assert compute == pytest.approx(layers[1] + 0.5 + 0.5 * exits)


def test_a_slower_reading_than_the_heads_delays_what_it_starts() -> None:
    """Guesses of exit e start a layer later: as those of exit e + 1 of the same match rate."""
    measurement, _ = made_up(tokens=TOKENS)
    space, pairs = policies_of(1.5, 0.5).fixed(), policies_of(1.5, 0.5).two_fixed()
    assert set(space.exits[0]) == {3, 4}, "what starts at the last layer saves nothing"
    assert {*zip(*pairs.exits, strict=True)} == {(3, 4)}
    latency, compute = (values[0] * (LAYERS + 0.5) for values in all_of(space))
    for place, (e, k) in enumerate(zip(space.exits[0], space.k[0], strict=True)):
        p = (measurement.rank[:, e - 1] <= k).mean()
        assert latency[place] == pytest.approx(LAYERS + 0.5 - p * (LAYERS - e - 1))
        assert compute[place] == pytest.approx(LAYERS + 2 + (k - p) * (LAYERS - e - 1))


def test_without_an_exit_it_is_plain_decoding() -> None:
    space, thresholds = policies_of(30.0, 30.0).several(2.0, UNCHANGED, ALL)
    assert (space.exits, thresholds) == ([], (np.inf,) * 3)
    latency, compute = all_of(space, np.ones((4, PROMPTS), dtype=np.int64))
    assert latency.tolist() == compute.tolist() == [[1.0]] * 4


def test_exits_are_read_while_that_lowers_the_objective() -> None:
    """Against all subsets of exits: none that backward elimination passes by is much better."""
    policies, rule = policies_of(0.15, 0.15), Rule(price=6.0)
    q = policies.stopping.probabilities(UNCHANGED)

    def objective(read: list[int]) -> float:
        least = policies.stopping.training(q, ALL).thresholds(6.0, read)
        space = policies._starting(q, least, read)
        return float(rule.objective(*all_of(space))[0, 0])

    space, thresholds = policies.several(6.0, UNCHANGED, ALL)
    read = [j for j, least in enumerate(thresholds) if np.isfinite(least)]
    assert [int(e[0]) for e in space.exits] == [3 + j for j in read]
    assert 0 < len(read) < 3
    found = objective(read)
    assert found < objective([0, 1, 2])
    assert all(found <= objective([j for j in read if j != out]) for out in read)
    everywhere, _ = policies_of().several(6.0, UNCHANGED, ALL)
    assert [int(e[0]) for e in everywhere.exits] == [3, 4, 5], "free readings are all taken"


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ((5, -3, 2), [1]),
        ((5, 0, -2), [1, 2]),  # what lowers nothing stays
        ((-1, 0), [0, 1]),
        ((1, 1), []),
    ],
)
def test_what_costs_most_is_eliminated_first(costs: tuple[int, ...], kept: list[int]) -> None:
    seen = []

    def objective(some: list[int]) -> float:
        seen.append(some)
        return sum(costs[j] for j in some)

    assert _eliminated([*range(len(costs))], objective) == kept
    assert len(seen) == len({*map(tuple, seen)}), "each subset is evaluated once"


def test_costs_of_reading_from_a_timing() -> None:
    timing = a_timing()
    reading = Reading.of_timing(timing)
    terms = timing.terms
    assert reading.head_cost == terms["head_time_s"].value / terms["layer_time_s"].value
    ratios = [
        read.value / layer.value
        for each in timing.by_k.values()
        for read, layer in zip(each["exit_time_s"], each["busy_layer_time_s"], strict=True)
    ]
    assert min(ratios) <= reading.exit_cost <= max(ratios)
    assert reading.delay == reading.exit_cost - reading.head_cost
    assert list(Reading(0, 2).exits(10)) == [6, 7, 8, 9], "none is past its exit at the verdict"
    assert list(Reading(2, 0).exits(10)) == [5, 6, 7], "guesses come before the verdict"
    assert list(Reading(2, 0).exits(9)) == [5, 6], "the first of the second half stays"
    assert list(Reading(4, 0).exits(10)) == [5], "one is enough"
    for exit_cost, head_cost in ((6.0, 0.0), (0.0, 6.0)):
        with pytest.raises(InvalidInputError, match="must leave time for its guesses"):
            Reading(exit_cost, head_cost).exits(6)
