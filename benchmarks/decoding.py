"""The plain decoding loop against Transformers' `generate` and the memory bandwidth."""

from __future__ import annotations

import os
import time

import torch

from ppdmodel.measure import default_prompts, load_model, locate
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import Pipeline

from .measuring import spread

MODEL = "smollm2-135m"
PROMPTS, TOKENS = 4, 64
FASTER = 1.2


def main() -> None:
    """One thread each, interleaved, the same tokens."""
    loaded = load_model(locate(MODEL))
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})
    prompts = [loaded.encode([prompt.text]) for prompt in default_prompts()[:PROMPTS]]
    _generate(loaded, prompts[0], 4)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    with Pipeline(loaded, prompt_tokens=max(map(len, prompts)), tokens=TOKENS) as pipeline:
        pipeline.greedy(prompts[0], 4)
        ours, theirs, ratios, shares = [], [], [], []
        for ids in prompts:
            tokens, seconds = _generate(loaded, ids, TOKENS)
            run = pipeline.greedy(ids, TOKENS)
            assert run.token_ids == tokens, "both loops make the same text"
            ours.append(float(run.times_s.mean()))
            theirs.append(seconds)
            ratios.append(seconds / ours[-1])
            shares.append(weights / _read_bytes_per_s() / ours[-1])
    print(f"    ours: {spread([1e3 * s for s in ours], '.1f')} ms per token, one thread")
    print(
        f"    Transformers' generate: {spread([1e3 * s for s in theirs], '.1f')} ms, "
        f"{spread(ratios)} times as long, limit {FASTER:g}"
    )
    print(f"    reading the weights once from memory takes {spread(shares)} of our time")


def _generate(loaded: LoadedModel, ids: list[int], tokens: int) -> tuple[tuple[int, ...], float]:
    """Transformers' tokens, and seconds per token after the first."""
    given = torch.tensor([ids])

    def run(n: int) -> tuple[tuple[int, ...], float]:
        begin = time.perf_counter()
        made = loaded.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=n,
            do_sample=False,
            pad_token_id=2,
        )
        return tuple(made[0, len(ids) :].tolist()), time.perf_counter() - begin

    _, prompt_s = run(1)
    made, seconds = run(tokens)
    return made, (seconds - prompt_s) / max(len(made) - 1, 1)


def _read_bytes_per_s() -> float:
    """How fast one thread reads memory that is in no cache: the best of five sums."""
    block = torch.ones(64 * 2**20)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - begin)
    return block.numel() * block.element_size() / min(times)
