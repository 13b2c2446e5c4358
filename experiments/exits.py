"""Trained exits against the logit exit, by training tokens: `python -m experiments.exits MODEL`.

Trains on 144 prompts, measures on the 72 others, and writes `MODEL-trained/`, the measurement with
exits trained on all of them, and `MODEL-exits.json`: match rates by number of training tokens, with
intervals, and the gain over the logit exit on the same tokens. States, exits and the other
measurements go to results/exits, and are reused. With --again only the intervals are made again, of
the measurements in data/: rows with fewer training tokens keep their rates of trained exits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from ppdmodel import Measurement, load
from ppdmodel.measure import (
    GenerationOptions,
    HardwareOptions,
    TrainingOptions,
    default_prompts,
    load_exits,
    load_model,
    locate,
    measure,
    training_prompts,
)
from ppdmodel.measure.models.sources import ModelSource
from ppdmodel.measure.training.train import Trainer, text_settings
from ppdmodel.results.files import atomic
from ppdmodel.results.intervals import (
    METHOD,
    RATE_METHOD,
    Interval,
    interval_of,
    prompt_weights,
    rate_of,
    resampled_rates,
)
from ppdmodel.results.summary import RESAMPLES, SEED

DATA, SCRATCH = Path(__file__).parents[1] / "data", Path("results") / "exits"
#: training tokens, of whole prompts, beside all of them
TOKENS = (1280, 2560)
#: values of k, and relative depths of the layers to report
SHOWN_K, SHOWN_DEPTHS = (1, 3, 5, 10), (1 / 3, 1 / 2, 2 / 3, 4 / 5, 9 / 10)


def main() -> None:
    """Train, measure, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    logit = measured(arguments.model)
    if arguments.again:
        old = json.loads((DATA / f"{arguments.model}-exits.json").read_text("utf-8"))
        write(logit, remade(old, logit, measured(f"{arguments.model}-trained")))
        return
    source = locate(arguments.model)
    folders = trained(source, [None, *arguments.tokens], arguments.raw, arguments.threads)
    rows = []
    for tokens, exits in folders.items():
        whole = tokens is None
        out = DATA / f"{arguments.model}-trained" if whole else SCRATCH / f"{exits.name}-measured"
        with_exits = measure(
            source,
            default_prompts(),
            out,
            exits=load_exits(exits, source),
            generation=GenerationOptions(raw=arguments.raw),
            hardware=HardwareOptions(n_threads=arguments.threads),
            guesses=whole and not arguments.raw,
        )
        rows += compared(logit, with_exits)
    command = " ".join(["python -m experiments.exits", *sys.argv[1:]])
    write(logit, {"rows": rows, "made_by": command})


def measured(name: str) -> Measurement:
    """A measurement in data/."""
    found = load(DATA / name)
    assert isinstance(found, Measurement)
    return found


def remade(
    document: Mapping[str, Any], logit: Measurement, with_exits: Measurement
) -> dict[str, Any]:
    """A document with rows of its committed measurements made again.

    Of exits with fewer training tokens only the logit exit's rates are, and the document says how
    the other intervals were made.
    """
    rows = compared(logit, with_exits)
    of_logit = {(row["exit_layer"], row["k"]): row["logit"] for row in rows}
    size = rows[0]["training_tokens"]
    kept = [
        {**row, "logit": of_logit[row["exit_layer"], row["k"]]}
        for row in document["rows"]
        if row["training_tokens"] != size
    ]
    found = {"rows": rows + kept, "made_by": document["made_by"]}
    words = f"{METHOD}, not widened, of rates and gains of exits with fewer than {size} tokens"
    return found | ({"kept": words} if kept else {})


def write(logit: Measurement, about: Mapping[str, Any]) -> None:
    """Write the rows, and print their table."""
    model = logit.provenance["model"]
    rows = sorted(about["rows"], key=itemgetter("training_tokens"))
    document = {
        "what": "match rates of trained exits on prompts that neither trained nor chose them",
        "model": model,
        "made_by": about["made_by"],
        "n_tokens": logit.n_tokens,
        "n_prompts": len(logit.prompt_ids),
        "interval": {
            "method": RATE_METHOD,
            "gain": METHOD,
            "level": 0.95,
            "resamples": RESAMPLES,
            "seed": SEED,
            **({"kept": about["kept"]} if "kept" in about else {}),
        },
        "rows": rows,
    }
    with atomic(DATA / f"{model}-exits.json") as part:
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        head = json.dumps({**document, "rows": []}, indent=1)
        part.write_text(head.replace('"rows": []', f'"rows": [\n  {lines}\n ]') + "\n")
    sys.stdout.write(table(document) + "\n")


def trained(
    source: ModelSource, numbers: Sequence[int | None], raw: bool, n_threads: int
) -> dict[int | None, Path]:
    """Folders of exits, by number of training tokens; one collection of states serves all."""
    home = SCRATCH / source.name
    folders = {tokens: home.with_name(f"{source.name}-{tokens or 'all'}") for tokens in numbers}
    if all((folder / "exits.json").is_file() for folder in folders.values()):
        return folders
    prompts, generation = training_prompts(), GenerationOptions(batch_size=24, raw=raw)
    settings = text_settings(source, prompts, generation) | {"objective": "ridge"}
    with HardwareOptions(n_threads=n_threads).threads():
        trainer = Trainer(load_model(source), prompts, settings)
        trainer.collect(home / "states", generation)
        for tokens, folder in folders.items():
            if not (folder / "exits.json").is_file():
                trainer.train(folder, TrainingOptions(max_tokens=tokens))
                shutil.rmtree(folder / ".unfinished", ignore_errors=True)
    return folders


def compared(logit: Measurement, with_exits: Measurement) -> list[dict[str, Any]]:
    """Rates of both, and the gain, which is paired: the tokens are the same."""
    assert logit.token_id.tolist() == with_exits.token_id.tolist()
    tokens = logit.tokens_by_prompt()
    weights = prompt_weights(len(tokens), RESAMPLES, SEED)
    about = with_exits.provenance["exits"]
    rows = []
    for layer in dict.fromkeys(round(x * logit.layers) for x in SHOWN_DEPTHS):
        for k in SHOWN_K:
            before, after = (m.hits_by_prompt_at(layer, k) for m in (logit, with_exits))
            rows.append(
                {
                    "training_tokens": about["n_tokens"],
                    "training_prompts": about["n_prompts"],
                    "exit_layer": layer,
                    "k": k,
                    "logit": rounded(rate_of(before, tokens)),
                    "trained": rounded(rate_of(after, tokens)),
                    "gain": gain(after - before, tokens, weights),
                }
            )
    return rows


def gain(hits: Any, tokens: Any, weights: Any) -> Sequence[float]:
    """The difference of two rates and the ends of its interval."""
    draws = resampled_rates(hits, tokens, weights)
    return rounded(interval_of(hits.sum() / tokens.sum(), draws, tokens))


def rounded(found: Interval) -> Sequence[float]:
    """A number and the ends of its interval."""
    return [round(x, 4) for x in (found.value, found.ci_low, found.ci_high)]


def table(document: Mapping[str, Any], k: int = 5) -> str:
    """A Markdown table of the match rates at one k, a row per layer."""
    rows = [row for row in document["rows"] if row["k"] == k]
    sizes = sorted({row["training_tokens"] for row in rows})
    lines = [
        "| exit layer | logit exit | " + " | ".join(f"{n} tokens" for n in sizes) + " |",
        "|---|---|" + "---|" * len(sizes),
    ]
    for layer in dict.fromkeys(row["exit_layer"] for row in rows):
        mine = [row for row in rows if row["exit_layer"] == layer]
        rates = [mine[0]["logit"], *(row["trained"] for row in mine)]
        cells = " | ".join(f"{p:.3f} [{low:.3f}, {high:.3f}]" for p, low, high in rates)
        lines.append(f"| {layer} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
