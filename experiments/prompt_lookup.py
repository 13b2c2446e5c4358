"""Prompt lookup on the committed measurements: `python -m experiments.prompt_lookup`.

Writes `data/smollm2-135m-prompt-lookup.json`. Of prompt lookup decoding: the tokens of a round,
with the place that is taken and with the first one, as in Transformers, searched with the prompts
and without. Of PPD whose guesses are an exit's and the token that prompt lookup drafts: the match
rate at equal k, its gain over the exit's guesses alone, and the best setting's latency with either.

The committed measurements were made before prompts were recorded: they are tokenized again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ppdmodel import Measurement, load
from ppdmodel.decide.costs import LayerCosts
from ppdmodel.decide.methods import PpdSettings, best_methods, ppd
from ppdmodel.decide.selection import PromptSample, Rule, Selection
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import GenerationOptions, default_prompts, load_model, locate
from ppdmodel.measure.prompts import prompts_sha256
from ppdmodel.results.files import atomic, provenance
from ppdmodel.results.intervals import (
    METHOD,
    RATE_METHOD,
    Interval,
    interval_of,
    prompt_weights,
    rate_of,
    resampled_rates,
)
from ppdmodel.results.io import load_guesses
from ppdmodel.results.measurement import Guesses
from ppdmodel.results.prompt_lookup import LOOKED_UP, NGRAMS, joined_hits, lookup_rounds
from ppdmodel.results.summary import RESAMPLES, SEED

DATA = Path(__file__).parents[1] / "data"
MODEL = "smollm2-135m"
FOLDERS = {"logit": MODEL, "trained": f"{MODEL}-trained"}
OUT = DATA / f"{MODEL}-prompt-lookup.json"
#: k and relative depths to report, and the compute budget of the best setting
SHOWN_K, SHOWN_DEPTHS, MAX_COMPUTE = (1, 2, 3, 5, 8), (1 / 3, 1 / 2, 2 / 3, 4 / 5, 9 / 10), 2.0


def main() -> None:
    """Count, compare, write."""
    found: dict[str, Any] = {"rounds": [], "match_rates": [], "best": []}
    for exits, folder in FOLDERS.items():
        loaded = load(DATA / folder)
        assert isinstance(loaded, Measurement)
        measurement = with_contexts(loaded)
        if not found["rounds"]:  # the text is the same
            found["rounds"] = rounds(measurement)
        rates, best = joined(measurement, load_guesses(DATA / folder))
        found["match_rates"] += [{"exits": exits, **row} for row in rates]
        found["best"] += [{"exits": exits, **row} for row in best]
    document = {
        "what": "prompt lookup on recorded tokens: as a method, and beside the guesses of PPD",
        "model": MODEL,
        "made_by": "python -m experiments.prompt_lookup",
        "n_tokens": measurement.n_tokens,
        "n_prompts": len(measurement.prompt_ids),
        "interval": {"method": METHOD, "match_rates": RATE_METHOD, "resamples": RESAMPLES},
        "provenance": provenance(("numpy",)),
        **found,
    }
    with atomic(OUT) as part:
        part.write_text(written(document))
    sys.stdout.write(table(document) + "\n")


def written(document: dict[str, Any]) -> str:
    """The document as JSON, a line per row of its lists."""
    lists = ("rounds", "match_rates", "best")
    parts = [
        f'"{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in document[name]) + "\n ]"
        for name in lists
    ]
    head = json.dumps({k: v for k, v in document.items() if k not in lists}, indent=1)
    return head.removesuffix("\n}") + ",\n " + ",\n ".join(parts) + "\n}\n"


def with_contexts(measurement: Measurement) -> Measurement:
    """The measurement with what its model read, tokenized again.

    Raises:
        InvalidInputError: the installed model or the prompts are not those that were measured.
    """
    if measurement.context_ids is not None:
        return measurement
    source, prompts, about = locate(MODEL), default_prompts(), measurement.provenance
    known = {**source.provenance, "prompts_sha256": prompts_sha256(prompts)}
    for name in ("weights_sha256", "prompts_sha256"):
        if about[name] != known[name]:
            raise InvalidInputError(
                f"{name} must be that of the measurement; got {known[name]}; measure again"
            )
    read = GenerationOptions().encode(load_model(source), prompts)
    by_id = {prompt.id: ids for prompt, ids in zip(prompts, read, strict=True)}
    return replace(
        measurement,
        context_ids=tuple(np.array(by_id[name], dtype=np.int32) for name in measurement.prompt_ids),
    )


# ---------------------------------------------------------------- as a method of its own


def rounds(measurement: Measurement) -> list[dict[str, Any]]:
    """Tokens per round, and tokens verified per token, by what is searched."""
    tokens = measurement.tokens_by_prompt()
    weights = prompt_weights(len(tokens), RESAMPLES, SEED)
    rows = []
    for searched in ("prompt and text", "text"):
        one = measurement if "prompt" in searched else replace(measurement, context_ids=None)
        last, first = lookup_rounds(one), first_place_rounds(one)
        for row, n in enumerate(NGRAMS):
            for column, m in enumerate(LOOKED_UP):
                at = (slice(None), row, column)
                made = last[at].sum(axis=1)
                drafted = last[at] @ np.arange(last.shape[3])
                rows.append(
                    {
                        "searched": searched,
                        "n": n,
                        "drafted": m,
                        "tokens_per_round": per(tokens, made, weights),
                        "compute": per(made + drafted, tokens, weights),
                        "tokens_per_round_first_place": round(tokens.sum() / first[at].sum(), 4),
                    }
                )
    return rows


def first_place(ids: Sequence[int], n: int, m: int) -> list[int]:
    """What Transformers drafts: what follows the first place of the longest n-gram."""
    ids, end = list(ids), len(ids)
    for length in range(min(n, end - 1), 0, -1):
        for start in range(length, end):
            if ids[start - length : start] == ids[end - length :]:
                return ids[start : start + m]
    return []


def first_place_rounds(measurement: Measurement) -> Any:
    """Rounds with drafts from the first place, [prompts, n-grams, drafted]."""
    starts = measurement.starts()
    found = np.zeros((len(measurement.prompt_ids), len(NGRAMS), len(LOOKED_UP)), dtype=np.int64)
    for text, (start, end) in enumerate(pairwise(starts.tolist())):
        contexts = measurement.context_ids
        read = [] if contexts is None else contexts[text].tolist()
        made = measurement.token_id[start:end].tolist()
        for row, n in enumerate(NGRAMS):
            drafts = [first_place(read + made[:i], n, max(LOOKED_UP)) for i in range(len(made))]
            for column, m in enumerate(LOOKED_UP):
                place = 0
                while place < len(made):
                    draft, right = drafts[place][:m], 0
                    while right < min(len(draft), len(made) - place):
                        if draft[right] != made[place + right]:
                            break
                        right += 1
                    place += right + 1
                    found[measurement.prompt_index[start], row, column] += 1
    return found


def per(above: Any, below: Any, weights: Any) -> list[float]:
    """A ratio of sums over prompts with the ends of its interval."""
    return rounded(
        interval_of(above.sum() / below.sum(), resampled_rates(above, below, weights), below)
    )


# ---------------------------------------------------------------- beside the guesses of an exit


def joined(measurement: Measurement, guesses: Guesses) -> tuple[list[Any], list[Any]]:
    """Match rates with and without a draft among the guesses, and the best settings of both."""
    tokens, layers, k_max = measurement.tokens_by_prompt(), measurement.layers, max(SHOWN_K)
    weights = prompt_weights(len(tokens), RESAMPLES, SEED)
    alone = measurement.hits_by_prompt(k_max)
    rates: list[Any] = []
    best = [best_of(alone, tokens, "exit")]
    for n in NGRAMS:
        both = joined_hits(measurement, guesses, n)[:, :, :k_max]
        best.append(best_of(both, tokens, f"exit and n-grams of up to {n}"))
        for layer in dict.fromkeys(round(x * layers) for x in SHOWN_DEPTHS):
            for k in SHOWN_K:
                at = (slice(None), layer - 1, k - 1)
                rates.append(
                    {
                        "n": n,
                        "exit_layer": layer,
                        "k": k,
                        "exit": rounded(rate_of(alone[at], tokens)),
                        "joined": rounded(rate_of(both[at], tokens)),
                        "gain": per(both[at] - alone[at], tokens, weights),
                    }
                )
    return rates, best


def best_of(hits: Any, tokens: Any, guesses: str) -> dict[str, Any]:
    """The best setting within the budget, in layers, and its latency on held-out prompts."""
    costs = LayerCosts()
    space = PpdSettings(costs.grid(hits.shape[1], hits.shape[2], 1), costs, hits, tokens)
    selection = Selection(PromptSample(tokens, RESAMPLES, SEED), ppd(space))
    (method,) = best_methods(selection, [Rule(max_compute=MAX_COMPUTE)], "measured")
    assert method.held_out is not None
    return {
        "guesses": guesses,
        "max_compute": MAX_COMPUTE,
        "setting": method.setting,
        "latency": rounded(method.latency),
        "held_out": rounded(method.held_out),
    }


def rounded(found: Interval) -> list[float]:
    """A number and the ends of its interval."""
    return [round(x, 4) for x in (found.value, found.ci_low, found.ci_high)]


def table(document: dict[str, Any], n: int = 3) -> str:
    """Markdown: the tokens of a round, and the gain in match rate by exit layer and k."""
    lines = ["| drafted | " + " | ".join(map(str, LOOKED_UP)) + " |"]
    lines.append("|---" * (1 + len(LOOKED_UP)) + "|")
    for searched in ("prompt and text", "text"):
        mine = [r for r in document["rounds"] if r["searched"] == searched and r["n"] == n]
        cells = ("{:.2f} [{:.2f}, {:.2f}]".format(*row["tokens_per_round"]) for row in mine)
        lines.append(f"| {searched} | " + " | ".join(cells) + " |")
        cells = (f"{row['tokens_per_round_first_place']:.2f}" for row in mine)
        lines.append(f"| {searched}, first place | " + " | ".join(cells) + " |")
    for exits in FOLDERS:
        lines += ["", f"| {exits} exits, layer | " + " | ".join(f"k = {k}" for k in SHOWN_K) + " |"]
        lines.append("|---" * (1 + len(SHOWN_K)) + "|")
        mine = [r for r in document["match_rates"] if r["exits"] == exits and r["n"] == n]
        for layer in dict.fromkeys(row["exit_layer"] for row in mine):
            gains = [row["gain"] for row in mine if row["exit_layer"] == layer]
            cells = ("{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain) for gain in gains)
            lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    lines += ["", "| exits | guesses | best setting | latency, held out |", "|---|---|---|---|"]
    for row in document["best"]:
        cell = "{:.3f} [{:.3f}, {:.3f}]".format(*row["held_out"])
        lines.append(f"| {row['exits']} | {row['guesses']} | {row['setting']} | {cell} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
