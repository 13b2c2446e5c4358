"""The summary of a measurement, `summary.json`, computed from `tokens.parquet`.

Everything in it is a ratio of counts summed over prompts, so batches are counted one at a time,
followed by the intervals over prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import MEASUREMENT, SCHEMA_VERSION
from .intervals import LEVEL, METHOD, RATE_METHOD, percentiles, prompt_weights, rate_ends
from .measurement import Measurement

if TYPE_CHECKING:
    from .._types import Floats, Ints

RESAMPLES, SEED = 2000, 0
#: largest k in the table of hits; the ranks in the Parquet file have no such limit
SUMMARY_K = 100
#: values of k with rates by category, autocorrelations and run lengths
DETAILED_K = (1, 3, 5, 10)
#: resamples at a time
_CHUNK = 100


def summarize(result: Measurement) -> dict[str, Any]:
    """Count hits by exit layer and k, with intervals over prompts.

    The intervals are None with fewer than two prompts.
    """
    tally = Tally()
    tally.add(result)
    return tally.summary(
        result.provenance, result.complete, result.ties, result.near_ties, result.repeated
    )


class Tally:
    """Counts of a measurement that add up over its batches, kept by prompt."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.categories: list[str] = []
        self._parts: list[dict[str, Ints]] = []

    def add(self, part: Measurement) -> None:
        """Count the tokens of some prompts; none may have been counted before."""
        self.ids += part.prompt_ids
        self.categories += part.categories
        counts = {"tokens": part.tokens_by_prompt(), "hits": _small(part.hits_by_prompt(SUMMARY_K))}
        counts |= {"matches": match_counts(part)}
        if part.coupled_rank is not None:
            coupled = part.coupled()
            counts["coupled"] = _small(coupled.hits_by_prompt(SUMMARY_K))
        self._parts.append(counts)

    def _all(self, name: str) -> Ints:
        return np.concatenate([part[name] for part in self._parts])

    def summary(
        self,
        provenance: Mapping[str, Any],
        complete: bool,
        ties: Sequence[Mapping[str, Any]],
        near_ties: Sequence[Mapping[str, Any]],
        repeated: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """The summary document of all counts so far."""
        tokens, hits, matches = self._all("tokens"), self._all("hits"), self._all("matches")
        document = {
            "schema": MEASUREMENT,
            "schema_version": SCHEMA_VERSION,
            "complete": complete,
            "layers": hits.shape[1],
            "n_tokens": int(tokens.sum()),
            "n_prompts": len(self.ids),
            "k_max": SUMMARY_K,
            "interval": {
                "method": RATE_METHOD,
                "matches": METHOD,
                "level": LEVEL,
                "resamples": RESAMPLES,
                "seed": SEED,
            },
            "provenance": dict(provenance),
            "ties": [dict(tie) for tie in ties],
            "near_ties": [dict(tie) for tie in near_ties],
            "repeated": [dict(text) for text in repeated],
            "prompts": [
                {"id": name, "category": category, "n_tokens": int(n)}
                for name, category, n in zip(self.ids, self.categories, tokens, strict=True)
            ],
            **_rates(hits, tokens),
        }
        if "coupled" in self._parts[0]:
            document["coupled"] = _rates(self._all("coupled"), tokens)
        document["by_category"] = self._by_category(hits, tokens)
        document["matches"] = _matches(matches)
        return document

    def _by_category(self, hits: Ints, tokens: Ints) -> list[dict[str, Any]]:
        """Hits of each category at `DETAILED_K`; none where there is one category only."""
        names = list(dict.fromkeys(self.categories))
        few = hits[:, :, [k - 1 for k in DETAILED_K]]
        rows = []
        for name in names if len(names) > 1 else []:
            mine = np.array([category == name for category in self.categories])
            about = {"category": name, "n_tokens": int(tokens[mine].sum())}
            about |= {"n_prompts": int(mine.sum()), "k": list(DETAILED_K)}
            rows.append(about | _rates(few[mine], tokens[mine]))
        return rows


def _small(counts: Ints) -> Ints:
    """Counts in the smallest sufficient type, as they are stored for every prompt."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _rates(hits: Ints, tokens: Ints) -> dict[str, Any]:
    """Total hits, and the intervals of their rates; None with fewer than two prompts."""
    low, high = (np.round(ends, 5) for ends in rate_ends(hits, tokens))
    known = (tokens > 0).sum() > 1
    ends = {"ci_low": low, "ci_high": high} if known else {"ci_low": None, "ci_high": None}
    return {"hits": hits.sum(axis=0, dtype=np.int64)} | ends


def _weights(n_prompts: int) -> Iterator[Floats]:
    """Yield the weights of `prompt_weights`, some resamples at a time."""
    rng = np.random.default_rng(SEED)
    for _ in range(0, RESAMPLES, _CHUNK):
        yield prompt_weights(n_prompts, _CHUNK, rng).astype(float)


def _total(weights: Floats, counts: Ints) -> Floats:
    return np.tensordot(weights, counts.astype(float), axes=1)


# ---------------------------------------------------------------- autocorrelation of matches


def match_counts(part: Measurement) -> Ints:
    """Counts from which autocorrelations and run lengths follow, [prompts, layers, k, 6].

    For each k of `DETAILED_K`: matches; pairs of successive tokens of one text; of these, those
    where both matched, where the first did, where the second did; and runs of matches.
    """
    first, owner, prompts = part.position == 0, part.prompt_index, len(part.prompt_ids)
    follows = ~first[1:, None]

    def by_prompt(flags: Any) -> Ints:
        """Flagged tokens, [prompts, layers]; a pair counts for the prompt of its second token."""
        mine = owner[len(owner) - len(flags) :]
        return np.stack([np.bincount(mine[flag], minlength=prompts) for flag in flags.T], axis=1)

    counts = []
    for k in DETAILED_K:
        matched = part.rank <= k
        pairs = np.broadcast_to(follows, (len(follows), part.layers))
        before, after = matched[:-1] & follows, matched[1:] & follows
        begins = matched.copy()
        begins[1:] &= ~before
        flags = (matched, pairs, before & after, before, after, begins)
        counts.append(np.stack([*map(by_prompt, flags)], axis=-1))
    return np.stack(counts, axis=2)


def _matches(counts: Ints) -> dict[str, Any]:
    """Lag-1 autocorrelation and mean run length of matches, by layer and k, with intervals."""
    whole = counts.sum(axis=0).astype(float)
    document: dict[str, Any] = {
        "k": list(DETAILED_K),
        "n_pairs": int(whole[0, 0, 1]),
        "n_runs": whole[:, :, 5].astype(int),
    }
    draws: dict[str, list[Floats]] = {"autocorrelation": [], "run_length": []}
    if len(counts) >= 2:
        for weights in _weights(len(counts)):
            total = _total(weights, counts)
            for name, values in _follow(total).items():
                draws[name].append(values)
    for name, values in _follow(whole).items():
        document[name] = np.round(values, 4)
        if draws[name]:
            low, high = percentiles(np.concatenate(draws[name]), len(counts))
            document |= {f"{name}_ci_low": np.round(low, 4), f"{name}_ci_high": np.round(high, 4)}
    return document


def _follow(counts: Floats) -> dict[str, Floats]:
    """Autocorrelation and run length of counts [..., 6]; NaN where undefined."""
    matches, pairs, both, before, after, runs = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = (before + after) / (2 * pairs)
        covariance = both / pairs - p * p
        return {
            "autocorrelation": np.where(p < 1, covariance / (p * (1 - p)), np.nan),
            "run_length": matches / runs,
        }
