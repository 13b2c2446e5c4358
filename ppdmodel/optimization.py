"""Which exit layer, k and depth are best for a measured model, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .answers import Choice, Decision, Setting
from .checks import positive_integer, real_number
from .costing import Costs, TimedCosts, costs_of_calibration
from .crossfit import cross_fitted
from .errors import InvalidInputError
from .judging import Rule
from .resample import METHOD, percentiles, prompt_weights, resampled_rates
from .results import Calibration, Interval

if TYPE_CHECKING:
    from .costing import Grid
    from .results import Floats, Ints

DEFAULT_BUDGETS = (1.5, 2.0, 3.0)
MOST_PRICE = 1e6


def optimize(
    calibration: Calibration,
    *,
    max_compute: float | Sequence[float] | None = None,
    price: float | Sequence[float] = (),
    max_depth: int = 1,
    max_units: int | None = None,
    ideal: bool = False,
) -> Decision:
    """Find the best setting under each compute budget and at each price, by trying all of them.

    With a timing in the calibration, latency is in its seconds (depth 1, the k that were timed),
    else in layer times by the closed forms; both at the measured match rates, without the fitted
    surface. The best of many noisy settings looks better than it is, so each choice is also made on
    4/5 of the prompts and judged on the rest (`held_out_latency`).

    Args:
        calibration: from `fit`.
        max_compute: budgets, as multiples of plain decoding's layer executions; at least 1. By
            default 1.5, 2 and 3, or none if there is a price.
        price: the most extra layer executions that one layer time saved is worth; >= 0. The choice
            is what makes price x latency + compute least.
        max_depth: depths 1...max_depth are tried, where only layers are counted.
        max_units: most processes at once, or devices where there are times; None for any number.
        ideal: count layers although there are times.

    Returns:
        A choice per budget and per price, and the latency-compute frontier.

    Raises:
        InvalidInputError: a budget below 1, a negative price, or a number that is not a positive
            integer.
    """
    rules = _rules(max_compute, price)
    positive_integer("max_depth", max_depth)
    costs = costs_of_calibration(calibration, ideal=ideal)
    if max_depth > 1 and isinstance(costs, TimedCosts):
        raise InvalidInputError(
            f"max_depth must be 1 with {costs.name}; got {max_depth}; count layers only (ideal)"
        )
    grid = costs.grid(calibration.layers, calibration.k_max, max_depth)
    grid = grid.only(calibration.has(grid.exit_layer, grid.k))
    if max_units is not None:
        grid = grid.only(costs.units(grid) <= positive_integer("max_units", max_units))
    judged = Judged(grid, calibration, costs)
    plain_s, split = plain_and_split(costs)
    return Decision(
        model=calibration.model,
        layers=calibration.layers,
        n_tokens=int(calibration.tokens.sum()),
        n_prompts=len(calibration.tokens),
        settings=grid.size,
        choices=tuple(_choice(judged, rule) for rule in rules),
        frontier=tuple(judged.setting(i) for i in _frontier(judged.latency, judged.compute)),
        provenance=calibration.provenance,
        costs=costs.name,
        plain_latency_s=plain_s,
        split_latency=split,
    )


def plain_and_split(costs: Costs) -> tuple[float | None, float | None]:
    """Seconds of plain decoding, and the ratio to it of all units on each token; None untimed."""
    if not isinstance(costs, TimedCosts):
        return None, None
    return costs.plain_s, costs.timing.terms["split_latency_s"].value / costs.plain_s


def _rules(
    max_compute: float | Sequence[float] | None, price: float | Sequence[float]
) -> list[Rule]:
    prices = _several(price)
    if max_compute is None:
        max_compute = () if prices else DEFAULT_BUDGETS
    budgets = sorted(_several(max_compute))
    for budget in budgets:
        if not budget >= 1:
            raise InvalidInputError(
                f"max_compute must be at least 1; got {budget}; 2 allows twice the layers"
            )
    for value in prices:
        check_price(value)
    return [Rule(max_compute=float(b)) for b in budgets] + [Rule(price=float(p)) for p in prices]


def check_price(value: float) -> None:
    """Raise `InvalidInputError` unless a price is a number from 0 to a million."""
    if real_number("price", value, 0, "give layer executions per layer time") > MOST_PRICE:
        raise InvalidInputError(
            f"price must be at most {MOST_PRICE:g}; got {value:g}; at most latency alone counts"
        )


def _several(value: float | Sequence[float]) -> list[float]:
    return [value] if isinstance(value, (int, float)) else list(value)


class Judged:
    """Point estimates and bootstrap draws of every setting of a grid."""

    def __init__(self, grid: Grid, calibration: Calibration, costs: Costs) -> None:
        self.grid, self.calibration, self.costs = grid, calibration, costs
        hits, tokens = calibration.hits, calibration.tokens
        self.p_correct = grid.rates(hits.sum(axis=0) / tokens.sum())
        self.latency = costs.latency(grid, self.p_correct)
        self.compute = costs.compute(grid, self.p_correct)
        self.weights = prompt_weights(len(tokens), calibration.resamples, calibration.seed)
        drawn = resampled_rates(hits, tokens, self.weights)
        self.p_draws = grid.rates(drawn.astype(np.float32))  # half the memory, and faster
        self.latency_draws = costs.drawn_latency(grid, self.p_draws)
        self.compute_draws = costs.compute(grid, self.p_draws)

    def interval(self, value: float, draws: Floats) -> Interval:
        """A number with the interval of its draws."""
        low, high = percentiles(draws)
        tokens = self.calibration.tokens
        return Interval(value, float(low), float(high), int(tokens.sum()), len(tokens), METHOD)

    def setting(self, index: int) -> Setting:
        """One setting with its intervals."""
        grid = self.grid
        pairs = (
            (self.p_correct, self.p_draws),
            (self.latency, self.latency_draws),
            (self.compute, self.compute_draws),
        )
        p, latency, compute = (self.interval(float(v[index]), d[:, index]) for v, d in pairs)
        plain_s, _ = plain_and_split(self.costs)
        return Setting(
            exit_layer=int(grid.exit_layer[index]),
            k=int(grid.k[index]),
            depth=int(grid.depth[index]),
            p_correct=p,
            normalized_latency=latency,
            normalized_compute=compute,
            peak_units=int(self.costs.units(grid)[index]),
            latency_per_token_s=None if plain_s is None else latency.scaled(plain_s),
        )


def _choice(judged: Judged, rule: Rule) -> Choice:
    best = int(rule.best(judged.latency, judged.compute)) if judged.grid.size else -1
    drawn = rule.best(judged.latency_draws, judged.compute_draws) if judged.grid.size else None
    share = None if drawn is None else float(np.mean(drawn == best))
    if best < 0:
        return Choice(rule.max_compute, rule.price, None, None, share, None)
    others, theirs = judged.latency.copy(), judged.compute.copy()
    others[best] = theirs[best] = np.inf
    second = int(rule.best(others, theirs))
    grid = judged.grid
    return Choice(
        max_compute=rule.max_compute,
        price=rule.price,
        setting=judged.setting(best),
        held_out_latency=_held_out(judged, rule),
        chosen_share=share,
        runner_up=judged.setting(second) if second >= 0 else None,
        break_even=judged.costs.break_even(int(grid.exit_layer[best]), int(grid.k[best])),
    )


def _held_out(judged: Judged, rule: Rule) -> Interval | None:
    """Latency of settings chosen on some prompts, on the others; None with too few prompts."""
    calibration, grid, costs = judged.calibration, judged.grid, judged.costs
    hits, tokens = calibration.hits, calibration.tokens

    def choose(_: int, inside: np.ndarray) -> Grid:
        p = grid.rates(resampled_rates(hits, tokens, inside[None].astype(np.int64)))
        best = int(rule.best(costs.latency(grid, p), costs.compute(grid, p))[0])
        return grid.only(np.arange(grid.size) == best)

    def judge(one: Grid, weights: Ints) -> Floats:
        if not one.size:  # plain decoding
            return np.ones(len(weights))
        rates = one.rates(resampled_rates(hits, tokens, weights))
        latency = costs.latency if len(weights) == 1 else costs.drawn_latency
        return latency(one, rates)[:, 0]

    found = cross_fitted(tokens, judged.weights, calibration.seed, choose, judge)
    return None if found is None else judged.interval(float(found[0]), found[1])


def _frontier(latency: Floats, compute: Floats) -> list[int]:
    """Indices of the settings that no other beats in both, by increasing compute."""
    frontier: list[int] = []
    least = 1.0
    for index in np.lexsort((latency, compute)):
        if latency[index] < least:
            least = float(latency[index])
            frontier.append(int(index))
    return frontier
