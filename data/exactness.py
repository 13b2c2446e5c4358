"""Whether real PPD makes the tokens of plain decoding and of Transformers' `generate`.

`python data/exactness.py EXITS`, a folder of trained exits of SmolLM2; writes
data/smollm2-135m-exactness.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ppdmodel.files import atomic
from ppdmodel.measure import (
    Pipeline,
    Sampling,
    default_prompts,
    load_exits,
    load_model,
    locate,
)
from ppdmodel.measure.models import LoadedModel
from ppdmodel.measure.pipeline.decoding import first_difference
from ppdmodel.measure.pipeline.timing import timing_provenance

MODEL, PROMPTS, TOKENS = "smollm2-135m", 20, 128
#: exit layer, k, and whether guesses run one by one
SETTINGS = ((20, 5, False),)
OUT = Path(__file__).parent / "smollm2-135m-exactness.json"


def main(folder: Path) -> None:
    """Decode every prompt in every way and count the texts that differ."""
    source = locate(MODEL)
    loaded, exits = load_model(source), load_exits(folder, source)
    prompts = default_prompts()[:PROMPTS]
    ids = {prompt.id: loaded.encode([prompt.text]) for prompt in prompts}
    rows: list[dict[str, object]] = []
    n_tokens = 0
    with Pipeline(
        loaded, prompt_tokens=max(map(len, ids.values())), tokens=TOKENS, k=5, exits=exits
    ) as pipeline:
        for name, given in ids.items():
            plain = pipeline.greedy(given, TOKENS).token_ids
            n_tokens += len(plain)
            texts = {"generate": generated(loaded, given)}
            for e, k, row_by_row in SETTINGS:
                run = pipeline.ppd(given, TOKENS, exit_layer=e, k=k, row_by_row=row_by_row)
                texts[f"e{e}-k{k}" + ("-row-by-row" if row_by_row else "")] = run.token_ids
            for way, tokens in texts.items():
                rows.append(row(loaded, name, given, way, tokens, plain))
            sampling = Sampling(temperature=1.0, seed=1)
            drawn = pipeline.greedy(given, 32, sampling=sampling, prompt_id=name).token_ids
            run = pipeline.ppd(given, 32, exit_layer=20, k=5, sampling=sampling, prompt_id=name)
            same = run.token_ids == drawn
            rows.append({"prompt_id": name, "way": "sampled-e20-k5", "same": same})
            sys.stderr.write(f"{name}: {len(rows)} texts\n")
    document = {
        "n_prompts": PROMPTS,
        "n_tokens": n_tokens,
        "n_texts": len(rows),
        "n_different": sum(not r["same"] for r in rows),
        "rows": rows,
        "provenance": timing_provenance(loaded, 2, exits),
    }
    with atomic(OUT) as part:
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def row(
    loaded: LoadedModel,
    name: str,
    given: list[int],
    way: str,
    tokens: tuple[int, ...],
    plain: tuple[int, ...],
) -> dict[str, object]:
    """One text beside the plain one, with the first difference and its margin."""
    found = first_difference(loaded, given, tokens, plain)
    about = {"difference": asdict(found)} if found else {}
    return {"prompt_id": name, "way": way, "same": found is None} | about


def generated(loaded: LoadedModel, ids: list[int]) -> tuple[int, ...]:
    """What Transformers makes of it."""
    given = torch.tensor([ids])
    made = loaded.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=TOKENS,
        do_sample=False,
        pad_token_id=2,
    )
    return tuple(made[0, len(ids) :].tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
