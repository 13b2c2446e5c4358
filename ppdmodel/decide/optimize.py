"""Which exit layer, k and depth are best for a measured model, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..checks import positive_integer, real_number
from ..errors import InvalidInputError
from ..fitting.cross_validation import held_out
from ..results.calibration import Calibration
from ..results.intervals import Interval, interval_of, prompt_weights, resampled_rates
from .costs import Costs, TimedCosts, costs_of_calibration
from .methods import Family, gated, two_exits
from .outcomes import Choice, Decision, Method, Setting
from .selection import NOTHING, Judge, Rule

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from .costs import Grid

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
    4/5 of the prompts and judged on the rest (`held_out_latency`). Where layers count and the
    calibration holds counts of the recorded tokens, the best gated and two-exit PPD stand beside.

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
    families, left_out = _other_policies(calibration, costs, max_units)
    return Decision(
        model=calibration.model,
        layers=calibration.layers,
        n_tokens=int(calibration.tokens.sum()),
        n_prompts=len(calibration.tokens),
        settings=grid.size,
        choices=tuple(_choice(judged, rule, families, max_units) for rule in rules),
        frontier=tuple(judged.setting(i) for i in _frontier(judged.latency, judged.compute)),
        provenance=calibration.provenance,
        costs=costs.name,
        plain_latency_s=plain_s,
        split_latency=split,
        left_out=left_out,
    )


def _other_policies(
    calibration: Calibration, costs: Costs, max_units: int | None
) -> tuple[list[Family], tuple[str, ...]]:
    """PPD behind a gate and with two exits, in layers; and why, where there are none."""
    recorded, names = calibration.recorded, "gated and two-exit PPD"
    if recorded is None:
        return [], (f"{names}: there are no counts of recorded tokens at these layers",)
    if isinstance(costs, TimedCosts):
        return [], (f"{names}, which have no times: they are counted in layers (ideal)",)
    found = [f for f in (gated(recorded), two_exits(recorded)) if f is not None]
    too_many = [f for f in found if max_units is not None and f.units.min() > max_units]
    words = tuple(f"{f.name}: it takes {f.units.min()} units or more" for f in too_many)
    return [f for f in found if f not in too_many], words


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
        self.compute_draws = costs.drawn_compute(grid, self.p_draws)
        self.units = costs.units(grid)
        self._on_some: dict[int, tuple[Floats, Floats]] = {}

    def on_some(self, fold: int, inside: np.ndarray) -> tuple[Floats, Floats]:
        """Latency and compute of every setting on the prompts that are not in a fold."""
        if fold not in self._on_some:  # the same for every rule
            hits, tokens = self.calibration.hits[inside], self.calibration.tokens[inside]
            p = self.grid.rates(hits.sum(axis=0) / tokens.sum())
            both = self.costs.latency(self.grid, p), self.costs.compute(self.grid, p)
            self._on_some[fold] = both
        return self._on_some[fold]

    def setting(self, index: int) -> Setting:
        """One setting with its intervals."""
        grid = self.grid
        pairs = (
            (self.p_correct, self.p_draws),
            (self.latency, self.latency_draws),
            (self.compute, self.compute_draws),
        )
        tokens = self.calibration.tokens
        p, latency, compute = (interval_of(v[index], d[:, index], tokens) for v, d in pairs)
        plain_s, _ = plain_and_split(self.costs)
        return Setting(
            exit_layer=int(grid.exit_layer[index]),
            k=int(grid.k[index]),
            depth=int(grid.depth[index]),
            p_correct=p,
            normalized_latency=latency,
            normalized_compute=compute,
            peak_units=int(self.units[index]),
            latency_per_token_s=None if plain_s is None else latency.scaled(plain_s),
        )


def _choice(
    judged: Judged, rule: Rule, families: Sequence[Family], max_units: int | None
) -> Choice:
    best = int(rule.best(judged.latency, judged.compute)) if judged.grid.size else -1
    drawn = rule.best(judged.latency_draws, judged.compute_draws) if judged.grid.size else None
    share = None if drawn is None else float(np.mean(drawn == best))
    others = tuple(_others(judged.calibration, rule, families, max_units))
    if best < 0:
        return Choice(rule.max_compute, rule.price, None, None, share, None, others=others)
    latency, compute = judged.latency.copy(), judged.compute.copy()
    latency[best] = compute[best] = np.inf
    second = int(rule.best(latency, compute))
    grid = judged.grid
    held_out_latency, held_out_compute = _held_out(judged, rule)
    return Choice(
        max_compute=rule.max_compute,
        price=rule.price,
        setting=judged.setting(best),
        held_out_latency=held_out_latency,
        chosen_share=share,
        runner_up=judged.setting(second) if second >= 0 else None,
        break_even=judged.costs.break_even(int(grid.exit_layer[best]), int(grid.k[best])),
        held_out_compute=held_out_compute,
        others=others,
    )


def _others(
    calibration: Calibration, rule: Rule, families: Sequence[Family], max_units: int | None
) -> Iterator[Method]:
    """The best setting of each other policy that has one within the budget and the units."""
    if not families:
        return
    judge = Judge(calibration.tokens, calibration.resamples, calibration.seed, rule, max_units)
    for family in families:
        method = judge.best(family, "measured")
        if method is not None and method.setting != NOTHING:
            yield method


def _held_out(judged: Judged, rule: Rule) -> tuple[Interval, Interval] | tuple[None, None]:
    """Latency and compute of settings chosen on some prompts, on the others; None: too few."""
    calibration, grid, costs = judged.calibration, judged.grid, judged.costs
    hits, tokens = calibration.hits, calibration.tokens

    def choose(fold: int, inside: np.ndarray) -> Grid:
        return grid.only(np.arange(grid.size) == int(rule.best(*judged.on_some(fold, inside))))

    def judge(one: Grid, weights: Ints) -> Floats:
        if not one.size:  # plain decoding
            return np.ones((len(weights), 2))
        rates = resampled_rates(hits[:, one.exit_layer - 1, one.k - 1], tokens, weights)
        if len(weights) == 1:
            both = costs.latency(one, rates), costs.compute(one, rates)
        else:
            both = costs.drawn_latency(one, rates), costs.drawn_compute(one, rates)
        return np.concatenate(both, axis=1)

    return held_out(tokens, judged.weights, calibration.seed, choose, judge)


def _frontier(latency: Floats, compute: Floats) -> list[int]:
    """Indices of the settings that no other beats in both, by increasing compute."""
    frontier: list[int] = []
    least = 1.0
    for index in np.lexsort((latency, compute)):
        if latency[index] < least:
            least = float(latency[index])
            frontier.append(int(index))
    return frontier
