"""Predictions of real runs: corrections fitted on part of a grid, errors on the held-out rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import beta

from ..decide.prediction import predicted_latency_s, predicted_plain_latency_s
from ..errors import InvalidInputError
from ..formulas import normalized_latency
from ..results.calibration import Calibration
from ..results.intervals import percentiles, prompt_weights, resampled_rates
from ..results.timing import Timing, resampled_timing
from .options import PpdSetting

#: times with a correction factor, which has the Gaussian prior N(1, PRIOR_SD²); `RESIDUAL_SD` is
#: the standard deviation of log ratios in the fit, and the prior value of the fit's residuals
CORRECTED = ("busy_layer_time", "batch_layer_time", "exit_time")
PRIOR_SD, RESIDUAL_SD = 0.05, 0.02
#: the smallest and the largest factor
FACTOR_BOUNDS = (0.5, 2.0)
#: prior standard deviations of log ratios, of texts' means and of single runs; the priors weigh as
#: much as `PRIOR_RUNS` observations
TEXT_SD, RUN_SD, PRIOR_RUNS = 0.03, 0.06, 3
#: draws of an interval, and of the timing among them
RESAMPLES, TIMING_DRAWS = 1000, 50


@dataclass(frozen=True)
class SettingRuns:
    """The real runs of one setting, a row per prompt.

    Attributes:
        setting: exit layer and k.
        ppd_s: seconds of all timed tokens, [prompts].
        plain_s: seconds of as many tokens of plain decoding, just before and after, [prompts].
        n_tokens: timed tokens, [prompts].
        n_matched: those with a right guess in time, [prompts].
        n_late: those with a right guess that came too late, [prompts]; None where that was not
            counted, in runs of an earlier version.
    """

    setting: PpdSetting
    ppd_s: np.ndarray
    plain_s: np.ndarray
    n_tokens: np.ndarray
    n_matched: np.ndarray
    n_late: np.ndarray | None = None

    @classmethod
    def of_rows(cls, setting: PpdSetting, rows: Sequence[Mapping[str, Any]]) -> SettingRuns:
        """From lines of `runs.jsonl`, one per prompt; those without timed tokens are left out."""
        rows = [row for row in rows if row["n_tokens"]]
        ppd_s, plain_s, n_tokens, n_matched = (
            np.array([row[name] for row in rows])
            for name in ("ppd_s", "plain_per_token_s", "n_tokens", "n_matched")
        )
        counted = all("n_late" in row for row in rows)
        n_late = np.array([row["n_late"] for row in rows]) if counted else None
        return cls(setting, ppd_s, plain_s * n_tokens, n_tokens, n_matched, n_late)

    @property
    def ratio(self) -> float:
        """PPD's latency over that of plain decoding."""
        return float(self.ppd_s.sum() / self.plain_s.sum())

    @property
    def match_rate(self) -> float:
        """The realized match rate: the share of right guesses in time."""
        return float(self.n_matched.sum() / self.n_tokens.sum())

    @property
    def late_rate(self) -> float | None:
        """The share of right guesses that came too late; None where that was not counted."""
        return None if self.n_late is None else float(self.n_late.sum() / self.n_tokens.sum())

    def select(self, prompts: Sequence[int]) -> SettingRuns:
        """Only some prompts, by index."""
        rows = np.asarray(prompts)
        names = ("ppd_s", "plain_s", "n_tokens", "n_matched")
        late = None if self.n_late is None else self.n_late[rows]
        return replace(self, n_late=late, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True)
class Corrections:
    """Factors of some times, fitted to real runs, and the scatter of the runs about the fit.

    Attributes:
        factors: by name of the time.
        deviation: standard deviation of the settings' residuals. This and the others are of log
            ratios.
        n_texts: texts that the factors were fitted to; 0 takes them to be exact.
        text_scatter: standard deviation between texts, of the mean of all settings.
        run_scatter: standard deviation between texts, of single runs of a setting.
        in_time: share of the right guesses that came in time, by exit layer as a text; none takes
            all of them to be in time.
    """

    factors: Mapping[str, float]
    deviation: float
    n_texts: int = 0
    text_scatter: float = 0.0
    run_scatter: float = 0.0
    in_time: Mapping[str, float] = field(default_factory=dict)

    def share_in_time(self, exit_layer: int) -> float:
        """Share of the right guesses in time, interpolated between the exit layers."""
        layers = sorted(map(int, self.in_time))
        shares = [self.in_time[str(layer)] for layer in layers]
        return float(np.interp(exit_layer, layers, shares)) if layers else 1.0

    def noise(self, rng: np.random.Generator, n_texts: int, size: int) -> np.ndarray:
        """Random factors between a measured and a predicted ratio over `n_texts` new texts, [size].

        Their logarithm is the sum of a Gaussian residual of the setting, the Gaussian mean of the
        new texts' scatter, and a Student-t error of the fitted factors, which rest on `n_texts`
        texts of this object.
        """
        logs = rng.normal(0, self.deviation, size)
        logs += rng.normal(0, self.run_scatter / np.sqrt(n_texts), size)
        if self.n_texts:
            freedom = self.n_texts - 1 + PRIOR_RUNS
            off = self.text_scatter / np.sqrt(self.n_texts)
            logs += off * rng.standard_t(freedom, size)
        drawn: np.ndarray = np.exp(logs)
        return drawn


@dataclass(frozen=True)
class Prediction:
    """The predicted ratio of one setting to plain decoding, with its 95% prediction interval.

    It rests on `match_rate`, the share of tokens with a right guess in time; `p_correct` is that
    with a right guess, late ones too.
    """

    setting: PpdSetting
    p_correct: float
    ratio: float
    ci_low: float
    ci_high: float
    match_rate: float


def excluding_prompts(calibration: Calibration, prompt_ids: Sequence[str]) -> Calibration:
    """A calibration without some prompts.

    Raises:
        InvalidInputError: fewer than two are left.
    """
    kept = [n for n, name in enumerate(calibration.prompt_ids) if name not in set(prompt_ids)]
    if len(kept) < 2:
        raise InvalidInputError(
            f"the calibration must have prompts that are not validated on; got {len(kept)}; "
            "measure more prompts"
        )
    hits, tokens = calibration.hits[kept], calibration.tokens[kept]
    return replace(
        calibration,
        prompt_ids=tuple(calibration.prompt_ids[n] for n in kept),
        hits=hits,
        tokens=tokens,
        p_correct=hits.sum(0) / tokens.sum(),
        recorded=calibration.recorded and calibration.recorded.only(kept),
        reliability=(),
    )


def predicted_ratio(
    timing: Timing, p_correct: Any, setting: PpdSetting, factors: Mapping[str, float]
) -> Any:
    """PPD's latency over plain decoding's, for a match rate or an array of them."""
    seconds = predicted_latency_s(timing, p_correct, setting.exit_layer, setting.k, factors)
    return seconds / predicted_plain_latency_s(timing)


def fit_corrections(timing: Timing, runs: Sequence[SettingRuns]) -> Corrections:
    """Fit the factors to runs of some settings, at their realized match rates.

    The shares of right guesses in time are counted, one guess in time added at each exit layer.
    The estimate is the maximum a posteriori: Gaussian log ratios, and the prior N(1, PRIOR_SD²) on
    each factor, so that without runs all factors are 1.
    """

    def errors(factors: Any) -> Any:
        named = dict(zip(CORRECTED, factors, strict=True))
        made = [
            np.log(predicted_ratio(timing, r.match_rate, r.setting, named) / r.ratio) for r in runs
        ]
        return np.append(np.array(made) / RESIDUAL_SD, (factors - 1) / PRIOR_SD)

    found = least_squares(errors, np.ones(len(CORRECTED)), bounds=FACTOR_BOUNDS)
    left = errors(found.x)[: len(runs)] * RESIDUAL_SD
    # the prior of the residual weighs as much as one run for each factor
    prior, freedom = len(CORRECTED), max(len(runs) - len(CORRECTED), 0)
    deviation = float(np.sqrt(((left**2).sum() + prior * RESIDUAL_SD**2) / (freedom + prior)))
    factors = dict(zip(CORRECTED, found.x.tolist(), strict=True))
    scatter = _scatter_of_texts(timing, runs, factors)
    return Corrections(factors, deviation, *scatter, in_time=_shares_in_time(runs))


def _shares_in_time(runs: Sequence[SettingRuns]) -> dict[str, float]:
    counts: dict[str, list[int]] = {}
    for run in runs:
        if run.n_late is not None:
            known = counts.setdefault(str(run.setting.exit_layer), [1, 1])
            known[0] += int(run.n_matched.sum())
            known[1] += int(run.n_matched.sum() + run.n_late.sum())
    return {layer: matched / right for layer, (matched, right) in counts.items()}


def _scatter_of_texts(
    timing: Timing, runs: Sequence[SettingRuns], factors: Mapping[str, float]
) -> tuple[int, float, float]:
    """Number of texts, and their standard deviations: of means over settings, and of single runs.

    Each text's prediction is at its own realized match rate, so that only times scatter.
    """
    if not runs:
        return 0, TEXT_SD, RUN_SD
    expected = [predicted_ratio(timing, r.n_matched / r.n_tokens, r.setting, factors) for r in runs]
    logs = [np.log(r.ppd_s / r.plain_s / e) for r, e in zip(runs, expected, strict=True)]
    left = np.array([each - each.mean() for each in logs])  # [settings, texts]
    n = left.shape[1]

    def scatter(squares: np.ndarray, freedom: int, prior: float) -> float:
        total = squares.sum() + PRIOR_RUNS * prior**2
        return float(np.sqrt(total / (freedom + PRIOR_RUNS)))

    between = scatter(left.mean(0) ** 2, n - 1, TEXT_SD)
    return n, between, scatter(left**2, (n - 1) * len(runs), RUN_SD)


def predict(
    calibration: Calibration,
    timing: Timing,
    settings: Sequence[PpdSetting],
    n_prompts: int,
    corrections: Corrections,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Prediction]:
    """Predict every setting's ratio for as many other prompts, with 95% prediction intervals.

    The interval resamples the calibration's prompts twice, for its own error and for the prompts
    that will be run; the repetitions of the timing; the deviation that the corrections left; and
    the scatter of the texts' times, of the fitted and of the new texts.
    """
    rng = np.random.default_rng(seed)
    own = prompt_weights(len(calibration.prompt_ids), resamples, rng)
    chance = np.full(len(calibration.prompt_ids), 1 / len(calibration.prompt_ids))
    new = rng.multinomial(n_prompts, chance, size=resamples)
    draws = [resampled_timing(timing, rng) for _ in range(min(TIMING_DRAWS, resamples))]
    noise = corrections.noise(rng, n_prompts, resamples)
    found = []
    for setting in settings:
        place = (slice(None), setting.exit_layer - 1, setting.k - 1)
        hits = calibration.hits[place]
        p = float(calibration.p_correct[place[1:]])
        share = corrections.share_in_time(setting.exit_layer)
        spread = resampled_rates(hits, calibration.tokens, own) - p
        spread += resampled_rates(hits, calibration.tokens, new) - p
        rates = share * np.clip(p + spread, 0, 1)
        ratios = np.empty(resamples)
        for n, drawn in enumerate(draws):
            mine = slice(n, None, len(draws))
            ratios[mine] = predicted_ratio(drawn, rates[mine], setting, corrections.factors)
        low, high = percentiles(ratios * noise)
        ratio = float(predicted_ratio(timing, share * p, setting, corrections.factors))
        found.append(Prediction(setting, p, ratio, float(low), float(high), share * p))
    return found


def error_row(
    prediction: Prediction, runs: SettingRuns, timing: Timing, corrections: Corrections
) -> dict[str, Any]:
    """One setting's prediction and its runs; errors are predicted / measured - 1.

    `latency_part` is the error at the realized match rate, `match_part` the further error from
    predicting the match rate; their factors multiply to the error. Match rates count guesses that
    were right and in time, right rates late ones too, predicted and realized alike.
    """
    realized = predicted_ratio(timing, runs.match_rate, runs.setting, corrections.factors)
    p, setting = prediction.p_correct, prediction.setting
    ideal = float(normalized_latency(p, timing.layers, setting.exit_layer))
    return {
        "exit_layer": setting.exit_layer,
        "k": setting.k,
        "predicted": prediction.ratio,
        "ci_low": prediction.ci_low,
        "ci_high": prediction.ci_high,
        "measured": runs.ratio,
        "error": prediction.ratio / runs.ratio - 1,
        "match_part": prediction.ratio / realized - 1,
        "latency_part": realized / runs.ratio - 1,
        "error_uncalibrated": ideal / runs.ratio - 1,
        "predicted_match_rate": prediction.match_rate,
        "match_rate": runs.match_rate,
        "late_rate": runs.late_rate,
        "predicted_right_rate": p,
        "right_rate": None if runs.late_rate is None else runs.match_rate + runs.late_rate,
        "n_tokens": int(runs.n_tokens.sum()),
        "n_prompts": len(runs.n_tokens),
        "within": bool(prediction.ci_low <= runs.ratio <= prediction.ci_high),
    }


def errors_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and 90th percentile of the absolute errors, and the coverage of the intervals."""
    if not rows:
        return {"n_cells": 0}
    within = sum(bool(row["within"]) for row in rows)
    low, high = binomial_interval(within, len(rows))

    def absolute(name: str) -> np.ndarray:
        return np.abs([row[name] for row in rows])

    return {
        "n_cells": len(rows),
        "median_error": float(np.median(absolute("error"))),
        "p90_error": float(np.percentile(absolute("error"), 90)),
        "median_match_part": float(np.median(absolute("match_part"))),
        "median_latency_part": float(np.median(absolute("latency_part"))),
        "median_error_uncalibrated": float(np.median(absolute("error_uncalibrated"))),
        "within": within,
        "within_ci": [low, high],
    }


def binomial_interval(hits: int, n: int) -> tuple[float, float]:
    """The Clopper-Pearson 95% interval of a proportion.

    >>> tuple(round(x, 3) for x in binomial_interval(19, 20))
    (0.751, 0.999)
    """
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return low, high


def coverage_over_splits(
    calibration: Calibration,
    timing: Timing,
    runs: Sequence[SettingRuns],
    corrections: Corrections,
    *,
    splits: int = 40,
    seed: int = 0,
) -> dict[str, Any]:
    """Coverage of the intervals over random halves of the prompts.

    The halves overlap and settings share prompts, so the trials are not independent.
    """
    n = min(len(run.n_tokens) for run in runs)
    if n < 2:
        return {"within": 0, "n": 0}
    rng, half = np.random.default_rng(seed), n // 2
    settings = [run.setting for run in runs]
    predictions = predict(calibration, timing, settings, half, corrections, seed=seed)
    within = 0
    for _ in range(splits):
        chosen = rng.permutation(n)[:half].tolist()
        for prediction, run in zip(predictions, runs, strict=True):
            ratio = run.select(chosen).ratio
            within += prediction.ci_low <= ratio <= prediction.ci_high
    return {"within": int(within), "n": splits * len(runs), "splits": splits, "prompts": half}
