"""The threshold policy on recorded guesses, evaluated against the best fixed setting.

Theory page 7: at depth 1 and an exit in the second half of the layers, the best policy at a price
starts exactly the candidates whose calibrated probability is at least 1 / (1 + price).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import formulas
from ..checks import real_number
from ..errors import InvalidInputError
from ..fitting.cross_validation import FOLDS, folds
from ..fitting.guess_reliability import mean_error
from ..progress import OnProgress, Progress, no_report, parts_of
from ..results.calibration import Reliability
from ..results.compatibility import check_timing
from ..results.intervals import RESAMPLES, Interval
from ..results.measurement import Guesses, Measurement, titled
from ..results.tabular import Frame
from .selection import (
    MOST_PRICE,
    Evaluation,
    PromptSample,
    Rule,
    Selection,
    check_price,
    chosen_interval,
)
from .threshold_policies import Policies, PolicySettings, Reading

if TYPE_CHECKING:
    from ..results.timing import Timing

DEFAULT_PRICES = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Priced:
    """The threshold rule and the best fixed exit and k at one price, on held-out prompts.

    Latency and compute are ratios to plain decoding. `gain` is the reduction of
    price x latency + compute against the fixed setting, in plain decoding's layer executions.
    `exit_layer`, `fixed_exit_layer` and `fixed_k` are selected on all prompts; None is plain
    decoding. `several_` is the rule over `several_exits`, each with its own threshold (infinite:
    not read), and `several_gain` its gain against the rule at one exit. `two_` is the best pair of
    exits with a fixed k each, and `two_gain` its gain against the best fixed exit. `error_raw` and
    `error` are the expected calibration errors of the guesses at `exit_layer` whose probability
    reaches the threshold, recorded and calibrated, on held-out prompts; None without any.
    """

    price: float
    threshold: float
    exit_layer: int | None
    latency: Interval
    compute: Interval
    fixed_exit_layer: int | None
    fixed_k: int | None
    fixed_latency: Interval
    fixed_compute: Interval
    gain: Interval
    several_exits: tuple[int, ...]
    several_thresholds: tuple[float, ...]
    several_latency: Interval
    several_compute: Interval
    several_gain: Interval
    two_exits: tuple[int, int] | None
    two_k: tuple[int, int] | None
    two_latency: Interval
    two_compute: Interval
    two_gain: Interval
    error_raw: float | None
    error: float | None


@dataclass(frozen=True)
class ThresholdReport(Frame):
    """The threshold rule on one measurement; costs are in layer executions."""

    title: str
    model: str
    layers: int
    n_tokens: int
    n_prompts: int
    prices: tuple[Priced, ...]
    reliability: tuple[Reliability, ...]
    provenance: Mapping[str, Any]
    exit_cost: float
    head_cost: float

    def _rows(self) -> Sequence[Any]:
        return self.prices


def threshold_report(
    measurement: Measurement,
    guesses: Guesses,
    prices: Sequence[float] = DEFAULT_PRICES,
    *,
    exit_cost: float = 0.0,
    head_cost: float | None = None,
    timing: Timing | None = None,
    seed: int = 0,
    on_progress: OnProgress = no_report,
) -> ThresholdReport:
    """Evaluate the threshold rule and the best fixed setting on held-out prompts.

    5-fold cross-validation: on four fifths of the prompts each exit's probabilities are calibrated
    and each policy's exit (and k) selected; the rest evaluate them. Only the first 8 guesses are
    recorded, so neither policy starts more.

    Args:
        measurement: ranks of the true tokens.
        guesses: the first guesses of the same tokens, with their probabilities.
        prices: the most extra layer executions that a layer time saved is worth; >= 0.
        exit_cost: compute of one reading of an exit (norm, map, head, top k), in layer executions;
            it also delays the exit's guesses. 0 by default.
        head_cost: compute of the LM head; None: as much as an exit. It delays the verification, in
            plain decoding too.
        timing: measured times of this model, which give both costs instead.
        seed: seed of the folds and of the bootstrap over prompts.
        on_progress: called with the progress.

    Raises:
        InvalidInputError: a price or a cost is negative, the guesses are of other tokens, the
            timing of another model, or there are fewer than 10 prompts.

    Source:
        theory/07-decisions.md, equation (7.6).
    """
    for price in prices:
        check_price(price)
    prompts = len(measurement.prompt_ids)
    if prompts < 2 * FOLDS:
        raise InvalidInputError(
            f"policies are judged on prompts that they have not seen; got {prompts} prompts; "
            f"measure at least {2 * FOLDS}"
        )
    reading = _reading(measurement, exit_cost, head_cost, timing)
    if measurement.layers < 2:
        raise InvalidInputError(
            f"an exit must lie below the last layer; got {measurement.layers} layers; measure a "
            "deeper model"
        )
    on_progress(Progress("counting", 0, 0.0))
    study = _Study(Policies(measurement, guesses, reading), seed, len(prices), on_progress)
    return ThresholdReport(
        title=titled(str(measurement.provenance["model"]), measurement.provenance),
        model=str(measurement.provenance["model"]),
        layers=measurement.layers,
        n_tokens=measurement.n_tokens,
        n_prompts=prompts,
        prices=study.priced([float(price) for price in prices]),
        reliability=study.reliability(),
        provenance=measurement.provenance,
        exit_cost=reading.exit_cost,
        head_cost=reading.head_cost,
    )


def _cost(name: str, value: float) -> float:
    if real_number(name, value, 0, "give layer executions") > MOST_PRICE:
        raise InvalidInputError(
            f"{name} must be at most {MOST_PRICE:g}; got {value:g}; give layer executions"
        )
    return float(value)


def _reading(
    measurement: Measurement, exit_cost: float, head_cost: float | None, timing: Timing | None
) -> Reading:
    read = _cost("exit_cost", exit_cost)
    head = read if head_cost is None else _cost("head_cost", head_cost)
    if timing is None:
        return Reading(read, head)
    if exit_cost or head_cost is not None:
        raise InvalidInputError(
            "costs of reading must be given or from a timing; got both; leave one out"
        )
    check_timing(timing, measurement.provenance, measurement.layers)
    return Reading.of_timing(timing)


class _Study:
    """The policies of one measurement, calibrated on all prompts and without each fold."""

    def __init__(self, policies: Policies, seed: int, prices: int, on_progress: OnProgress) -> None:
        self.policies, self.prompts = policies, PromptSample(policies.tokens, RESAMPLES, seed)
        self.fold = folds(len(policies.tokens), seed)
        self.all = np.ones(len(policies.tokens), dtype=bool)
        self.fits = {n: policies.calibrated(self.fold != n) for n in range(FOLDS)}
        self.whole = policies.calibrated(self.all)
        self.reports = parts_of(on_progress, 2 + 2 * prices)
        self.fixed, self.two_fixed = map(self._selection, (policies.fixed(), policies.two_fixed()))

    def _selection(
        self,
        space: PolicySettings,
        refit: Callable[[int, np.ndarray], PolicySettings] | None = None,
    ) -> Selection[PolicySettings]:
        return Selection(self.prompts, space, refit, next(self.reports))

    def reliability(self) -> tuple[Reliability, ...]:
        """Each exit's calibration."""
        return self.policies.reliability(self.fold, self.fits, self.whole)

    def priced(self, prices: Sequence[float]) -> tuple[Priced, ...]:
        """Each policy selected on all prompts, and evaluated on held-out ones, at each price."""
        rules = [Rule(price=price) for price in prices]
        held_out = (self.fixed.held_out(rules), self.two_fixed.held_out(rules))
        return tuple(
            self._priced(price, *fixed) for price, *fixed in zip(prices, *held_out, strict=True)
        )

    def _priced(
        self, price: float, fixed: Evaluation | None, two_fixed: Evaluation | None
    ) -> Priced:
        rule, policies = Rule(price=price), self.policies
        single = self._selection(
            policies.by_threshold(price, self.whole),
            lambda fold, _: policies.by_threshold(price, self.fits[fold]),
        )
        joint, thresholds = policies.several(price, self.whole, self.all)
        several = self._selection(
            joint,
            lambda fold, training: policies.several(price, self.fits[fold], training)[0],
        )
        selected = (_setting(s, rule) for s in (single, self.fixed, self.two_fixed))
        (exits, _), (fixed_exits, fixed_k), (two_exits, two_k) = selected
        (of_single,), (of_several,) = (each.held_out([rule]) for each in (single, several))
        threshold = float(formulas.threshold(price))
        error_raw, error = None, None
        if exits:
            _, started = policies.errors(exits[0], self.fold, self.fits, threshold)
            error_raw, error = map(mean_error, started)
        return Priced(
            price=price,
            threshold=threshold,
            exit_layer=next(iter(exits), None),
            fixed_exit_layer=next(iter(fixed_exits), None),
            fixed_k=next(iter(fixed_k), None),
            several_exits=policies.stopping.exits,
            several_thresholds=thresholds,
            two_exits=two_exits or None,
            two_k=two_k or None,
            error_raw=error_raw,
            error=error,
            **_held_out([of_single, fixed, of_several, two_fixed], rule),
        )


def _setting(selection: Selection[PolicySettings], rule: Rule) -> tuple[Any, Any]:
    """Exits and k of the best setting, a tuple each; none where that is plain decoding."""
    place, space = selection.best(rule), selection.space
    if place is None:
        return (), ()
    exits, k = (tuple(int(values[place]) for values in each) for each in (space.exits, space.k))
    return exits, k


def _held_out(evaluations: Sequence[Evaluation | None], rule: Rule) -> dict[str, Interval]:
    """Held-out intervals: rule at one exit, one fixed exit, rule at several, two fixed exits."""
    found = [evaluation for evaluation in evaluations if evaluation is not None]
    values = [float(rule.objective(*one.values)) for one in found]
    draws = [rule.objective(*one.draws.T) for one in found]

    def gain(of: int, against: int) -> Interval:
        value, drawn = values[against] - values[of], draws[against] - draws[of]
        return chosen_interval(value, drawn, found[of].tokens)

    prefixes = ("", "fixed_", "several_", "two_")
    ratios = {
        f"{prefix}{name}": getattr(evaluation, name)
        for prefix, evaluation in zip(prefixes, found, strict=True)
        for name in ("latency", "compute")
    }
    return ratios | {"gain": gain(0, 1), "several_gain": gain(2, 0), "two_gain": gain(3, 1)}
