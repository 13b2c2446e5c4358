"""The harness against a simple script, three tools and the hardware limit, in one run.

`make bench` makes the tools' environments the first time (4 GB under build/rivals).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppdmodel.measure.decoder.exit import Exit
from ppdmodel.measure.decoder.kernels import prepack_head
from ppdmodel.measure.decoder.ranks import BLOCK, Ranker
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import default_prompts

from .rivals import envs

HERE = Path(__file__).parent / "rivals"
MODEL = "smollm2-135m"
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
#: prompts of ours, decoded as a batch, and of the other tools, which decode them one at a time;
#: tokens per prompt; repetitions
PROMPTS, OTHERS_PROMPTS, TOKENS, ROUNDS = 36, 4, 128, 3
FASTER, OF_PEAK, EXTRA_GIB, LOAD_S = 5.0, 0.85, 1.0, 2.0


def main() -> None:
    """Print ratios with their spread and limits."""
    load_model(locate(MODEL))  # converts it if needed
    for name, job in (
        ("loading", loading),
        ("rank stage", rank_stage),
        ("memory", memory),
        ("end to end", end_to_end),
    ):
        print(f"  {name}")
        job()


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} [{low:{form}}, {high:{form}}]"


def loading() -> None:
    """The model from its cache, in a fresh process, and the libraries that this imports."""
    code = (
        "import time; from ppdmodel.measure import load_model;"
        "from ppdmodel.measure import locate; import transformers;"
        "begin = time.perf_counter(); transformers.AutoTokenizer, transformers.LlamaForCausalLM;"
        f"start = time.perf_counter(); load_model(locate('{MODEL}'));"
        "print(start - begin, time.perf_counter() - start)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(ROUNDS + 1)
    ][1:]  # the first loads the page cache
    imports, seconds = zip(
        *([float(number) for number in run.split()] for run in runs), strict=True
    )
    print(
        f"    {MODEL} the second time: {spread(seconds)} s, limit {LOAD_S:g} s; "
        f"Transformers imports its own parts in {spread(imports)} s before"
    )


def rank_stage() -> None:
    """Time of all work on the logits over that of the LM head's product at peak FLOP/s."""
    torch.set_num_threads(THREADS)
    loaded = load_model(locate(MODEL))
    weight = loaded.model.get_output_embeddings().weight.detach()
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = nn.Parameter(weight, requires_grad=False)
    ranker = Ranker(Exit(nn.ModuleList(), (), head, blocks=prepack_head(head, BLOCK)))
    hidden, targets = torch.randn(512, weight.shape[1]) * 5, torch.randint(0, len(weight), (512,))
    square, out = torch.randn(2048, 2048), torch.empty(2048, 2048)

    def product() -> None:
        torch.mm(square, square, out=out)

    flops, peak_flops = 2 * len(hidden) * weight.numel(), 2 * 2048**3
    ranker.rank(hidden, targets)
    times = round(flops / peak_flops)  # as long as the stage, as the clock rate drifts
    ratios, peaks = [], []
    before = _rate(peak_flops, times, product)
    for _ in range(15):
        rate = _rate(flops, 1, lambda: ranker.rank(hidden, targets))
        after = _rate(peak_flops, times, product)
        peaks += [(before + after) / 2]
        ratios.append(rate / peaks[-1])
        before = after
    print(
        f"    ranks, probabilities and guesses at {spread(ratios)} of the sgemm peak of "
        f"{spread([peak / 1e9 for peak in peaks], '.0f')} GFLOP/s, limit {OF_PEAK:g}"
    )


def _rate(flops: float, times: int, job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    for _ in range(times):
        job()
    return flops * times / (time.perf_counter() - start)


def memory() -> None:
    """Peak memory of the command at two numbers of prompts, over that of the weights."""
    loaded = load_model(locate(MODEL))
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters()) / 2**30
    for prompts in (36, 72):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "ppdmodel", "measure", "--model", MODEL]
            command += ["--limit", str(prompts), "--out", f"{folder}/m"]
            peak = _peak_gib(command)
        print(
            f"    {prompts} prompts: weights {weights:.2f} GiB + {peak - weights:.2f} GiB, "
            f"limit {EXTRA_GIB:g}"
        )


def _peak_gib(command: Sequence[str]) -> float:
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
        " print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, check=True)
    unit = 1 if sys.platform == "darwin" else 2**10
    return int(done.stdout) * unit / 2**30


def end_to_end() -> None:
    """Time from text to every token's rank at every layer, by each tool; ranks must agree."""
    pythons = {"plain": sys.executable} | {name: str(envs.create(name)) for name in envs.RIVALS}
    scripts = {"plain": "plain.py"} | {name: f"with_{name}.py" for name in envs.RIVALS}
    each: dict[str, list[float]] = {name: [] for name in ("ours", *pythons)}
    with tempfile.TemporaryDirectory() as folder:
        model, files = _prepared(Path(folder))
        for number in range(ROUNDS):
            ours = _run(sys.executable, "ours.py", model, files["all"])
            each["ours"].append(ours["seconds"] / ours["n_tokens"])
            for name, python in pythons.items():
                if name != "plain" and number > 0:  # the tools once: they take as long as plain
                    continue
                theirs = _run(python, scripts[name], model, files["few"])
                each[name].append(theirs["seconds"] / theirs["n_tokens"])
                _compare(name, ours, theirs)
    print(f"    ours: {spread([1e3 * s for s in each['ours']], '.1f')} ms per token")
    for name in pythons:
        ratios = [b / a for a, b in zip(each["ours"], each[name], strict=False)]
        limit = f", limit {FASTER:g}" if name == "plain" else ""
        milliseconds = spread([1e3 * s for s in each[name]], ".0f")
        print(f"    {name}: {milliseconds} ms per token, ours {spread(ratios)} times faster{limit}")


def _prepared(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The model as a plain folder, and the prompts with their token ids."""
    loaded = load_model(locate(MODEL))
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    files = {}
    for name, n in (("all", PROMPTS), ("few", OTHERS_PROMPTS)):
        rows = [
            {"id": p.id, "text": p.text, "input_ids": loaded.encode([p.text])}
            for p in default_prompts()[:n]
        ]
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "model", files


def _run(python: str, script: str, model: Path, prompts: Path) -> dict[str, Any]:
    out = prompts.with_suffix(".out.json")
    command = [python, str(HERE / script), "--model", str(model), "--prompts", str(prompts)]
    command += ["--max-new-tokens", str(TOKENS), "--threads", str(THREADS), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


_SAID: set[str] = set()


def _compare(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Tokens must be equal, and ranks but for near ties, which round differently."""
    cells = differ = largest = 0
    for prompt, ranks in theirs["ranks"].items():
        assert theirs["tokens"][prompt] == ours["tokens"][prompt], (name, prompt)
        for mine, other in zip(ours["ranks"][prompt], ranks, strict=True):
            for a, b in zip(mine, other, strict=True):
                cells += 1
                differ += a != b
                largest = max(largest, abs(a - b) if a != b else 0)
    assert differ <= 0.02 * cells, (name, differ, cells)
    assert largest <= 3, (name, largest)
    if name not in _SAID:
        _SAID.add(name)
        print(f"    {name}: same tokens; {differ} of {cells} ranks differ, by at most {largest}")
