"""The best exit layer, k and depth for a measured model, with confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..checks import check_draws, positive_integer
from ..errors import InvalidInputError
from ..results.calibration import Calibration
from ..results.intervals import interval_of, resampled_rates
from .costs import CostModel, TimedCosts, cost_model
from .methods import NOTHING, MethodSettings, PpdSettings, best_method, beyond, gated, two_exits
from .outcomes import Choice, Decision, Method, Setting
from .selection import PromptSample, Rule, Selection, check_budget, check_price, chosen_share

if TYPE_CHECKING:
    from .._types import Floats

DEFAULT_BUDGETS = (1.5, 2.0, 3.0)


def optimize(
    calibration: Calibration,
    *,
    max_compute: float | Sequence[float] | None = None,
    price: float | Sequence[float] = (),
    max_depth: int = 1,
    max_units: int | None = None,
    ideal: bool = False,
) -> Decision:
    """Find the best setting under each compute budget and at each price by exhaustive search.

    With a timing in the calibration, latency is in seconds (depth 1, the timed k), else in layer
    times by the closed forms; both at the measured match rates, without the fitted match-rate
    curve. The best of many noisy settings looks better than it is (selection bias), so
    each selection is also cross-validated: repeated on 4/5 of the prompts and evaluated on the rest
    (`held_out_latency`). Where costs are in layers and the calibration has counts of the recorded
    tokens, the best gated and two-exit PPD are included.

    Args:
        calibration: from `fit`.
        max_compute: budgets, as multiples of plain decoding's layer executions; at least 1. By
            default 1.5, 2 and 3, or none if there is a price.
        price: the most extra layer executions that one layer time saved is worth; >= 0. The choice
            minimizes price x latency + compute.
        max_depth: depths 1...max_depth are tried, where costs are in layers; none beyond the exit
            layers, where deeper changes nothing.
        max_units: most processes at once, or devices where there are times; None for any number.
        ideal: count layers only, even if the calibration has a timing.

    Returns:
        A choice per budget and per price, and the latency-compute frontier.

    Raises:
        InvalidInputError: a budget below 1, a negative price, or a number that is not a positive
            integer.
    """
    rules = _rules(max_compute, price)
    deepest = min(positive_integer("max_depth", max_depth), calibration.layers - 1)
    settings = deepest * (calibration.layers - 1) * calibration.k_max
    check_draws(calibration.resamples, settings, "depths times exit layers times k")
    costs = cost_model(calibration, ideal=ideal)
    if max_depth > 1 and isinstance(costs, TimedCosts):
        raise InvalidInputError(
            f"max_depth must be 1 with {costs.name}; got {max_depth}; count layers only (ideal)"
        )
    prompts = PromptSample(calibration.tokens, calibration.resamples, calibration.seed)
    space = PpdSettings.of(calibration, costs, deepest)
    if max_units is not None:
        few = space.units <= positive_integer("max_units", max_units)
        space = replace(space, grid=space.grid.only(few))
    ppd = _PpdSelection(prompts, space)
    methods, left_out = _other_methods(calibration, costs, max_units)
    others = [Selection(prompts, method) for method in methods]
    plain_s, split = plain_and_split(costs)
    return Decision(
        model=calibration.model,
        layers=calibration.layers,
        n_tokens=int(calibration.tokens.sum()),
        n_prompts=len(calibration.tokens),
        settings=space.size,
        choices=tuple(_choice(ppd, rule, others) for rule in rules),
        frontier=tuple(ppd.setting(i) for i in _frontier(*ppd.ratios)),
        provenance=calibration.provenance,
        costs=costs.name,
        plain_latency_s=plain_s,
        split_latency=split,
        left_out=left_out,
    )


def _rules(
    max_compute: float | Sequence[float] | None, price: float | Sequence[float]
) -> list[Rule]:
    prices = _several(price)
    if max_compute is None:
        max_compute = () if prices else DEFAULT_BUDGETS
    budgets = [Rule(max_compute=check_budget(b)) for b in sorted(_several(max_compute))]
    return budgets + [Rule(price=check_price(p)) for p in prices]


def _several(value: float | Sequence[float]) -> list[float]:
    return [value] if isinstance(value, (int, float)) else list(value)


def _other_methods(
    calibration: Calibration, costs: CostModel, max_units: int | None
) -> tuple[list[MethodSettings], tuple[str, ...]]:
    """Gated and two-exit PPD, in layers; and the reasons for methods left out."""
    recorded, names = calibration.recorded, "gated and two-exit PPD"
    if recorded is None:
        return [], (f"{names}: there are no counts of recorded tokens at these layers",)
    if isinstance(costs, TimedCosts):
        return [], (f"{names}, which have no times: they are counted in layers (ideal)",)
    found = [method for method in (gated(recorded), two_exits(recorded)) if method is not None]
    within = [method.within(max_units) for method in found]
    least = {method.name: int(method.units.min()) for method in found}
    return [method for method in within if method.size], tuple(beyond(least, max_units))


def plain_and_split(costs: CostModel) -> tuple[float | None, float | None]:
    """Seconds per token of plain decoding, and tensor parallelism's ratio to it, or None."""
    if not isinstance(costs, TimedCosts):
        return None, None
    return costs.plain_s, costs.timing.terms["split_latency_s"].value / costs.plain_s


class _PpdSelection(Selection[PpdSettings]):
    """The selection of a PPD setting, with bootstrap draws of every setting."""

    def __init__(self, prompts: PromptSample, space: PpdSettings) -> None:
        super().__init__(prompts, space)
        rates = resampled_rates(space.hits, space.tokens, prompts.weights)
        self.rates = rates.astype(np.float32)  # half the memory, and faster
        self.draws = space.draws(self.rates)
        self.plain_s, _ = plain_and_split(space.costs)

    def setting(self, place: int) -> Setting:
        """One setting with its intervals."""
        prompts, grid = self.prompts, self.space.grid
        exit_layer, k = int(grid.exit_layer[place]), int(grid.k[place])
        p_correct = self.space.rates(prompts.all_once, np.array([place])).item()
        latency, compute = (
            interval_of(values[place], draws[:, place], prompts.tokens)
            for values, draws in zip(self.ratios, self.draws, strict=True)
        )
        return Setting(
            exit_layer=exit_layer,
            k=k,
            depth=int(grid.depth[place]),
            p_correct=interval_of(p_correct, self.rates[:, exit_layer - 1, k - 1], prompts.tokens),
            normalized_latency=latency,
            normalized_compute=compute,
            peak_units=int(self.space.units[place]),
            latency_per_token_s=None if self.plain_s is None else latency.scaled(self.plain_s),
        )


def _choice(ppd: _PpdSelection, rule: Rule, others: Iterable[Selection[MethodSettings]]) -> Choice:
    best = ppd.best(rule)
    share = chosen_share(rule, ppd.draws, best)
    methods = tuple(_better_than_plain(others, rule))
    choice = Choice(rule.max_compute, rule.price, None, None, share, None, others=methods)
    if best is None:
        return choice
    second, held_out, chosen = ppd.runner_up(rule, best), ppd.held_out(rule), ppd.setting(best)
    return replace(
        choice,
        setting=chosen,
        held_out_latency=None if held_out is None else held_out.latency,
        held_out_compute=None if held_out is None else held_out.compute,
        runner_up=None if second is None else ppd.setting(second),
        break_even=ppd.space.costs.break_even(chosen.exit_layer, chosen.k),
    )


def _better_than_plain(others: Iterable[Selection[MethodSettings]], rule: Rule) -> list[Method]:
    """The best setting of each other method that has one under the rule."""
    found = [best_method(selection, rule, "measured") for selection in others]
    return [method for method in found if method is not None and method.setting != NOTHING]


def _frontier(latency: Floats, compute: Floats) -> list[int]:
    """The Pareto frontier of latency and compute, by increasing compute."""
    frontier: list[int] = []
    least = 1.0
    for index in np.lexsort((latency, compute)):
        if latency[index] < least:
            least = float(latency[index])
            frontier.append(int(index))
    return frontier
