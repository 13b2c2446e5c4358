"""Shared by all rivals: command line, timing and output file; needs only torch."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

#: generated tokens [n], and the rank of each at each layer [n][layers]
Ranked = tuple[list[int], list[list[int]]]
#: from a prompt's token ids and the most tokens to generate
Rank = Callable[[list[int], int], Ranked]
WARM_UP_TOKENS = 2


def ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """1 + the number of larger logits, for each target [n] among its logits [n, vocabulary]."""
    return 1 + (logits > logits.gather(-1, targets[:, None])).sum(-1)


def run(load: Callable[[str], Rank], packages: Sequence[str]) -> None:
    """Read the arguments, load the model, then time all prompts, one after the other.

    Not timed: loading, and a warm-up of a few tokens. Timed: from token ids to tokens and ranks.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a Transformers folder, safetensors")
    parser.add_argument("--prompts", type=Path, required=True, help='JSONL: "id", "input_ids"')
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    arguments = parser.parse_args()
    prompts = [json.loads(line) for line in arguments.prompts.read_text().splitlines() if line]
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the tools import the hub's client
    torch.set_num_threads(arguments.threads)
    made: dict[str, Ranked] = {}
    with torch.inference_mode():
        rank = load(arguments.model)
        rank(prompts[0]["input_ids"], WARM_UP_TOKENS)
        start = time.perf_counter()
        for prompt in prompts:
            made[prompt["id"]] = rank(prompt["input_ids"], arguments.max_new_tokens)
        seconds = time.perf_counter() - start
    result = {
        "seconds": seconds,
        "n_tokens": sum(len(tokens) for tokens, _ in made.values()),
        "packages": {name: version(name) for name in ("torch", "transformers", *packages)},
        "tokens": {name: tokens for name, (tokens, _) in made.items()},
        "ranks": {name: rows for name, (_, rows) in made.items()},
    }
    arguments.out.write_text(json.dumps(result))
