"""The plain decoding loop against Transformers' `generate` and the memory bandwidth.

And the products of a layer, for one row and for a few, with NumPy's BLAS and oneDNN as rivals; and
what they take while another core multiplies too, which is what PPD and tensor parallelism pay.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

import numpy as np
import torch

from ppdmodel.measure import default_prompts, load_model, locate
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import Pipeline, cpu_kernels
from ppdmodel.pipeline.packing import as_arrays, packed

from .measuring import spread

MODEL = "smollm2-135m"
PROMPTS, TOKENS = 4, 64
FASTER = 1.2
#: [in, out] of a layer's products in SmolLM2-135M; so many layers that none is found in a cache
LAYER, LAYERS, REPETITIONS = ((576, 960), (576, 576), (576, 3072), (1536, 576)), 30, 9
ROWS = (1, 2, 3, 4, 5, 8)
Way = Callable[[int, list[torch.Tensor]], None]


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
    _products()
    _together()


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


def _products() -> None:
    """Milliseconds of a layer's four products by rows, every way in turn, on one thread."""
    weights = [[torch.randn(shape) for shape in LAYER] for _ in range(LAYERS)]
    ways = _ways(weights)
    print("    a layer's products, ms by rows " + ", ".join(map(str, ROWS)))
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for rows in ROWS:
        inputs = [torch.randn(rows, shape[0]) for shape in LAYER]
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(REPETITIONS):
            for name, way in ways.items():
                begin = time.perf_counter()
                for layer in range(LAYERS):
                    way(layer, inputs)
                found[name].append(1e3 * (time.perf_counter() - begin) / LAYERS)
        for name, each in found.items():
            times[name].append(each)
    for name, by_rows in times.items():
        middle = [float(np.median(each)) for each in by_rows]
        print(f"      {name}: " + ", ".join(f"{ms:.2f}" for ms in middle))


def _ways(
    weights: list[list[torch.Tensor]],
) -> dict[str, Callable[[int, list[torch.Tensor]], None]]:
    """How to multiply a few states with the weights [in, out] of a layer."""
    panels = [[as_arrays({"w": packed(w)})["w"] for w in layer] for layer in weights]
    halves = [[as_arrays({"w": packed(w.bfloat16())})["w"] for w in layer] for layer in weights]
    out, none = np.empty((max(ROWS), 3072), np.float32), np.zeros(0, np.float32)

    def compiled(held: list[list[np.ndarray]]) -> Way:
        def run(layer: int, inputs: list[torch.Tensor]) -> None:
            for x, weight in zip(inputs, held[layer], strict=True):
                cpu_kernels.multiply(x.numpy(), weight, none, out)

        return run

    def by_numpy(layer: int, inputs: list[torch.Tensor]) -> None:
        for x, weight in zip(inputs, weights[layer], strict=True):
            if len(x) == 1:
                x[0].numpy() @ weight.numpy()
            else:
                x.numpy() @ weight.numpy()

    ways = {"compiled": compiled(panels), "compiled, bfloat16": compiled(halves), "NumPy": by_numpy}
    if torch._C._has_mkldnn:
        reorder, multiply = (
            torch.ops.mkldnn._reorder_linear_weight,
            torch.ops.mkldnn._linear_pointwise,
        )
        blocked = [[reorder(w.t().contiguous(), 4) for w in layer] for layer in weights]

        def by_onednn(layer: int, inputs: list[torch.Tensor]) -> None:
            for x, weight in zip(inputs, blocked[layer], strict=True):
                multiply(x, weight, None, "none", [], "")

        ways["oneDNN, packed"] = by_onednn
    return ways


def _together() -> None:
    """Milliseconds of a layer's products of one row, alone and while another core multiplies."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cpus) < 2:
        print("    two cores together: there is only one")
        return
    context = multiprocessing.get_context("spawn")
    os.sched_setaffinity(0, {cpus[0]})
    multiply = _multiplier()
    alone, together = [], []
    for _ in range(REPETITIONS):
        alone.append(multiply())
        ready, stop = context.Event(), context.Event()
        other = context.Process(target=_multiply_until, args=(cpus[1], ready, stop))
        other.start()
        ready.wait()
        together.append(multiply())
        stop.set()
        other.join()
    os.sched_setaffinity(0, cpus)
    print(f"    a layer's products alone: {spread(alone)} ms")
    ratios = [both / one for one, both in zip(alone, together, strict=True)]
    print(f"    while another core multiplies: {spread(ratios)} times as long")


def _multiplier() -> Callable[[], float]:
    """Milliseconds of a layer's products, over so many layers that none is found in a cache."""
    torch.set_num_threads(1)
    run = _ways([[torch.randn(shape) for shape in LAYER] for _ in range(LAYERS)])["compiled"]
    inputs = [torch.randn(1, shape[0]) for shape in LAYER]

    def once() -> float:
        begin = time.perf_counter()
        for layer in range(LAYERS):
            run(layer, inputs)
        return 1e3 * (time.perf_counter() - begin) / LAYERS

    once()
    return once


def _multiply_until(cpu: int, ready: Event, stop: Event) -> None:
    os.sched_setaffinity(0, {cpu})
    multiply = _multiplier()
    ready.set()
    while not stop.is_set():
        multiply()
