"""Coverage of 95% intervals of a rate where the tokens of a prompt are alike.

`python -m experiments.coverage` writes `data/interval-coverage.json` and prints it as tables: how
often the interval that the package gives every match rate contains the true one, and for comparison
the percentile bootstrap over prompts, and Wilson's interval, which takes tokens for independent.

A prompt's own rate is drawn from a beta distribution about p, of the variance that gives its tokens
an intra-class correlation; the correlations span those of the committed measurements, which the
file holds too. Lengths are equal, or lognormal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from ppdmodel import Measurement, load
from ppdmodel.results.files import atomic, provenance
from ppdmodel.results.intervals import percentiles, prompt_weights, rate_ends
from ppdmodel.results.token_counts import second_half

DATA = Path(__file__).parents[1] / "data"
OUT = DATA / "interval-coverage.json"
MEASUREMENTS = (
    "smollm2-135m", "smollm2-135m-trained", "smollm2-135m-sampled", "gemma3-270m",
    "gemma3-270m-trained",
)  # fmt: skip
#: guesses for which correlations are measured, at the exits of the second half of the layers
MEASURED_K = (1, 3, 5, 10)
RATES = (0.05, 0.5, 0.9)
CORRELATIONS = (0.02, 0.05, 0.1, 0.15)
#: prompts for which the coverage is to be right, and fewer
PROMPTS, FEW = (12, 24, 60), (2, 3, 5, 8)
#: mean length of equal texts; median and standard deviation of the logarithm of unequal ones
TOKENS, MEDIAN, SPREAD = 128, 100, 0.8
#: what the coverage is to lie within
LEAST, MOST = 0.93, 0.97
BATCHES, PER_BATCH, RESAMPLES = 100, 100, 400


def intraclass_correlation(hits: Any, tokens: Any) -> Any:
    """Correlation of two tokens of one prompt, from hits [prompts, ...] and tokens [prompts].

    The analysis-of-variance estimator for groups of unequal size; NaN without hits or misses.

    Source:
        Donner (1986), A Review of Inference Procedures for the Intraclass Correlation Coefficient,
        International Statistical Review 54(1).
    """
    n, total = len(tokens), tokens.sum()
    t = tokens.reshape(n, *[1] * (hits.ndim - 1))
    rates, rate = hits / t, hits.sum(0) / total
    between = (t * (rates - rate) ** 2).sum(0) / (n - 1)
    within = (t * rates * (1 - rates)).sum(0) / (total - n)
    size = (total - (tokens**2).sum() / total) / (n - 1)
    with np.errstate(invalid="ignore"):
        return (between - within) / (between + (size - 1) * within)


def measured_correlations(name: str) -> dict[str, Any]:
    """Correlations of a committed measurement, over exits of the second half and some k."""
    found = load(DATA / name)
    assert isinstance(found, Measurement)
    hits = found.hits_by_prompt(max(MEASURED_K))[:, second_half(found.layers) - 1 : -1]
    each = intraclass_correlation(hits[:, :, np.array(MEASURED_K) - 1], found.tokens_by_prompt())
    low, middle, high = np.percentile(each, [5, 50, 95])
    return {
        "measurement": name,
        "prompts": len(found.prompt_ids),
        "p5": round(float(low), 4),
        "median": round(float(middle), 4),
        "p95": round(float(high), 4),
        "largest": round(float(each.max()), 4),
    }


def lengths_of(kind: str, prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each prompt."""
    if kind == "equal":
        return np.full(prompts, TOKENS)
    return np.maximum(1, rng.lognormal(np.log(MEDIAN), SPREAD, prompts).round()).astype(np.int64)


def drawn(
    p: float, correlation: float, tokens: np.ndarray, rng: np.random.Generator, n: int = PER_BATCH
) -> np.ndarray:
    """Hits [prompts, n] of n measurements of texts of the same lengths."""
    strength = 1 / correlation - 1
    rates = rng.beta(p * strength, (1 - p) * strength, (len(tokens), n))
    return rng.binomial(tokens[:, None], rates)


def coverage(
    p: float, prompts: int, correlation: float, lengths: str, *, batches: int = BATCHES
) -> dict[str, Any]:
    """Coverage of p by each interval, and the mean width of the package's."""
    rng = np.random.default_rng([prompts, round(1000 * p), round(1000 * correlation), len(lengths)])
    held: dict[str, list[np.ndarray]] = {"coverage": [], "bootstrap": [], "wilson": []}
    widths = []
    for _ in range(batches):
        tokens = lengths_of(lengths, prompts, rng)
        hits = drawn(p, correlation, tokens, rng)
        weights = prompt_weights(prompts, RESAMPLES, rng).astype(float)
        ends = {
            "coverage": rate_ends(hits, tokens),
            "bootstrap": percentiles((weights @ hits) / (weights @ tokens)[:, None]),
            "wilson": wilson(hits.sum(0), tokens.sum()),
        }
        for name, (low, high) in ends.items():
            held[name].append((low <= p) & (p <= high))
        widths.append(np.subtract(*ends["coverage"][::-1]))
    n = batches * PER_BATCH
    shares = {name: float(np.mean(each)) for name, each in held.items()}
    share = shares["coverage"]
    return {
        "p_correct": p,
        "prompts": prompts,
        "correlation": correlation,
        "lengths": lengths,
        "n": n,
        **shares,
        "standard_error": round(float(np.sqrt(share * (1 - share) / n)), 5),
        "width": round(float(np.mean(widths)), 5),
    }


def wilson(hits: Any, n: Any) -> tuple[Any, Any]:
    """Wilson's interval for a rate of independent tokens."""
    z = norm.ppf(0.975)
    p = hits / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def table(rows: Sequence[Mapping[str, Any]], prompts: Sequence[int]) -> str:
    """A Markdown table of coverages, those outside the limits in bold."""
    kinds = dict.fromkeys(row["lengths"] for row in rows)
    columns = [(kind, n) for kind in kinds for n in prompts]
    found = {
        (row["p_correct"], row["correlation"], row["lengths"], row["prompts"]): row["coverage"]
        for row in rows
    }
    lines = [
        "| p_correct | correlation | " + " | ".join(f"{n}, {kind}" for kind, n in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for p, correlation in dict.fromkeys((row["p_correct"], row["correlation"]) for row in rows):
        cells = [_cell(found[p, correlation, *column]) for column in columns]
        lines.append(f"| {p:g} | {correlation:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(share: float) -> str:
    return f"{share:.3f}" if LEAST <= round(share, 3) <= MOST else f"**{share:.3f}**"


def main() -> None:
    """Measure the correlations, simulate all, write and print the tables."""
    rows = [
        coverage(p, prompts, correlation, lengths)
        for p in RATES
        for correlation in CORRELATIONS
        for lengths in ("equal", "lognormal")
        for prompts in FEW + PROMPTS
    ]
    measured = [measured_correlations(name) for name in MEASUREMENTS]
    document = {
        "settings": {
            "tokens": TOKENS,
            "lognormal": {"median": MEDIAN, "log_deviation": SPREAD},
            "resamples": RESAMPLES,
        },
        "measured_correlations": measured,
        "provenance": provenance(("numpy", "scipy")),
        "rows": [],
    }
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    with atomic(OUT) as part:
        head = json.dumps(document, indent=1)
        part.write_text(head.replace('"rows": []', f'"rows": [\n  {lines}\n ]') + "\n")
    sys.stdout.write(table(rows, PROMPTS) + "\n\n" + table(rows, FEW) + "\n")


if __name__ == "__main__":
    main()
