"""Rules against brute force, and K-fold evaluation against selection fold by fold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.stats import t

from ppdmodel.decide.selection import (
    PromptSample,
    Rule,
    Selection,
    check_budget,
    check_price,
    chosen_share,
)
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.cross_validation import FOLDS, folds
from ppdmodel.results.intervals import CHOICE_METHOD, percentiles

RESAMPLES = 60


@dataclass(frozen=True)
class Table:
    """A search space whose settings have a latency and a compute on each prompt."""

    latency: np.ndarray
    compute: np.ndarray
    tokens: np.ndarray

    @property
    def size(self) -> int:
        return int(self.latency.shape[1])

    def evaluate(self, weights: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counted = weights * self.tokens
        n = counted.sum(axis=1)[:, None]
        return counted @ self.latency[:, at] / n, counted @ self.compute[:, at] / n


def table_of(prompts: int = 13, settings: int = 6, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    return Table(
        rng.uniform(0.5, 1.1, (prompts, settings)),
        rng.uniform(1.0, 3.0, (prompts, settings)),
        rng.integers(5, 30, prompts),
    )


def sample_of(table: Table, seed: int = 4) -> PromptSample:
    return PromptSample(table.tokens, RESAMPLES, seed)


def brute_force(rule: Rule, latency: np.ndarray, compute: np.ndarray) -> int | None:
    """The first of the best settings that beats plain decoding, one after another."""
    best, least = None, 1.0 if rule.price is None else rule.price + 1
    for place, (time, work) in enumerate(zip(latency, compute, strict=True)):
        if rule.price is not None:
            value = rule.price * time + work
        elif rule.max_compute is not None and work > rule.max_compute:
            continue
        else:
            value = time
        if value < least:
            best, least = place, value
    return best


RULES = [
    Rule(),
    *(Rule(max_compute=x) for x in (1.2, 2.0, 9.0)),
    *(Rule(price=x) for x in (0, 4.5)),
]


@pytest.mark.parametrize("rule", RULES)
def test_the_best_is_that_of_brute_force(rule: Rule) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        latency, compute = rng.uniform(0.6, 1.1, (4, 5)), rng.uniform(1, 3, (4, 5))
        expected = [brute_force(rule, *row) for row in zip(latency, compute, strict=True)]
        assert rule.best(latency, compute).tolist() == [-1 if x is None else x for x in expected]


def test_the_bounds_of_a_rule() -> None:
    one = np.array([0.9]), np.array([2.0])
    assert Rule(max_compute=2.0).best(*one) == 0, "the whole budget may be used"
    assert Rule(max_compute=1.999).best(*one) == -1
    assert Rule(max_compute=math.inf).best(np.array([0.9]), np.array([math.inf])) == -1
    assert Rule().best(np.array([1.0]), np.array([1.0])) == -1, "plain decoding is as fast"
    assert Rule(price=2.0).best(np.array([0.5]), np.array([2.0])) == -1, "and costs as much"
    assert Rule(price=2.0).best(np.array([0.5]), np.array([1.99])) == 0
    assert Rule(price=0.5).best(np.array([1.2]), np.array([0.8])) == 0, "compute alone may pay"
    assert Rule().best(np.array([0.7, 0.7]), np.array([3.0, 2.0])) == 0, "the first of equal ones"
    assert Rule().best(np.empty(0), np.empty(0)) == -1
    assert Rule().best(np.empty((3, 0)), np.empty((3, 0))).tolist() == [-1, -1, -1]


def test_the_objective_of_a_rule() -> None:
    latency, compute = np.array([0.5, 1.0, 0.75]), np.array([3.0, 1.0, 2.0])
    assert Rule(price=4).objective(latency, compute).tolist() == [5.0, 5.0, 5.0]
    assert Rule(max_compute=2).objective(latency, compute).tolist() == [math.inf, math.inf, 0.75]


@pytest.mark.parametrize("rule", RULES)
def test_the_runner_up_is_the_best_without_the_best(rule: Rule) -> None:
    seen = set()
    for seed in range(12):
        table = table_of(seed=seed)
        selection = Selection(sample_of(table), table)
        latency, compute = selection.ratios
        best = selection.best(rule)
        assert best == brute_force(rule, latency, compute)
        if best is None:
            continue
        latency, compute = latency.copy(), compute.copy()
        latency[best] = compute[best] = math.inf
        second = brute_force(rule, latency, compute)
        assert selection.runner_up(rule, best) == second
        seen.add(second)
    if rule.price != 0 and rule.max_compute != 1.2:
        assert 0 in seen, "the first setting may come second"


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_each_resample_chooses_again(rule: Rule, second: bool) -> None:
    """By hand: how much better its own choice looks on a resample than on all prompts."""
    table = table_of(seed=2)
    table = replace(table, compute=table.compute / 2.4)
    sample = sample_of(table)
    selection = Selection(sample, table)
    latency, compute = selection.ratios
    best = brute_force(rule, latency, compute)
    assert best is not None
    place = selection.runner_up(rule, best) if second else best
    assert place is not None
    found = selection.evaluation(rule, place, second=second)
    share = table.tokens / table.tokens.sum()
    assert found.values[0] == pytest.approx(share @ table.latency[:, place])
    assert found.values[1] == pytest.approx(share @ table.compute[:, place])
    others = set()
    for drawn, draws in zip(sample.weights, found.draws, strict=True):
        mine = drawn * table.tokens / (drawn * table.tokens).sum()
        its = mine @ table.latency, mine @ table.compute
        mine_best = brute_force(rule, *its)
        if second and mine_best is not None:
            its[0][mine_best] = its[1][mine_best] = 1e9
            mine_best = brute_force(rule, *its)
        mine_best = place if mine_best is None else mine_best
        others.add(mine_best)
        off = [x[mine_best] - y[mine_best] for x, y in zip(its, (latency, compute), strict=True)]
        assert draws == pytest.approx(found.values - np.array(off))
    assert len(others) > 1
    for interval, column, value in zip(
        (found.latency, found.compute), found.draws.T, found.values, strict=True
    ):
        reach = t.ppf(0.975, 12) * column.std() * math.sqrt(13 / 12)
        assert interval.ci_low == pytest.approx(min(value, column.mean() - reach))
        assert interval.ci_high == pytest.approx(max(value, column.mean() + reach))
        assert (interval.n_prompts, interval.n_tokens) == (13, table.tokens.sum())
        assert interval.method == CHOICE_METHOD


def test_the_interval_of_a_choice_holds_where_that_of_a_fixed_setting_does_not() -> None:
    """Of thirty settings that are all alike, the best looks better than it is."""
    rng, held, fixed, out = np.random.default_rng(3), 0, 0, 0
    for seed in range(80):
        table = Table(rng.normal(0.8, 0.1, (14, 30)), np.ones((14, 30)), np.full(14, 10))
        selection = Selection(PromptSample(table.tokens, 200, seed), table)
        best = selection.best(Rule())
        assert best is not None
        found = selection.evaluation(Rule(), best).latency
        (held_out,) = selection.held_out([Rule()])
        assert held_out is not None
        low, high = percentiles(selection.draws[0][:, best])
        held += found.ci_low <= 0.8 <= found.ci_high
        fixed += bool(low <= 0.8 <= high)
        out += held_out.latency.ci_low <= 0.8 <= held_out.latency.ci_high
    assert fixed / 80 < 0.6
    assert held / 80 > 0.85
    assert out / 80 > 0.9


def test_the_order_of_the_prompts_and_of_the_settings_is_of_no_account() -> None:
    """But for the draws, which are others."""
    table = table_of(prompts=40, seed=5)
    turned = Table(table.latency[::-1, ::-1], table.compute[::-1, ::-1], table.tokens[::-1])
    ends = []
    for one in (table, turned):
        selection = Selection(PromptSample(one.tokens, 4000, 1), one)
        best = selection.best(Rule())
        assert best is not None
        found = selection.evaluation(Rule(), best).latency
        ends.append((found.value, found.ci_low, found.ci_high))
    assert ends[0] == pytest.approx(ends[1], abs=0.003)


@pytest.mark.parametrize("rule", RULES)
def test_held_out_is_selected_on_the_other_folds(rule: Rule) -> None:
    table = table_of()
    sample = sample_of(table)
    every = Selection(sample, table).held_out(RULES)
    (found,) = Selection(sample, table).held_out([rule])
    assert found is not None
    among = every[RULES.index(rule)]
    assert among is not None
    assert np.array_equal(among.draws, found.draws), "whatever other rules there are"
    assert found.draws.mean(axis=0) == pytest.approx(found.values)
    fold, total = folds(13, sample.seed), np.zeros(2)
    for number in range(FOLDS):
        training = fold != number
        share = table.tokens[training] / table.tokens[training].sum()
        best = brute_force(rule, share @ table.latency[training], share @ table.compute[training])
        for prompt in np.flatnonzero(~training):
            of_it = (1.0, 1.0)
            if best is not None:
                of_it = (table.latency[prompt, best], table.compute[prompt, best])
            total += table.tokens[prompt] * np.array(of_it)
    expected = total / table.tokens.sum()
    assert (found.latency.value, found.compute.value) == pytest.approx(tuple(expected))


def test_without_a_rule_there_is_nothing_to_evaluate() -> None:
    table = table_of()
    assert Selection(sample_of(table), table).held_out([]) == []


def test_too_few_prompts_for_folds() -> None:
    few, enough = (table_of(prompts=n) for n in (2 * FOLDS - 1, 2 * FOLDS))
    assert Selection(sample_of(few), few).held_out([Rule()]) == [None]
    assert Selection(sample_of(enough), enough).held_out([Rule()]) != [None]


def test_a_space_that_prompts_make_is_made_anew_for_each_fold() -> None:
    """On a fold that which its training prompts made is evaluated, once for all rules."""
    table, calls = table_of(), []

    def refit(fold: int, training: np.ndarray) -> Table:
        calls.append((fold, training.tolist()))
        return replace(table, latency=np.full_like(table.latency, 0.1 * (fold + 1)))

    sample = sample_of(table)
    selection = Selection(sample, table, refit)
    found = selection.held_out([Rule(), Rule(max_compute=9)])
    fold = folds(13, sample.seed)
    assert calls == [(n, (fold != n).tolist()) for n in range(FOLDS)]
    expected = (table.tokens * 0.1 * (fold + 1)).sum() / table.tokens.sum()
    for one in found:
        assert one is not None
        assert one.latency.value == pytest.approx(expected)
    assert selection.ratios[0] == pytest.approx(
        table.tokens / table.tokens.sum() @ table.latency
    ), "in sample, the space of all prompts"


def test_the_share_of_resamples_that_select_the_same() -> None:
    latency = np.array([[0.8, 0.9], [0.9, 0.8], [0.7, 0.9], [1.1, 1.2]])
    draws = latency, np.ones((4, 2))
    assert chosen_share(Rule(), draws, 0) == 0.5
    assert chosen_share(Rule(), draws, 1) == 0.25
    assert chosen_share(Rule(), draws, None) == 0.25
    assert chosen_share(Rule(), (np.ones((4, 0)), np.ones((4, 0))), None) is None


def test_budgets_and_prices_have_bounds() -> None:
    assert (check_budget(1), check_price(0), check_price(1e6)) == (1.0, 0.0, 1e6)
    for budget in (0.999, math.nan):
        with pytest.raises(InvalidInputError, match="max_compute must be at least 1; got"):
            check_budget(budget)
    with pytest.raises(InvalidInputError, match=r"price must be at most 1e\+06; got 1e\+07"):
        check_price(1e7)
    for price in (-0.1, math.nan):
        with pytest.raises(InvalidInputError, match="price must be"):
            check_price(price)
