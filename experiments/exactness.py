"""Whether real PPD makes the tokens of plain decoding and of Transformers' `generate`.

`python -m experiments.exactness EXITS`, a folder of trained exits of SmolLM2; writes
data/smollm2-135m-exactness.json. `--prompts` and `--tokens` with `--out` make a shorter run;
`--exit-layer` and `--k` another setting.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ppdmodel.measure import Sampling, default_prompts, load_exits, load_model, locate
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import Pipeline, PpdSetting
from ppdmodel.pipeline.decoding import first_difference
from ppdmodel.pipeline.options import RunOptions
from ppdmodel.pipeline.timing import timing_provenance
from ppdmodel.results.files import atomic

MODEL, PROMPTS, TOKENS = "smollm2-135m", 20, 128
#: tokens of the sampled texts, at most
SAMPLED = 32
SETTING = PpdSetting(exit_layer=20, k=5)
OUT = Path(__file__).parents[1] / "data" / "smollm2-135m-exactness.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exits", type=Path)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--exit-layer", type=int, default=SETTING.exit_layer)
    parser.add_argument("--k", type=int, default=SETTING.k)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    setting = PpdSetting(given.exit_layer, given.k)
    document = compared(given.model, given.exits, given.prompts, given.tokens, setting)
    with atomic(given.out) as part:
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def compared(
    model: str, folder: Path, n_prompts: int, tokens: int, setting: PpdSetting
) -> dict[str, object]:
    """Decode every prompt in every way and count the texts that differ."""
    source = locate(model)
    loaded, exits = load_model(source), load_exits(folder, source)
    ids = {p.id: loaded.encode([p.text]) for p in default_prompts()[:n_prompts]}
    rows: list[dict[str, object]] = []
    n_tokens, longest = 0, max(map(len, ids.values()))
    with Pipeline(
        loaded, prompt_tokens=longest, tokens=tokens, k=setting.k, exits=exits
    ) as pipeline:
        for name, given in ids.items():
            plain = pipeline.greedy(given, tokens).token_ids
            n_tokens += len(plain)
            made = generated(loaded, given, tokens)
            rows.append(row(loaded, name, given, "generate", made, plain))
            made = pipeline.ppd(given, tokens, setting).token_ids
            rows.append(row(loaded, name, given, setting.name, made, plain))
            same = sampled_alike(pipeline, name, given, min(tokens, SAMPLED), setting)
            rows.append({"prompt_id": name, "way": f"sampled-{setting.name}", "same": same})
            sys.stderr.write(f"{name}: {len(rows)} texts\n")
    return {
        "n_prompts": len(ids),
        "n_tokens": n_tokens,
        "n_texts": len(rows),
        "n_different": sum(not r["same"] for r in rows),
        "rows": rows,
        "provenance": timing_provenance(loaded, exits, pipeline.devices),
    }


def sampled_alike(
    pipeline: Pipeline, name: str, given: list[int], tokens: int, setting: PpdSetting
) -> bool:
    """Whether PPD samples the tokens that plain decoding samples."""
    options = RunOptions(sampling=Sampling(temperature=1.0, seed=1), prompt_id=name)
    drawn = pipeline.greedy(given, tokens, options).token_ids
    return pipeline.ppd(given, tokens, setting, options).token_ids == drawn


def row(
    loaded: LoadedModel,
    name: str,
    given: list[int],
    way: str,
    tokens: tuple[int, ...],
    plain: tuple[int, ...],
) -> dict[str, object]:
    """One text compared with the plain one: the first difference and its margin."""
    found = first_difference(loaded, given, tokens, plain)
    about = {"difference": asdict(found)} if found else {}
    return {"prompt_id": name, "way": way, "same": found is None} | about


def generated(loaded: LoadedModel, ids: list[int], tokens: int) -> tuple[int, ...]:
    """The tokens of Transformers' `generate`."""
    given = torch.tensor([ids])
    made = loaded.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=2,
    )
    return tuple(made[0, len(ids) :].tolist())


if __name__ == "__main__":
    main()
