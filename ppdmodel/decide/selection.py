"""Selection of a setting under a rule, and K-fold evaluation of the selected setting.

PPD, other decoding methods and threshold policies are search spaces, which compute latency and
compute of their settings for any weights of the prompts. The best of many settings looks better
than it is (selection bias), so the selection is repeated without each fold of the prompts and
evaluated on that fold; and it is repeated in each resample, so that intervals hold its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from scipy.special import stdtrit

from ..checks import real_number
from ..errors import InvalidInputError
from ..fitting.cross_validation import FOLDS, cross_fitted
from ..progress import OnProgress, Progress, no_report
from ..results.intervals import CHOICE_METHOD, LEVEL, Interval, prompt_weights

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

    def evaluate(self, weights: Ints | Floats, at: Ints) -> Ratios:
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
    def all_once(self) -> Floats:
        """The weights of the point estimate, [1, prompts]."""
        return np.ones((1, len(self.tokens)))

    @cached_property
    def weights(self) -> Floats:
        """How often each prompt is drawn, [resamples, prompts]; floats multiply faster."""
        return prompt_weights(len(self.tokens), self.resamples, self.seed).astype(float)


@dataclass(frozen=True)
class Evaluation:
    """Latency and compute of a selected setting.

    Attributes:
        values: the point estimates, [2].
        draws: bootstrap draws, [resamples, 2]; each resample makes the selection again.
        tokens: of each prompt, [prompts].
    """

    values: Floats
    draws: Floats
    tokens: Ints

    @property
    def latency(self) -> Interval:
        """Normalized latency with its interval."""
        return chosen_interval(self.values[0], self.draws[:, 0], self.tokens)

    @property
    def compute(self) -> Interval:
        """Normalized compute with its interval."""
        return chosen_interval(self.values[1], self.draws[:, 1], self.tokens)


def chosen_interval(value: float, draws: Floats, tokens: Ints) -> Interval:
    """The t interval of an estimate whose draws make its choice again.

    It lies about their mean, with their standard deviation, corrected for the number of prompts,
    and N - 1 degrees of freedom; it reaches to the estimate in any case.
    """
    n = len(tokens)
    reach = stdtrit(n - 1, 0.5 + LEVEL / 2) * draws.std() * math.sqrt(n / (n - 1))
    low, high = min(value, draws.mean() - reach), max(value, draws.mean() + reach)
    return Interval(float(value), float(low), float(high), int(tokens.sum()), n, CHOICE_METHOD)


class Selection(Generic[Space]):
    """The best settings of a search space under any rules, in sample and cross-validated."""

    def __init__(
        self,
        prompts: PromptSample,
        space: Space,
        refit: Callable[[int, np.ndarray], SearchSpace] | None = None,
        on_progress: OnProgress = no_report,
    ) -> None:
        """Select from a space; a space that depends on the prompts is refitted without each fold.

        Args:
            prompts: prompts on which the settings are evaluated.
            space: the settings, fitted on all prompts.
            refit: fold number and mask of the training prompts, [prompts] -> the space fitted on
                those; by default the space itself.
            on_progress: called with the progress of what is done for all resamples: once in each
                fold, and once with all prompts.
        """
        self.prompts, self.space = prompts, space
        self._on_progress, self._done = on_progress, 0
        self._refit = refit or (lambda _fold, _training: space)

    @cached_property
    def ratios(self) -> Ratios:
        """Latency and compute of every setting on all prompts, each [settings]."""
        (latency,), (compute,) = self._of_all(self.space, self.prompts.all_once)
        return latency, compute

    @cached_property
    def draws(self) -> Ratios:
        """Latency and compute of every setting on each resample, each [resamples, settings]."""
        found = self._of_all(self.space, self.prompts.weights)
        self._count()
        return found

    def _count(self) -> None:
        """Report that the resamples were evaluated once more."""
        self._done += 1
        self._on_progress(Progress("choosing settings", 0, min(self._done / (FOLDS + 1), 1.0)))

    def _of_all(self, space: SearchSpace, weights: Ints | Floats) -> Ratios:
        return space.evaluate(weights, np.arange(space.size))

    @cached_property
    def _fronts(self) -> tuple[Floats, Ints]:
        """Compute and index of the settings on each resample's frontier, each [resamples, places].

        Plain decoding, -1, comes first and is within any budget; places to spare take infinite
        compute.
        """
        latency, compute = self.draws
        fronts = [_front(*row) for row in zip(latency, compute, strict=True)]
        shape = len(fronts), 1 + max(map(len, fronts))
        found, places = np.full(shape, np.inf, dtype=compute.dtype), np.full(shape, -1)
        found[:, 0] = -np.inf
        for row, mine in enumerate(fronts):
            found[row, 1 : 1 + len(mine)] = compute[row, mine]
            places[row, 1 : 1 + len(mine)] = mine
        return found, places

    def _best_on_draws(self, rule: Rule) -> Ints:
        """The best setting on each resample, [resamples]; -1 where that is plain decoding."""
        if rule.price is not None or rule.max_compute is None:
            return rule.best(*self.draws)
        compute, places = self._fronts
        within = (compute <= min(rule.max_compute, MOST_COMPUTE)).sum(axis=1)
        best: Ints = places[np.arange(len(places)), within - 1]
        return best

    def best(self, rule: Rule) -> int | None:
        """The best setting on all prompts; None where that is plain decoding."""
        index = rule.best(*self.ratios)
        return None if index < 0 else int(index)

    def runner_up(self, rule: Rule, best: int) -> int | None:
        """The second-best setting; None where that is plain decoding."""
        index = rule.best(*_without(self.ratios, np.array(best)))
        return None if index < 0 else int(index)

    def evaluation(self, rule: Rule, place: int, *, second: bool = False) -> Evaluation:
        """Latency and compute of the setting that a rule selects, with bootstrap draws.

        A resample selects again. By how much the setting that it selects looks better on it than
        on all prompts is what the selection on all prompts is taken to be off by, in the opposite
        direction. A resample that selects plain decoding keeps the setting.

        Args:
            rule: the rule that selected the setting.
            place: the setting, by its index.
            second: it is the runner-up, and each resample takes its own.
        """
        chosen = self._best_on_draws(rule)
        if second:
            chosen = rule.best(*_without(self.draws, chosen))
        chosen = np.where(chosen < 0, place, chosen)
        rows = np.arange(len(chosen))
        pairs = [*zip(self.ratios, self.draws, strict=True)]
        values = np.array([whole[place] for whole, _ in pairs])
        off = np.stack([drawn[rows, chosen] - whole[chosen] for whole, drawn in pairs], axis=1)
        return Evaluation(values, values - off, self.prompts.tokens)

    def held_out(self, rules: Sequence[Rule]) -> list[Evaluation | None]:
        """K-fold evaluation for each rule: a fold evaluates what the other folds select.

        None with too few prompts for folds.
        """
        spaces: dict[int, SearchSpace] = {}

        def select(fold: int, training: Ints | Floats) -> tuple[SearchSpace, list[Ints]]:
            if fold not in spaces:
                spaces[fold] = self._refit(fold, training[0] > 0)
            space = spaces[fold]
            ratios = self._of_all(space, training)
            return space, [rule.best(*ratios) for rule in rules]

        def evaluate(selected: tuple[SearchSpace, list[Ints]], weights: Ints | Floats) -> Floats:
            space, places = selected
            found = np.stack([_evaluated(space, each, weights) for each in places], axis=1)
            if len(weights) == self.prompts.resamples:
                self._count()
            return found

        prompts, found = self.prompts, None
        if rules:
            found = cross_fitted(prompts.tokens, prompts.weights, prompts.seed, select, evaluate)
        if found is None:
            return [None] * len(rules)
        values, draws = found
        # a resample holds fewer different prompts, on which it selects worse
        draws += values - draws.mean(axis=0)
        return [Evaluation(values[n], draws[:, n], prompts.tokens) for n in range(len(rules))]


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


def _front(latency: Floats, compute: Floats) -> Ints:
    """Settings that are faster than plain decoding and all that take less compute, by compute.

    Of those that take the same, the last is the fastest.
    """
    order = np.argsort(compute)
    ordered = latency[order]
    before = np.minimum.accumulate(np.concatenate([[1], ordered[:-1]]), dtype=ordered.dtype)
    return order[ordered < before]


def _without(ratios: Ratios, places: Ints) -> Ratios:
    """Ratios [..., settings] without the setting `places` [...], which no rule takes any more."""
    out = np.arange(ratios[0].shape[-1]) == places[..., None]
    latency, compute = (np.where(out, MOST_COMPUTE, values) for values in ratios)
    return latency, compute


def _evaluated(space: SearchSpace, places: Ints, weights: Ints | Floats) -> Floats:
    """Latency and compute of the setting of each row, [rows, 2]; -1 is plain decoding."""
    found, which = np.unique(places, return_inverse=True)
    kept = np.maximum(found, 0)
    ratios = space.evaluate(weights, kept) if space.size else 2 * [np.ones((len(weights), 1))]
    values = np.stack([each[np.arange(len(weights)), which] for each in ratios], axis=1)
    return np.where(places[:, None] >= 0, values, 1.0)
