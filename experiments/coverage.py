"""Coverage of 95% intervals where the tokens of a prompt are correlated.

`python -m experiments.coverage` writes `data/interval-coverage.json`: the bootstrap over prompts
that the package uses for every interval, and Wilson's interval, which assumes independent
tokens.

A prompt's own rate is drawn from a beta distribution about p, and its matches are a two-state
Markov chain at that rate; lengths are those of texts that end early.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from ppdmodel.results.files import atomic, provenance
from ppdmodel.results.intervals import percentiles, prompt_weights

OUT = Path(__file__).parents[1] / "data" / "interval-coverage.json"
RATES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
PROMPTS = (24, 60, 72, 120)
#: share of the variance of a match that lies between prompts, and lag-1 autocorrelation within one
BETWEEN, AUTOCORRELATION = 0.02, 0.1
MOST_TOKENS, ENDS_EARLY = 128, 0.25
BATCHES, PER_BATCH, RESAMPLES = 40, 100, 1000


def drawn(
    p: float, prompts: int, rng: np.random.Generator, n: int = PER_BATCH
) -> tuple[np.ndarray, np.ndarray]:
    """Hits [prompts, n] and tokens [prompts] of n measurements of texts of the same lengths."""
    ends = rng.random(prompts) < ENDS_EARLY
    tokens = np.where(ends, rng.integers(20, MOST_TOKENS, prompts), MOST_TOKENS)
    strength = 1 / BETWEEN - 1
    rate = rng.beta(p * strength, (1 - p) * strength, (prompts, n))
    hits = np.zeros((prompts, n), dtype=np.int64)
    before = rng.random((prompts, n)) < rate
    for place in range(MOST_TOKENS):
        hits += before & (place < tokens)[:, None]
        chance = rate + AUTOCORRELATION * (before - rate)
        before = rng.random((prompts, n)) < chance
    return hits, tokens


def coverage(p: float, prompts: int, batches: int = BATCHES, seed: int = 0) -> dict[str, Any]:
    """Coverage of p by each interval, and the mean widths."""
    rng = np.random.default_rng([seed, prompts, round(1000 * p)])
    held, wilson_held, widths, wilson_widths = [], [], [], []
    for _ in range(batches):
        hits, tokens = drawn(p, prompts, rng)
        weights = prompt_weights(prompts, RESAMPLES, rng)
        low, high = percentiles((weights @ hits) / (weights @ tokens)[:, None])
        held.append((low <= p) & (p <= high))
        widths.append(high - low)
        low, high = wilson(hits.sum(0), tokens.sum())
        wilson_held.append((low <= p) & (p <= high))
        wilson_widths.append(high - low)
    n = batches * PER_BATCH
    share = float(np.mean(held))
    return {
        "p_correct": p,
        "prompts": prompts,
        "n": n,
        "coverage": share,
        "standard_error": float(np.sqrt(share * (1 - share) / n)),
        "width": float(np.mean(widths)),
        "wilson_coverage": float(np.mean(wilson_held)),
        "wilson_width": float(np.mean(wilson_widths)),
    }


def wilson(hits: Any, n: Any) -> tuple[Any, Any]:
    """Wilson's interval for a rate of independent tokens."""
    z = norm.ppf(0.975)
    p = hits / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def main() -> None:
    """Simulate all and write the table."""
    rows = [coverage(p, prompts) for prompts in PROMPTS for p in RATES]
    about = {"between_prompts": BETWEEN, "autocorrelation": AUTOCORRELATION, "resamples": RESAMPLES}
    head = json.dumps(
        {"settings": about, "provenance": provenance(("numpy",)), "rows": []}, indent=1
    )
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    with atomic(OUT) as part:
        part.write_text(head.replace('"rows": []', f'"rows": [\n  {lines}\n ]') + "\n")
    for row in rows:
        print(  # noqa: T201
            f"{row['prompts']:4} prompts, p = {row['p_correct']:.2f}: {row['coverage']:.3f} "
            f"(Wilson {row['wilson_coverage']:.3f})"
        )


if __name__ == "__main__":
    main()
