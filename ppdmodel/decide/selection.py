"""Selection of a setting under a rule, and K-fold evaluation of the selected setting.

PPD, other decoding methods and threshold policies are search spaces, which compute latency and
compute of their settings for any weights of the prompts. The best of many settings looks better
than it is (selection bias), so the selection is repeated without each fold of the prompts and
evaluated on that fold.
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

#: the largest price, and the largest compute that a budget allows
MOST_PRICE, MOST_COMPUTE = 1e6, 1e30
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
    """The objective that the best setting minimizes; give one of the two.

    Attributes:
        max_compute: minimize latency among settings with at most this compute.
        price: minimize price x latency + compute.
    """

    max_compute: float | None = None
    price: float | None = None

    def objective(self, latency: Floats, compute: Floats) -> Floats:
        """The objective; infinite where the rule excludes a setting."""
        if self.price is not None:
            return self.price * latency + compute
        within = (
            True if self.max_compute is None else compute <= min(self.max_compute, MOST_COMPUTE)
        )
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
    """The measured prompts, with their bootstrap resamples and folds.

    Attributes:
        tokens: generated tokens of each prompt, [prompts].
        resamples: resamples of the bootstrap over prompts.
        seed: seed of the bootstrap and of the folds.
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
        draws: bootstrap draws, [resamples, 2].
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
        """Select from a space; a space that depends on the prompts is refitted without each fold.

        Args:
            prompts: prompts on which the settings are evaluated.
            space: the settings, fitted on all prompts.
            refit: fold number and mask of the training prompts, [prompts] -> the space fitted on
                those; by default the space itself.
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
        """The second-best setting; None where that is plain decoding."""
        others = np.delete(np.arange(self.space.size), best)
        second = _place(rule.best(*(values[others] for values in self.ratios)))
        return None if second is None else int(others[second])

    def evaluation(self, place: int) -> Evaluation:
        """Latency and compute of one setting on all prompts, with bootstrap draws."""
        (values,), draws = (
            _evaluated(self.space, place, weights)
            for weights in (self.prompts.all_once, self.prompts.weights)
        )
        return Evaluation(values, draws, self.prompts.tokens)

    def held_out(self, rule: Rule) -> Evaluation | None:
        """K-fold evaluation: each fold evaluates the setting that the other folds select.

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
        """Every setting on the training prompts of a fold, cached for all rules."""
        if fold not in self._training:
            space = self._refit(fold, training)
            ratios = _ratios_of_all(space, training[None].astype(np.int64))
            self._training[fold] = space, ratios
        return self._training[fold]


def chosen_share(rule: Rule, draws: Ratios, best: int | None) -> float | None:
    """Share of bootstrap resamples that select the same setting; None without any settings.

    Args:
        rule: objective of the selection.
        draws: latency and compute of every setting, each [resamples, settings].
        best: the setting selected on all prompts; None is plain decoding.
    """
    if not draws[0].size:
        return None
    return float(np.mean(rule.best(*draws) == (-1 if best is None else best)))


def _place(index: Ints) -> int | None:
    return None if index < 0 else int(index)


def _ratios_of_all(space: SearchSpace, weights: Ints) -> Ratios:
    (latency,), (compute,) = space.evaluate(weights, np.arange(space.size))
    return latency, compute


def _evaluated(space: SearchSpace, place: int | None, weights: Ints) -> Floats:
    """Latency and compute of one setting, [rows, 2]; None: plain decoding."""
    if place is None:
        return np.ones((len(weights), 2))
    return np.concatenate(space.evaluate(weights, np.array([place])), axis=1)
