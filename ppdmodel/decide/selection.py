"""The best setting of a method under a rule, with intervals, and on prompts that did not choose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..fitting.cross_validation import held_out
from ..results.intervals import Interval, interval_of, prompt_weights
from .outcomes import Method

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from .methods import Family

GIVEN = "given, not measured"
#: the setting of a method that has none within the budget
NOTHING = "none is faster than plain decoding"


@dataclass(frozen=True)
class Rule:
    """What makes a setting the best: the least latency within a budget, or the least of a sum."""

    max_compute: float | None = None
    price: float | None = None

    def best(self, latency: Floats, compute: Floats) -> Ints:
        """Index of the best along the last axis; -1 where plain decoding is as good."""
        if self.price is None:
            within = True if self.max_compute is None else compute <= min(self.max_compute, 1e30)
            allowed = np.where(within & (latency < 1), latency, np.inf)
            limit = math.inf
        else:
            allowed = self.price * latency + compute
            limit = self.price + 1
        best = np.argmin(allowed, axis=-1)
        return np.where(allowed.min(axis=-1) < limit, best, -1)


class Judge:
    """Finds the best setting of a family, with intervals, also on prompts that did not choose."""

    def __init__(
        self, tokens: Ints, resamples: int, seed: int, rule: Rule, max_units: int | None
    ) -> None:
        self.rule, self.max_units, self.tokens, self.seed = rule, max_units, tokens, seed
        self.everyone = np.ones((1, len(tokens)), dtype=np.int64)
        self.weights = prompt_weights(len(tokens), resamples, seed)

    def best(self, family: Family, basis: str) -> Method | None:
        """The best setting; None where the family has nothing within the units."""
        within = np.ones(len(family.units), dtype=bool)
        if self.max_units is not None:
            within = family.units <= self.max_units
        places = np.flatnonzero(within)
        if not len(places):
            return None
        best = self._chosen(family, places, self.everyone)
        outside, outside_compute = self._held_out(family, places)
        if best is None:
            one = given("", "", 1.0, 1.0, 1, basis).latency
            return Method(
                family.name, NOTHING, one, outside, one, 1, basis, family.note, outside_compute
            )
        latency, compute = (
            interval_of(value[0, 0], draws[:, 0], self.tokens)
            for value, draws in zip(
                family.evaluate(self.everyone, best),
                family.evaluate(self.weights, best),
                strict=True,
            )
        )
        place = int(best[0])
        return Method(
            family.name,
            family.settings[place],
            latency,
            outside,
            compute,
            int(family.units[place]),
            basis,
            family.note,
            outside_compute,
        )

    def _chosen(self, family: Family, places: Ints, weights: Ints) -> Ints | None:
        """The best of some places, [1]; None where that is plain decoding."""
        best = int(self.rule.best(*family.evaluate(weights, places))[0])
        return None if best < 0 else places[[best]]

    def _held_out(
        self, family: Family, places: Ints
    ) -> tuple[Interval, Interval] | tuple[None, None]:
        """Latency and compute on each fold's prompts of what the other folds chose, over all."""

        def choose(_: int, inside: np.ndarray) -> Ints | None:
            return self._chosen(family, places, inside[None].astype(np.int64))

        def judge(best: Ints | None, weights: Ints) -> Floats:
            if best is None:
                return np.ones((len(weights), 2))
            return np.stack([x[:, 0] for x in family.evaluate(weights, best)], axis=1)

        return held_out(self.tokens, self.weights, self.seed, choose, judge)


def given(
    name: str, setting: str, latency: float, compute: float, units: int, basis: str, note: str = ""
) -> Method:
    """A method without uncertainty of its own."""
    value, cost = (Interval(x, x, x, 0, 0, GIVEN) for x in (latency, compute))
    return Method(name, setting, value, None, cost, units, basis, note)
