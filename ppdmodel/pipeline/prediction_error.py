"""Predicted against measured: corrections from one part of a grid, errors on the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

#: times that are corrected by a factor, which is held to 1 as by an observation with this deviation
CORRECTED = ("busy_layer_time", "batch_layer_time", "exit_time")
PRIOR_DEVIATION, NOISE = 0.05, 0.02
#: how far one text's runs lie from the others' together, and one run by itself: standard deviations
#: of logarithms, as if each had been seen `PRIOR_RUNS` times, since few texts say little of them
TEXT_SCATTER, RUN_SCATTER, PRIOR_RUNS = 0.03, 0.06, 3
RESAMPLES = 1000


@dataclass(frozen=True)
class Cell:
    """One setting of a grid."""

    exit_layer: int
    k: int

    @property
    def name(self) -> str:
        """A key for files: `e20-k3`."""
        return f"e{self.exit_layer}-k{self.k}"


@dataclass(frozen=True)
class CellRuns:
    """The real runs of one cell, a row per prompt.

    Attributes:
        cell: the setting.
        ppd_s: seconds of all tokens that count, [prompts].
        plain_s: seconds of as many tokens of plain decoding, just before and after, [prompts].
        n_tokens: tokens that count, [prompts].
        n_matched: of them, whose process had been started on a right guess, [prompts].
    """

    cell: Cell
    ppd_s: np.ndarray
    plain_s: np.ndarray
    n_tokens: np.ndarray
    n_matched: np.ndarray

    @classmethod
    def of_rows(cls, cell: Cell, rows: Sequence[Mapping[str, Any]]) -> CellRuns:
        """From the lines of `runs.jsonl`, a prompt each; those without tokens do not count."""
        rows = [row for row in rows if row["n_tokens"]]
        n = np.array([row["n_tokens"] for row in rows])
        return cls(
            cell=cell,
            ppd_s=np.array([row["ppd_s"] for row in rows]),
            plain_s=np.array([row["plain_per_token_s"] for row in rows]) * n,
            n_tokens=n,
            n_matched=np.array([row["n_matched"] for row in rows]),
        )

    @property
    def ratio(self) -> float:
        """PPD's latency over that of plain decoding."""
        return float(self.ppd_s.sum() / self.plain_s.sum())

    @property
    def match_rate(self) -> float:
        """Realized."""
        return float(self.n_matched.sum() / self.n_tokens.sum())

    def of(self, prompts: Sequence[int]) -> CellRuns:
        """Only some prompts, by their place."""
        rows = np.asarray(prompts)
        names = ("ppd_s", "plain_s", "n_tokens", "n_matched")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True)
class Corrections:
    """Factors of some times, fitted to real runs, and how far the runs lie from them.

    Attributes:
        factors: by name of the time.
        deviation: of cells: what the factors leave. This and the others are standard deviations of
            logarithms.
        n_texts: texts that the factors were fitted to; 0 takes them to be exact.
        text_scatter: of the mean of all cells, from one text to another.
        run_scatter: of single runs within a cell.
    """

    factors: Mapping[str, float]
    deviation: float
    n_texts: int = 0
    text_scatter: float = 0.0
    run_scatter: float = 0.0

    def noise(self, rng: np.random.Generator, n_texts: int, size: int) -> np.ndarray:
        """Draws of what a cell's ratio over `n_texts` other texts may be off by, [size].

        The factors are off by what the texts that they were fitted to are off by; and the texts to
        come scatter too.
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
    """What one cell should take, over plain decoding, before it is run."""

    cell: Cell
    p_correct: float
    ratio: float
    ci_low: float
    ci_high: float


def without(calibration: Calibration, prompt_ids: Sequence[str]) -> Calibration:
    """A calibration of the other prompts only.

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
    timing: Timing, p_correct: Any, cell: Cell, factors: Mapping[str, float]
) -> Any:
    """PPD's latency over plain decoding's, for a match rate or an array of them."""
    seconds = predicted_latency_s(timing, p_correct, cell.exit_layer, cell.k, factors)
    return seconds / predicted_plain_latency_s(timing)


def fit_corrections(timing: Timing, runs: Sequence[CellRuns]) -> Corrections:
    """Fit the factors to runs of some cells, at their realized match rates.

    Each factor is held near 1 by a prior, so that few or no runs leave the timing as it is.
    """

    def errors(factors: Any) -> Any:
        named = dict(zip(CORRECTED, factors, strict=True))
        made = [
            np.log(predicted_ratio(timing, r.match_rate, r.cell, named) / r.ratio) for r in runs
        ]
        return np.append(np.array(made) / NOISE, (factors - 1) / PRIOR_DEVIATION)

    found = least_squares(errors, np.ones(len(CORRECTED)), bounds=(0.5, 2.0))
    left = errors(found.x)[: len(runs)] * NOISE
    # as if NOISE had been seen as often as there are factors: few runs say little of it
    prior, freedom = len(CORRECTED), max(len(runs) - len(CORRECTED), 0)
    deviation = float(np.sqrt(((left**2).sum() + prior * NOISE**2) / (freedom + prior)))
    factors = dict(zip(CORRECTED, found.x.tolist(), strict=True))
    return Corrections(factors, deviation, *_scatter(timing, runs, factors))


def _scatter(
    timing: Timing, runs: Sequence[CellRuns], factors: Mapping[str, float]
) -> tuple[int, float, float]:
    """How many texts there are, and how far apart they lie: of their means, and of single runs.

    Each text is held against what its own matches let expect, so that only times scatter.
    """
    if not runs:
        return 0, TEXT_SCATTER, RUN_SCATTER
    expected = [predicted_ratio(timing, r.n_matched / r.n_tokens, r.cell, factors) for r in runs]
    logs = [np.log(r.ppd_s / r.plain_s / e) for r, e in zip(runs, expected, strict=True)]
    left = np.array([each - each.mean() for each in logs])  # [cells, texts]
    n = left.shape[1]

    def scatter(squares: np.ndarray, freedom: int, prior: float) -> float:
        total = squares.sum() + PRIOR_RUNS * prior**2
        return float(np.sqrt(total / (freedom + PRIOR_RUNS)))

    between = scatter(left.mean(0) ** 2, n - 1, TEXT_SCATTER)
    return n, between, scatter(left**2, (n - 1) * len(runs), RUN_SCATTER)


def predict(
    calibration: Calibration,
    timing: Timing,
    cells: Sequence[Cell],
    n_prompts: int,
    corrections: Corrections,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Prediction]:
    """Predict every cell's ratio for as many other prompts, with 95% prediction intervals.

    The interval resamples the calibration's prompts twice, for its own error and for the prompts
    that will be run; the repetitions of the timing; the deviation that the corrections left; and
    the scatter of the texts' times, of those that corrected and of those to come.
    """
    rng = np.random.default_rng(seed)
    own = prompt_weights(len(calibration.prompt_ids), resamples, rng)
    chance = np.full(len(calibration.prompt_ids), 1 / len(calibration.prompt_ids))
    new = rng.multinomial(n_prompts, chance, size=resamples)
    draws = [resampled_timing(timing, rng) for _ in range(50)]
    of_draw = np.arange(resamples) % len(draws)
    noise = corrections.noise(rng, n_prompts, resamples)
    found = []
    for cell in cells:
        place = (slice(None), cell.exit_layer - 1, cell.k - 1)
        hits = calibration.hits[place]
        p = float(calibration.p_correct[place[1:]])
        spread = resampled_rates(hits, calibration.tokens, own) - p
        spread += resampled_rates(hits, calibration.tokens, new) - p
        rates = np.clip(p + spread, 0, 1)
        ratios = np.empty(resamples)
        for n in range(min(len(draws), resamples)):
            mine = of_draw == n
            ratios[mine] = predicted_ratio(draws[n], rates[mine], cell, corrections.factors)
        low, high = percentiles(ratios * noise)
        ratio = float(predicted_ratio(timing, p, cell, corrections.factors))
        found.append(Prediction(cell, p, ratio, float(low), float(high)))
    return found


def judged(
    prediction: Prediction, runs: CellRuns, timing: Timing, corrections: Corrections
) -> dict[str, Any]:
    """One cell's prediction beside its runs; errors are predicted / measured - 1.

    The match part is what predicting the match rate adds to the error, the latency part what is
    left with the realized one. Realized are the guesses that were right and in time, over the
    tokens whose process could be guessed; the calibration counts right ones over all tokens.
    """
    realized = predicted_ratio(timing, runs.match_rate, runs.cell, corrections.factors)
    p, cell = prediction.p_correct, prediction.cell
    ideal = float(normalized_latency(p, timing.layers, cell.exit_layer))
    return {
        "exit_layer": cell.exit_layer,
        "k": cell.k,
        "predicted": prediction.ratio,
        "ci_low": prediction.ci_low,
        "ci_high": prediction.ci_high,
        "measured": runs.ratio,
        "error": prediction.ratio / runs.ratio - 1,
        "match_part": prediction.ratio / realized - 1,
        "latency_part": realized / runs.ratio - 1,
        "error_uncalibrated": ideal / runs.ratio - 1,
        "predicted_match_rate": p,
        "match_rate": runs.match_rate,
        "n_tokens": int(runs.n_tokens.sum()),
        "n_prompts": len(runs.n_tokens),
        "within": bool(prediction.ci_low <= runs.ratio <= prediction.ci_high),
    }


def errors_summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and 90th percentile of the absolute errors, and how many intervals held."""
    if not cells:
        return {"n_cells": 0}
    within = sum(bool(cell["within"]) for cell in cells)
    low, high = binomial_interval(within, len(cells))

    def absolute(name: str) -> np.ndarray:
        return np.abs([cell[name] for cell in cells])

    return {
        "n_cells": len(cells),
        "median_error": float(np.median(absolute("error"))),
        "p90_error": float(np.percentile(absolute("error"), 90)),
        "median_match_part": float(np.median(absolute("match_part"))),
        "median_latency_part": float(np.median(absolute("latency_part"))),
        "median_error_uncalibrated": float(np.median(absolute("error_uncalibrated"))),
        "within": within,
        "within_ci": [low, high],
    }


def binomial_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95% interval of Clopper and Pearson for a probability.

    >>> tuple(round(x, 3) for x in binomial_interval(19, 20))
    (0.751, 0.999)
    """
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return low, high


def coverage_over_splits(
    calibration: Calibration,
    timing: Timing,
    runs: Sequence[CellRuns],
    corrections: Corrections,
    *,
    splits: int = 40,
    seed: int = 0,
) -> dict[str, Any]:
    """How often the interval for a random half of the prompts held that half's ratio.

    The halves overlap and the cells share prompts: this describes, and is no sample of that size.
    """
    n = min(len(run.n_tokens) for run in runs)
    if n < 2:
        return {"within": 0, "n": 0}
    rng, half = np.random.default_rng(seed), max(n // 2, 1)
    cells = [run.cell for run in runs]
    predictions = predict(calibration, timing, cells, half, corrections, seed=seed)
    within = 0
    for _ in range(splits):
        chosen = rng.permutation(n)[:half].tolist()
        for prediction, run in zip(predictions, runs, strict=True):
            ratio = run.of(chosen).ratio
            within += prediction.ci_low <= ratio <= prediction.ci_high
    return {"within": int(within), "n": splits * len(runs), "splits": splits, "prompts": half}
