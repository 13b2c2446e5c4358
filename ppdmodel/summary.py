"""The summary of a measurement: what `summary.json` says of `tokens.parquet`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .io import MEASUREMENT, SCHEMA_VERSION, SUMMARY_K
from .resample import LEVEL, METHOD, percentiles, prompt_weights, resampled_rates
from .results import Measurement

RESAMPLES, SEED = 2000, 0


def summarize(result: Measurement) -> dict[str, Any]:
    """Count hits by exit layer and k, with intervals by resampling prompts.

    The intervals are None where there are fewer than two prompts.
    """
    tokens = result.tokens_by_prompt()
    hits = result.hits_by_prompt(SUMMARY_K)
    low = high = None
    if len(tokens) >= 2:
        weights = prompt_weights(len(tokens), RESAMPLES, SEED)
        low, high = percentiles(resampled_rates(hits, tokens, weights))
    return {
        "schema": MEASUREMENT,
        "schema_version": SCHEMA_VERSION,
        "complete": result.complete,
        "layers": result.layers,
        "n_tokens": result.n_tokens,
        "n_prompts": len(result.prompt_ids),
        "k_max": SUMMARY_K,
        "interval": {"method": METHOD, "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "provenance": dict(result.provenance),
        "ties": [dict(tie) for tie in result.ties],
        "prompts": [
            {"id": name, "category": category, "n_tokens": int(n)}
            for name, category, n in zip(result.prompt_ids, result.categories, tokens, strict=True)
        ],
        "hits": hits.sum(axis=0),
        "ci_low": None if low is None else np.round(low, 5),
        "ci_high": None if high is None else np.round(high, 5),
    }
