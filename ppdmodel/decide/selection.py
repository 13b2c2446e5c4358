"""Selection of a setting under a rule, and K-fold evaluation of the selected setting.

One engine for the settings of PPD, those of other decoding methods and threshold policies: each is
a search space that gives the latency and the compute of its settings on any weights of the prompts.
The setting that looks best of many does worse on new prompts (selection bias), so the selection is
repeated without each fold of the prompts and evaluated on that fold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from ..checks import real_number
from ..errors import InvalidInputError
from ..fitting.cross_validation import cross_fitted
from ..results.intervals import Interval, interval_of, prompt_weights

if TYPE_CHECKING:
    from .._types import Floats, Ints

MOST_PRICE = 1e6
#: latency and compute, as ratios to plain decoding
Ratios: TypeAlias = "tuple[Floats, Floats]"


class SearchSpace(Protocol):
    """Settings of one method, to select from."""

    @property
    def size(self) -> int:
        """Number of settings."""

    def evaluate(self, weights: Ints, at: Ints) -> Ratios:
        """Latency and compute of the settings `at`, each [rows, settings].

        A row of `weights` [rows, prompts] says how often each prompt counts. One row gives the
        point estimate, several the draws of a bootstrap.
        """


Space = TypeVar("Space", bound=SearchSpace)


def check_budget(max_compute: float) -> float:
    """Raise `InvalidInputError` unless a compute budget is at least plain decoding's."""
    if not max_compute >= 1:
        raise InvalidInputError(
            f"max_compute must be at least 1; got {max_compute}; 2 allows twice the layers"
        )
    return float(max_compute)


def check_price(price: float) -> float:
    """Raise `InvalidInputError` unless a price is a number from 0 to a million."""
    if real_number("price", price, 0, "give layer executions per layer time") > MOST_PRICE:
        raise InvalidInputError(
            f"price must be at most {MOST_PRICE:g}; got {price:g}; at most latency alone counts"
        )
    return float(price)


@dataclass(frozen=True)
class Rule:
    """What the best setting minimizes, given as one of two.

    Attributes:
        max_compute: a budget: the least latency among settings with at most this compute.
        price: the least price x latency + compute.
    """

    max_compute: float | None = None
    price: float | None = None

    def objective(self, latency: Floats, compute: Floats) -> Floats:
        """What is minimized; infinite where the rule excludes a setting."""
        if self.price is not None:
            return self.price * latency + compute
        within = True if self.max_compute is None else compute <= min(self.max_compute, 1e30)
        return np.where(within & (latency < 1), latency, np.inf)

    def best(self, latency: Floats, compute: Floats) -> Ints:
        """Index of the best setting along the last axis; -1 where plain decoding is as good."""
        if not latency.shape[-1]:
            return np.full(latency.shape[:-1], -1)
        objective = self.objective(latency, compute)
        plain = math.inf if self.price is None else self.price + 1
        return np.where(objective.min(axis=-1) < plain, np.argmin(objective, axis=-1), -1)


@dataclass(frozen=True)
class PromptSample:
    """The prompts that were measured, their bootstrap resamples and their folds.

    Attributes:
        tokens: generated tokens of each prompt, [prompts].
        resamples: resamples of the bootstrap over prompts.
        seed: of the bootstrap and of the folds.
    """

    tokens: Ints
    resamples: int
    seed: int

    @cached_property
    def all_once(self) -> Ints:
        """The weights of the point estimate, [1, prompts]."""
        return np.ones((1, len(self.tokens)), dtype=np.int64)

    @cached_property
    def weights(self) -> Ints:
        """How often each prompt is drawn, [resamples, prompts]."""
        return prompt_weights(len(self.tokens), self.resamples, self.seed)


@dataclass(frozen=True)
class Evaluation:
    """Latency and compute of one setting.

    Attributes:
        values: the point estimates, [2].
        draws: of the bootstrap, [resamples, 2].
        tokens: of each prompt, [prompts].
    """

    values: Floats
    draws: Floats
    tokens: Ints

    @property
    def latency(self) -> Interval:
        """Normalized latency with its interval."""
        return interval_of(self.values[0], self.draws[:, 0], self.tokens)

    @property
    def compute(self) -> Interval:
        """Normalized compute with its interval."""
        return interval_of(self.values[1], self.draws[:, 1], self.tokens)


class Selection(Generic[Space]):
    """The best settings of a search space under any rules, in sample and cross-validated."""

    def __init__(
        self,
        prompts: PromptSample,
        space: Space,
        refit: Callable[[int, np.ndarray], SearchSpace] | None = None,
    ) -> None:
        """Select from a space; one that depends on the prompts is made anew without each fold.

        Args:
            prompts: what the settings are evaluated on.
            space: the settings, as all prompts together make them.
            refit: a fold's number and which prompts, [prompts], are outside it -> the same space
                made from those; by default the space itself.
        """
        self.prompts, self.space = prompts, space
        self._refit = refit or (lambda _fold, _training: space)
        self._training: dict[int, tuple[SearchSpace, Ratios]] = {}

    @cached_property
    def ratios(self) -> Ratios:
        """Latency and compute of every setting on all prompts, each [settings]."""
        return _ratios_of_all(self.space, self.prompts.all_once)

    def best(self, rule: Rule) -> int | None:
        """The best setting on all prompts; None where that is plain decoding."""
        return _place(rule.best(*self.ratios))

    def runner_up(self, rule: Rule, best: int) -> int | None:
        """The best setting but one; None where that is plain decoding."""
        others = np.delete(np.arange(self.space.size), best)
        second = _place(rule.best(*(values[others] for values in self.ratios)))
        return None if second is None else int(others[second])

    def evaluation(self, place: int) -> Evaluation:
        """One setting on all prompts and their resamples."""
        values, draws = (
            _evaluated(self.space, place, weights)
            for weights in (self.prompts.all_once, self.prompts.weights)
        )
        return Evaluation(values[0], draws, self.prompts.tokens)

    def held_out(self, rule: Rule) -> Evaluation | None:
        """K-fold evaluation: on each fold the setting that the other folds select, pooled.

        None with too few prompts for folds.
        """

        def select(fold: int, training: np.ndarray) -> tuple[SearchSpace, int | None]:
            space, ratios = self._on_training(fold, training)
            return space, _place(rule.best(*ratios))

        def evaluate(selected: tuple[SearchSpace, int | None], weights: Ints) -> Floats:
            return _evaluated(*selected, weights)

        prompts = self.prompts
        found = cross_fitted(prompts.tokens, prompts.weights, prompts.seed, select, evaluate)
        return None if found is None else Evaluation(*found, prompts.tokens)

    def _on_training(self, fold: int, training: np.ndarray) -> tuple[SearchSpace, Ratios]:
        """Every setting on the prompts outside a fold: the same for every rule."""
        if fold not in self._training:
            space = self._refit(fold, training)
            ratios = _ratios_of_all(space, training[None].astype(np.int64))
            self._training[fold] = space, ratios
        return self._training[fold]


def chosen_share(rule: Rule, draws: Ratios, best: int | None) -> float | None:
    """Share of the bootstrap's resamples that select the same; None where there is no setting.

    Args:
        rule: what selects.
        draws: latency and compute of every setting, each [resamples, settings].
        best: what was selected on all prompts.
    """
    if not draws[0].shape[-1]:
        return None
    return float(np.mean(rule.best(*draws) == (-1 if best is None else best)))


def _place(index: Ints) -> int | None:
    return None if index < 0 else int(index)


def _ratios_of_all(space: SearchSpace, weights: Ints) -> Ratios:
    latency, compute = space.evaluate(weights, np.arange(space.size))
    return latency[0], compute[0]


def _evaluated(space: SearchSpace, place: int | None, weights: Ints) -> Floats:
    """Latency and compute of one setting, [rows, 2]; None: plain decoding."""
    if place is None:
        return np.ones((len(weights), 2))
    return np.concatenate(space.evaluate(weights, np.array([place])), axis=1)
