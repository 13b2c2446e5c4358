"""The best exit layer, k and depth for a measured model, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..checks import check_draws, positive_integer
from ..errors import InvalidInputError
from ..progress import OnProgress, no_report, parts_of
from ..results.calibration import Calibration
from ..results.intervals import rate_of, resampled_rates
from .costs import CostModel, TimedCosts, cost_model
from .methods import NOTHING, MethodSettings, PpdSettings, best_methods, beyond, gated, two_exits
from .outcomes import Choice, Decision, Method, Setting
from .selection import (
    Evaluation,
    PromptSample,
    Ratios,
    Rule,
    Selection,
    check_budget,
    check_price,
    chosen_share,
)

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from .selection import SearchSpace

DEFAULT_BUDGETS = (1.5, 2.0, 3.0)


def optimize(
    calibration: Calibration,
    *,
    max_compute: float | Sequence[float] | None = None,
    price: float | Sequence[float] = (),
    max_depth: int = 1,
    max_units: int | None = None,
    ideal: bool = False,
    on_progress: OnProgress = no_report,
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
        on_progress: called with the progress.

    Returns:
        A choice per budget and per price, and the latency-compute frontier.

    Raises:
        InvalidInputError: a budget below 1, a negative price, or a number that is not a positive
            integer.
    """
    rules = _rules(max_compute, price)
    deepest = min(positive_integer("max_depth", max_depth), calibration.layers - 1)
    costs = cost_model(calibration, ideal=ideal)
    if max_depth > 1 and isinstance(costs, TimedCosts):
        raise InvalidInputError(
            f"max_depth must be 1 with {costs.name}; got {max_depth}; count layers only (ideal)"
        )
    prompts = PromptSample(calibration.tokens, calibration.resamples, calibration.seed)
    space = PpdSettings.of(calibration, costs, deepest)
    check_draws(calibration.resamples, space.size, "depths times exit layers times k")
    if max_units is not None:
        few = space.units <= positive_integer("max_units", max_units)
        space = replace(space, grid=space.grid.only(few))
    methods, left_out = _other_methods(calibration, costs, max_units)
    reports = parts_of(on_progress, len(methods) + 1)
    others = [
        best_methods(Selection(prompts, method, on_progress=next(reports)), rules, "measured")
        for method in methods
    ]
    ppd = _PpdSelection(prompts, space, on_progress=next(reports))
    plain_s, split = plain_and_split(costs)
    return Decision(
        model=calibration.model,
        layers=calibration.layers,
        n_tokens=int(calibration.tokens.sum()),
        n_prompts=len(calibration.tokens),
        settings=space.size,
        choices=tuple(
            _choice(ppd, rule, held, found)
            for rule, held, *found in zip(rules, ppd.held_out(rules), *others, strict=True)
        ),
        frontier=tuple(_on_frontier(ppd, place) for place in _frontier(*ppd.ratios)),
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
    """The selection of a PPD setting."""

    def _of_all(self, space: SearchSpace, weights: Ints | Floats) -> Ratios:
        """Those of resamples in single precision: half the memory, and faster."""
        if len(weights) == 1:
            return super()._of_all(space, weights)
        mine = self.space
        rates = resampled_rates(mine.hits, mine.tokens, weights)
        return mine.draws(rates.astype(np.float32))

    def setting(self, rule: Rule, place: int, *, second: bool = False) -> Setting:
        """The setting that a rule selects, or its runner-up, with intervals."""
        space, found = self.space, self.evaluation(rule, place, second=second)
        exit_layer, k = int(space.grid.exit_layer[place]), int(space.grid.k[place])
        plain_s, _ = plain_and_split(space.costs)
        return Setting(
            exit_layer=exit_layer,
            k=k,
            depth=int(space.grid.depth[place]),
            p_correct=rate_of(space.hits[:, exit_layer - 1, k - 1], space.tokens),
            normalized_latency=found.latency,
            normalized_compute=found.compute,
            peak_units=int(space.units[place]),
            latency_per_token_s=None if plain_s is None else found.latency.scaled(plain_s),
        )


def _choice(
    ppd: _PpdSelection, rule: Rule, held_out: Evaluation | None, others: Sequence[Method]
) -> Choice:
    best = ppd.best(rule)
    share = chosen_share(rule, ppd.draws, best)
    methods = tuple(method for method in others if method.setting != NOTHING)
    choice = Choice(rule.max_compute, rule.price, None, None, share, None, others=methods)
    if best is None:
        return choice
    second, chosen = ppd.runner_up(rule, best), ppd.setting(rule, best)
    return replace(
        choice,
        setting=chosen,
        held_out_latency=None if held_out is None else held_out.latency,
        held_out_compute=None if held_out is None else held_out.compute,
        runner_up=None if second is None else ppd.setting(rule, second, second=True),
        break_even=ppd.space.costs.break_even(chosen.exit_layer, chosen.k),
    )


def _on_frontier(ppd: _PpdSelection, place: int) -> Setting:
    """A setting of the frontier: the fastest within its own compute."""
    return ppd.setting(Rule(max_compute=float(ppd.ratios[1][place])), place)


def _frontier(latency: Floats, compute: Floats) -> list[int]:
    """The Pareto frontier of latency and compute, by increasing compute."""
    frontier: list[int] = []
    least = 1.0
    for index in np.lexsort((latency, compute)):
        if latency[index] < least:
            least = float(latency[index])
            frontier.append(int(index))
    return frontier
