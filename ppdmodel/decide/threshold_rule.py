"""The threshold rule on recorded guesses: start what is likely enough, at a price.

Theory page 7: at depth 1 and an exit in the second half of the layers, the best policy at a price
starts exactly the candidates whose calibrated probability is at least 1 / (1 + price).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import formulas
from ..checks import real_number
from ..errors import InvalidInputError
from ..fitting.cross_validation import FOLDS, cross_fitted, folds
from ..fitting.guess_reliability import Fits
from ..results.calibration import Reliability
from ..results.compatibility import check_timing
from ..results.intervals import Interval, interval_of, prompt_weights
from ..results.measurement import Guesses, Measurement, titled
from ..results.tabular import Frame
from .optimize import MOST_PRICE, check_price
from .threshold_policies import Done, Policies, Reading

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.timing import Timing

DEFAULT_PRICES = (0.5, 1.0, 2.0, 4.0, 8.0)
RESAMPLES = 2000


@dataclass(frozen=True)
class Priced:
    """The threshold rule beside the best fixed exit and k, at one price, on held-out prompts.

    Latency and compute are ratios to plain decoding. `gain` is what the rule takes off
    price x latency + compute, against the fixed setting, in plain decoding's layer executions.
    `exit_layer`, `fixed_exit_layer` and `fixed_k` are the choices of all prompts together; None is
    plain decoding. `several_` are those of the rule over `several_exits`, each with a threshold of
    its own (infinite: not read), and `several_gain` what that takes off further. `two_` are those
    of the best two exits with a fixed k each, and `two_gain` what they take off against the best
    one.
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


@dataclass(frozen=True)
class ThresholdReport(Frame):
    """The threshold rule on one measurement; costs of a reading are in layer executions."""

    title: str
    model: str
    layers: int
    n_tokens: int
    n_prompts: int
    prices: tuple[Priced, ...]
    reliability: tuple[Reliability, ...]
    provenance: Mapping[str, Any]
    exit_cost: float = 0.0
    head_cost: float = 0.0

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
) -> ThresholdReport:
    """Judge the threshold rule, and the best fixed setting, on prompts that neither has seen.

    On four fifths of the prompts each exit's probabilities are calibrated and each policy's exit
    (and k) chosen; the rest judges. Only the first 8 guesses are recorded, so neither policy starts
    more.

    Args:
        measurement: ranks of the true tokens.
        guesses: the first guesses of the same tokens, with their probabilities.
        prices: the most extra layer executions that a layer time saved is worth; >= 0.
        exit_cost: what one reading of an exit executes (norm, map, head, best k), in layer
            executions; it also delays the exit's guesses. By default reading costs nothing.
        head_cost: what the model's own head executes; None: as much as an exit. It delays the
            verdict, in plain decoding too.
        timing: takes both costs from a machine's times of this model.
        seed: of the folds and the bootstrap over prompts.

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
    table = Policies(measurement, guesses, reading)
    fold = folds(prompts, seed)
    weights = prompt_weights(prompts, RESAMPLES, seed)
    everyone = np.ones(prompts, dtype=bool)
    fits = {n: table.calibrated(fold != n) for n in range(FOLDS)}
    whole = table.calibrated(everyone)
    return ThresholdReport(
        title=titled(str(measurement.provenance["model"]), measurement.provenance),
        model=str(measurement.provenance["model"]),
        layers=measurement.layers,
        n_tokens=measurement.n_tokens,
        n_prompts=prompts,
        prices=tuple(_priced(table, float(p), fits, whole, weights, seed) for p in prices),
        reliability=table.reliability(fold, fits, whole),
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


def _priced(
    table: Policies, price: float, fits: Mapping[int, Fits], whole: Fits, weights: Ints, seed: int
) -> Priced:
    everyone = np.ones(len(table.tokens), dtype=bool)
    ks, fixed = zip(*table.fixed(), strict=True)

    def choose(number: int, inside: np.ndarray) -> list[Done]:
        policies: list[Done] = []
        for sums in (table.by_rule(price, fits[number]), fixed):
            place = table.best(sums, price, inside)
            policies.append(None if place is None else sums[place])
        _, several = table.several(price, fits[number], inside)
        return [*policies, several, table.of_pair(table.two_fixed(price, inside))]

    def judge(policies: list[Done], rows: Ints) -> Floats:
        found = [table.ratios(policy, rows.astype(float)) for policy in policies]
        return np.array(found).transpose(2, 0, 1)  # [rows, policies, latency and compute]

    judged = cross_fitted(table.tokens, weights, seed, choose, judge)
    assert judged is not None
    points, draws = judged
    rule = table.best(table.by_rule(price, whole), price, everyone)
    other = table.best(fixed, price, everyone)
    worth = np.array([price, 1.0])
    costs, cost_draws = points @ worth, draws @ worth
    thresholds, _ = table.several(price, whole, everyone)
    two = table.two_fixed(price, everyone)

    def interval(value: float, drawn: Floats) -> Interval:
        return interval_of(value, drawn, table.tokens)

    return Priced(
        price=price,
        threshold=float(formulas.threshold(price)),
        exit_layer=None if rule is None else table.exits[rule],
        latency=interval(points[0, 0], draws[:, 0, 0]),
        compute=interval(points[0, 1], draws[:, 0, 1]),
        fixed_exit_layer=None if other is None else fixed[other].exit_layer,
        fixed_k=None if other is None else ks[other],
        fixed_latency=interval(points[1, 0], draws[:, 1, 0]),
        fixed_compute=interval(points[1, 1], draws[:, 1, 1]),
        gain=interval(costs[1] - costs[0], cost_draws[:, 1] - cost_draws[:, 0]),
        several_exits=table.candidates.exits,
        several_thresholds=thresholds,
        several_latency=interval(points[2, 0], draws[:, 2, 0]),
        several_compute=interval(points[2, 1], draws[:, 2, 1]),
        several_gain=interval(costs[0] - costs[2], cost_draws[:, 0] - cost_draws[:, 2]),
        two_exits=None if two is None else (int(two.early[0]), int(two.late[0])),
        two_k=None if two is None else (int(two.k_early[0]), int(two.k_late[0])),
        two_latency=interval(points[3, 0], draws[:, 3, 0]),
        two_compute=interval(points[3, 1], draws[:, 3, 1]),
        two_gain=interval(costs[1] - costs[3], cost_draws[:, 1] - cost_draws[:, 3]),
    )
