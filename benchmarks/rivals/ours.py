"""The same job by this project: `measure_batch` on the prompts' text, all of them in one batch."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from ppdmodel.measure.batch import measure_batch
from ppdmodel.measure.decoder.ranks import Ranker
from ppdmodel.measure.decoder.verify import verified
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.options import GenerationOptions
from ppdmodel.measure.prompts import Prompt

WARM_UP_TOKENS = 2


def main() -> None:
    """Time from text to ranks of every layer, guesses included; loading is not timed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help='JSONL: "id", "text"')
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [json.loads(line) for line in arguments.prompts.read_text().splitlines()]
    prompts = [Prompt(row["id"], row["text"]) for row in rows]
    loaded = load_model(locate(arguments.model))
    decoder = verified(loaded.model).prepacked()
    ranker = Ranker(decoder.exit)
    measure_batch(loaded, decoder, ranker, prompts[:2], GenerationOptions(WARM_UP_TOKENS))
    start = time.perf_counter()
    generation = GenerationOptions(arguments.max_new_tokens)
    made = measure_batch(loaded, decoder, ranker, prompts, generation).measurement(
        {}, range(len(prompts))
    )
    seconds = time.perf_counter() - start
    mine = [np.flatnonzero(made.prompt_index == n) for n in range(len(prompts))]
    result = {
        "seconds": seconds,
        "n_tokens": made.n_tokens,
        "tokens": {p.id: made.token_id[i].tolist() for p, i in zip(prompts, mine, strict=True)},
        "ranks": {p.id: made.rank[i].tolist() for p, i in zip(prompts, mine, strict=True)},
    }
    arguments.out.write_text(json.dumps(result))


main()
