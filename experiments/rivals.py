"""PPD and its rivals on the same engine, the same prompts and tokens: which one is fastest here?

`python -m experiments.rivals EXITS`, a folder of trained exits of SmolLM2; writes
data/smollm2-135m-rivals.json, or with `--dtype bfloat16` data/smollm2-135m-rivals-bfloat16.json.

On a few prompts every setting of every method is run, and the fastest of each method is chosen;
what it gave there is written to the file before it is judged. Then the chosen ones are run on other
prompts, plain decoding before and after each, and compared with the mean of the two.
No prompt that is judged has trained the exits or chosen a setting.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppdmodel.measure import default_prompts, load_exits, load_model, locate
from ppdmodel.pipeline import Pipeline, PpdSetting
from ppdmodel.pipeline.options import PromptLookup, RunOptions, SelfSpeculation
from ppdmodel.pipeline.timing import timing_provenance
from ppdmodel.pipeline.worker_pool import Run
from ppdmodel.results.files import atomic
from ppdmodel.results.intervals import percentiles

MODEL = "smollm2-135m"
CHOOSING, JUDGING, TOKENS = 2, 14, 48
#: exit layers and k; the last guess of the second kind is by prompt lookup
PPD = ((22, 3), (24, 3), (24, 4), (26, 1), (26, 3), (26, 4))
PPD_AND_LOOKUP = ((20, 3), (22, 3), (24, 4))
SELF_SPECULATION = ((24, 1), (26, 1), (26, 2))
LOOKUP = (2, 3, 4, 6)
NGRAM = 3
RESAMPLES, SEED = 10_000, 0
DATA = Path(__file__).parents[1] / "data"
ENDLESS = RunOptions(stops=False)
Way = Callable[[Sequence[int], int], Run]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, choose, judge, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exits", type=Path)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--choosing", type=int, default=CHOOSING)
    parser.add_argument("--judging", type=int, default=JUDGING)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    short = "" if given.dtype == "float32" else f"-{given.dtype}"
    out = given.out or DATA / f"{given.model}-rivals{short}.json"
    source = locate(given.model)
    loaded, exits = load_model(source, given.dtype), load_exits(given.exits, source)
    prompts = default_prompts()[: given.choosing + given.judging]
    ids = {prompt.id: loaded.encode([prompt.text]) for prompt in prompts}
    names = list(ids)
    choosing, judging = names[: given.choosing], names[given.choosing :]
    with Pipeline(
        loaded,
        prompt_tokens=max(map(len, ids.values())),
        tokens=given.tokens,
        k=max(k for _, k in (*PPD, *PPD_AND_LOOKUP)),
        exits=exits,
    ) as pipeline:
        ways = methods(pipeline, sorted(exits.maps))
        tried = {
            method: {
                name: runs(pipeline, {name: way}, {p: ids[p] for p in choosing}, given.tokens)
                for name, way in settings.items()
            }
            for method, settings in ways.items()
        }
        chosen = {method: best(found) for method, found in tried.items()}
        document: dict[str, Any] = {
            "what": "times as fast as plain decoding on one core; plain decoding runs before and "
            "after each, and its mean is compared",
            "made_by": f"python -m experiments.rivals EXITS --dtype {given.dtype}",
            "tokens": given.tokens,
            "chosen_on": choosing,
            "judged_on": judging,
            "tried": {
                method: {name: round(middle(rows), 4) for name, rows in found.items()}
                for method, found in tried.items()
            },
            "chosen": chosen,
            "provenance": timing_provenance(loaded, exits, pipeline.devices),
        }
        write(out, {**document, "judged": None})
        judged = {method: ways[method][name] for method, name in chosen.items()}
        rows = runs(pipeline, judged, {p: ids[p] for p in judging}, given.tokens)
    document["judged"] = {method: verdict(rows, method) for method in judged}
    write(out, {**document, "rows": rows})
    sys.stdout.write(table(document) + "\n")


def methods(pipeline: Pipeline, layers: Sequence[int]) -> dict[str, dict[str, Way]]:
    """Every setting of every method; those of exits where there is a trained map."""

    def ppd(exit_layer: int, k: int, ngrams: int = 0) -> Way:
        setting = PpdSetting(exit_layer, k, ngrams=ngrams)
        return lambda ids, n: pipeline.ppd(ids, n, setting, ENDLESS)

    def drafted(drafts: SelfSpeculation | PromptLookup, split: bool) -> Way:
        return lambda ids, n: pipeline.drafted(ids, n, drafts, ENDLESS, split=split)

    found: dict[str, dict[str, Way]] = {
        "PPD": {f"exit {e}, k = {k}": ppd(e, k) for e, k in PPD if e in layers},
        "PPD, a guess by prompt lookup": {
            f"exit {e}, k = {k}": ppd(e, k, NGRAM) for e, k in PPD_AND_LOOKUP if e in layers
        },
        "tensor parallelism": {"": lambda ids, n: pipeline.greedy_split(ids, n, ENDLESS)},
    }
    for split, suffix in ((False, ""), (True, ", tensor parallel")):
        found["self-speculation" + suffix] = {
            f"exit {e}, {m} drafts": drafted(SelfSpeculation(e, m), split)
            for e, m in SELF_SPECULATION
            if e in layers
        }
        found["prompt lookup" + suffix] = {
            f"{m} drafts": drafted(PromptLookup(NGRAM, m), split) for m in LOOKUP
        }
    return {method: settings for method, settings in found.items() if settings}


def runs(
    pipeline: Pipeline, ways: Mapping[str, Way], prompts: Mapping[str, Sequence[int]], tokens: int
) -> list[dict[str, Any]]:
    """A row per prompt and method, in turn, with plain decoding between every two runs."""

    def each() -> Iterator[dict[str, Any]]:
        for number, (prompt, ids) in enumerate(prompts.items()):
            plain = pipeline.greedy(ids, tokens, ENDLESS)
            order = np.random.default_rng(number).permutation(list(ways))
            for name in map(str, order):
                run = ways[name](ids, tokens)
                after = pipeline.greedy(ids, tokens, ENDLESS)
                between = (plain.times_s.mean() + after.times_s.mean()) / 2
                yield {
                    "prompt_id": prompt,
                    "method": name,
                    "ms": round(1e3 * float(run.times_s.mean()), 3),
                    "plain_ms": round(1e3 * float(between), 3),
                    "ratio": round(float(between / run.times_s.mean()), 4),
                    "matched": round(float(run.matches.mean()), 4),
                    "same": run.token_ids == plain.token_ids,
                }
                sys.stderr.write(f"{prompt}: {name} {between / run.times_s.mean():.3f}\n")
                plain = after

    return list(each())


def middle(rows: Sequence[Mapping[str, Any]]) -> float:
    """The median ratio."""
    return float(np.median([row["ratio"] for row in rows]))


def best(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The setting of the largest mean ratio."""
    return max(found, key=lambda name: np.mean([row["ratio"] for row in found[name]]))


def verdict(rows: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """Median over the prompts with its 95% interval by resampling them, and what was the same."""
    mine = [row for row in rows if row["method"] == method]
    ratios = np.array([row["ratio"] for row in mine])
    rng = np.random.default_rng(SEED)
    medians = np.median(rng.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = percentiles(medians)
    return {
        "ratio": [round(float(x), 4) for x in (np.median(ratios), low, high)],
        "ms": round(float(np.median([row["ms"] for row in mine])), 2),
        "plain_ms": round(float(np.median([row["plain_ms"] for row in mine])), 2),
        "matched": round(float(np.mean([row["matched"] for row in mine])), 4),
        "n_prompts": len(mine),
        "n_same": sum(row["same"] for row in mine),
    }


def write(out: Path, document: Mapping[str, Any]) -> None:
    """Write the result so far, whole."""
    with atomic(out) as part:
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(document: Mapping[str, Any]) -> str:
    """A Markdown table: a row per method, the fastest first."""
    lines = [
        "| method | setting | times as fast as plain decoding | ms per token | plain, ms | "
        "tokens matched or accepted | same texts |",
        "|---|---|---|---|---|---|---|",
    ]
    judged = document["judged"]
    for name in sorted(judged, key=lambda method: -judged[method]["ratio"][0]):
        row, (ratio, low, high) = judged[name], judged[name]["ratio"]
        lines.append(
            f"| {name} | {document['chosen'][name]} | {ratio:.2f} [{low:.2f}, {high:.2f}] | "
            f"{row['ms']:.1f} | {row['plain_ms']:.1f} | {row['matched']:.2f} | "
            f"{row['n_same']} of {row['n_prompts']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
