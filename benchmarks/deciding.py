"""Times of fits and decisions against their limits, on counts of realistic size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ppdmodel import fit, optimize
from ppdmodel.fitting.calibrate import fit_counts
from ppdmodel.results.hit_counts import HitCounts
from ppdmodel.results.intervals import percentiles, prompt_weights, resampled_rates
from ppdmodel.results.measurement import Measurement

PROMPTS, TOKENS, ROUNDS = 100, 100, 3
#: a fit, and a decision, which evaluates every setting on each resample of all and of each fold
FIT_S, OPTIMIZE_S = 10.0, 10.0


def main() -> None:
    """Print seconds, and the share of a fit that the rates' intervals take."""
    measurement = made_up(layers=30)
    hits, tokens = measurement.hits_by_prompt(100), measurement.tokens_by_prompt()

    def intervals() -> Any:
        return percentiles(resampled_rates(hits, tokens, prompt_weights(PROMPTS, 1000, 0)))

    print(f"  30 layers, k to 100, {PROMPTS} prompts, 1000 resamples")
    print(f"    intervals of all rates: {seconds(intervals)} s, limit {FIT_S:g} s")
    whole = seconds(lambda: fit(measurement, k_max=100), rounds=1)
    print(f"    with three families of surfaces, chosen and refitted to each: {whole} s")
    large = made_up(layers=80)
    counts = replace(HitCounts.of(large, with_recorded=False), resamples=400)
    calibration = replace(fit_counts(counts, timing=None, family="rank tail"), resamples=1000)
    decided = seconds(lambda: optimize(calibration, max_depth=4))
    print(f"  80 layers, k to 32, depths 1 to 4: optimize in {decided} s, limit {OPTIMIZE_S:g} s")


def made_up(layers: int) -> Measurement:
    """Ranks that fall with the layer."""
    rng = np.random.default_rng(0)
    rows = PROMPTS * TOKENS
    p = 1 / (1 + np.exp(-(8 * np.arange(1, layers + 1) / layers - 5)))
    rank = np.minimum(rng.geometric(p, (rows, layers)), 200).astype(np.int32)
    rank[:, -1] = 1
    return Measurement(
        provenance={"model": "made up"},
        prompt_ids=tuple(f"p{n}" for n in range(PROMPTS)),
        categories=("made up",) * PROMPTS,
        prompt_index=np.repeat(np.arange(PROMPTS), TOKENS),
        turn=np.zeros(rows, dtype=np.int16),
        position=np.tile(np.arange(TOKENS), PROMPTS),
        token_id=np.zeros(rows, dtype=np.int32),
        rank=rank,
        top_prob=np.full((rows, layers), 0.5, dtype=np.float32),
        complete=True,
    )


def seconds(job: Callable[[], Any], rounds: int = ROUNDS) -> str:
    """Median of a few runs."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        job()
        taken.append(time.perf_counter() - start)
    return f"{statistics.median(taken):.2f}"
