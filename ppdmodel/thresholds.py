"""The threshold rule on recorded guesses: start what is likely enough, at a price.

Theory page 7: at depth 1 and an exit in the second half of the layers, the best policy at a price
starts exactly the candidates whose calibrated probability is at least 1 / (1 + price).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from . import formulas
from .crossfit import FOLDS, cross_fitted, folds
from .errors import InvalidInputError
from .framing import Frame
from .optimization import check_price
from .recorded import check_guesses
from .resample import METHOD, percentiles, prompt_weights
from .results import Guesses, Interval, Measurement, titled
from .stopping import Candidates

if TYPE_CHECKING:
    from .results import Floats, Ints

DEFAULT_PRICES = (0.5, 1.0, 2.0, 4.0, 8.0)
RESAMPLES = 2000
#: bins of equal size in which probabilities are compared with what came true
BINS = 10
#: recorded in two bytes, a probability may be 0 or 1
NEAREST = 1e-6


@dataclass(frozen=True)
class Priced:
    """The threshold rule beside the best fixed exit and k, at one price, on held-out prompts.

    Latency and compute are ratios to plain decoding. `gain` is what the rule takes off
    price x latency + compute, against the fixed setting, in plain decoding's layer executions.
    `exit_layer`, `fixed_exit_layer` and `fixed_k` are the choices of all prompts together; None is
    plain decoding. `several_` are those of the rule over `several_exits`, each with a threshold of
    its own, and `several_gain` what that takes off further.
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


@dataclass(frozen=True)
class Reliability:
    """How far an exit's probabilities are from what comes true, on held-out prompts.

    `error` is the mean distance over bins of equally many candidates, `error_raw` that of the
    recorded probabilities; calibrated they are the logistic function of
    `shift` + `scale` x logit, where 1 / `scale` is a temperature.
    """

    exit_layer: int
    scale: float
    shift: float
    error_raw: float
    error: float


@dataclass(frozen=True)
class ThresholdReport(Frame):
    """The threshold rule on one measurement."""

    title: str
    model: str
    layers: int
    n_tokens: int
    n_prompts: int
    prices: tuple[Priced, ...]
    reliability: tuple[Reliability, ...]
    provenance: Mapping[str, Any]

    def _rows(self) -> Sequence[Any]:
        return self.prices


def threshold_report(
    measurement: Measurement,
    guesses: Guesses,
    prices: Sequence[float] = DEFAULT_PRICES,
    *,
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
        seed: of the folds and the bootstrap over prompts.

    Raises:
        InvalidInputError: a price is negative, the guesses are of other tokens, or there are fewer
            than 10 prompts.

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
    check_guesses(measurement, guesses)
    if measurement.layers < 2:
        raise InvalidInputError(
            f"an exit must lie below the last layer; got {measurement.layers} layers; measure a "
            "deeper model"
        )
    table = _Table(measurement, guesses)
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
    )


@dataclass(frozen=True)
class _Sums:
    """What a policy does on each prompt: processes started and right ones, [prompts]."""

    exit_layer: int
    started: Ints
    right: Ints


#: what is done: at one exit, at several, or plain decoding
_Policy: TypeAlias = "_Sums | tuple[_Sums, ...] | None"
#: scale and shift of each exit's logits
Fits: TypeAlias = Mapping[int, tuple[float, float]]


class _Table:
    """Candidates of the exits in the second half of the layers."""

    def __init__(self, measurement: Measurement, guesses: Guesses) -> None:
        self.layers = measurement.layers
        self.exits = range(-(-self.layers // 2), self.layers)
        self.owner, self.tokens = measurement.prompt_index, measurement.tokens_by_prompt()
        self.rank = {e: measurement.rank[:, e - 1] for e in self.exits}
        self.most = guesses.ids.shape[2]
        probs = {e: guesses.probs[:, e - 1].astype(float) for e in self.exits}
        self.logits = {e: logit(np.clip(p, NEAREST, 1 - NEAREST)) for e, p in probs.items()}
        self.candidates = Candidates(measurement, guesses, self.logits)

    def calibrated(self, prompts: np.ndarray) -> dict[int, tuple[float, float]]:
        """Scale and shift of each exit's logits, of the greatest likelihood on some prompts."""
        rows = prompts[self.owner]
        found = {}
        for e in self.exits:
            x = self.logits[e][rows]
            true = np.arange(1, self.most + 1) == self.rank[e][rows, None]

            def loss(theta: Floats, x: Floats = x, true: np.ndarray = true) -> tuple[float, Floats]:
                z = theta[0] * x + theta[1]
                off = expit(z) - true
                value = (np.logaddexp(0, z) - true * z).mean()
                return float(value), np.array([(off * x).mean(), off.mean()])

            bounds = [(1e-3, 20.0), (-20.0, 20.0)]
            best = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds)
            found[e] = (float(best.x[0]), float(best.x[1]))
        return found

    def by_rule(self, price: float, fitted: Fits) -> list[_Sums]:
        """The threshold rule at every exit: as q falls with the guess, it starts the first few."""
        found, least = [], logit(np.clip(formulas.threshold(price), NEAREST, 1 - NEAREST))
        for e, (scale, shift) in fitted.items():
            started = (scale * self.logits[e] + shift >= least).sum(axis=1)
            found.append(self._sums(e, started))
        return found

    def fixed(self) -> list[tuple[int, _Sums]]:
        """Every exit and k."""
        return [
            (k, self._sums(e, np.full(len(self.owner), k)))
            for e in self.exits
            for k in range(1, self.most + 1)
        ]

    def _sums(self, exit_layer: int, started: Ints) -> _Sums:
        right = self.rank[exit_layer] <= started
        return _Sums(
            exit_layer,
            np.bincount(self.owner, weights=started, minlength=len(self.tokens)).astype(np.int64),
            np.bincount(self.owner, weights=right, minlength=len(self.tokens)).astype(np.int64),
        )

    def several(
        self, price: float, fitted: Fits, prompts: np.ndarray
    ) -> tuple[tuple[float, ...], tuple[_Sums, ...]]:
        """The rule over several exits: its thresholds, solved on some prompts, and what it does."""
        q = self.candidates.probabilities(fitted)
        thresholds = self.candidates.thresholds(price, q, prompts)
        started, right = self.candidates.started(q, thresholds)
        sums = zip(self.candidates.exits, started, right, strict=True)
        return thresholds, tuple(_Sums(e, n, hits) for e, n, hits in sums)

    def ratios(self, policy: _Policy, weights: Floats) -> tuple[Floats, Floats]:
        """Latency and compute over plain decoding's, for weights [..., prompts]."""
        n = weights @ self.tokens
        if policy is None:
            return np.ones_like(n, dtype=float), np.ones_like(n, dtype=float)
        parts = policy if isinstance(policy, tuple) else (policy,)
        d, exits = self.layers, [part.exit_layer for part in parts]
        rates = [(weights @ part.right) / n for part in parts]
        started = [(weights @ part.started) / n for part in parts]
        latency = formulas.multi_exit_latency(rates, d, exits)
        compute = formulas.multi_exit_compute(rates, d, exits, started)
        return np.asarray(latency) / d, np.asarray(compute) / d

    def best(self, policies: Sequence[_Sums], price: float, prompts: np.ndarray) -> int | None:
        """Which policy makes price x latency + compute least on some prompts; None: plain."""
        weights = prompts.astype(float)
        costs = []
        for sums in policies:
            latency, compute = self.ratios(sums, weights)
            costs.append(float(price * latency + compute))
        place = int(np.argmin(costs))
        return place if costs[place] < price + 1 else None

    def reliability(
        self,
        fold: Ints,
        fits: Mapping[int, Fits],
        whole: Fits,
    ) -> tuple[Reliability, ...]:
        """Each exit's candidates, those of each fold by the calibration of the others."""
        found = []
        for e in self.exits:
            table = np.array([fits[n][e] for n in range(len(fits))])[fold[self.owner]]
            calibrated = expit(table[:, :1] * self.logits[e] + table[:, 1:])
            true = np.arange(1, self.most + 1) == self.rank[e][:, None]
            raw, after = (_bin_error(q, true) for q in (expit(self.logits[e]), calibrated))
            found.append(Reliability(e, *whole[e], error_raw=raw, error=after))
        return tuple(found)


def _bin_error(q: Floats, true: np.ndarray) -> float:
    """Mean distance of predicted and realized shares over bins of equally many candidates."""
    order = np.argsort(q, axis=None)
    parts = (np.array_split(values.ravel()[order], BINS) for values in (q, true))
    pairs = zip(*parts, strict=True)
    return float(np.mean([abs(a.mean() - b.mean()) for a, b in pairs]))


def _priced(
    table: _Table, price: float, fits: Mapping[int, Fits], whole: Fits, weights: Ints, seed: int
) -> Priced:
    everyone = np.ones(len(table.tokens), dtype=bool)
    ks, fixed = zip(*table.fixed(), strict=True)

    def choose(number: int, inside: np.ndarray) -> list[_Policy]:
        policies: list[_Policy] = []
        for sums in (table.by_rule(price, fits[number]), fixed):
            place = table.best(sums, price, inside)
            policies.append(None if place is None else sums[place])
        return [*policies, table.several(price, fits[number], inside)[1]]

    def judge(policies: list[_Policy], rows: Ints) -> Floats:
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

    def interval(value: float, drawn: Floats) -> Interval:
        low, high = percentiles(drawn)
        return Interval(
            float(value), float(low), float(high), int(table.tokens.sum()), len(everyone), METHOD
        )

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
    )
