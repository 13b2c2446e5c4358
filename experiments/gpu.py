"""What PPD costs on the GPUs of this machine, in at most eight minutes, with nothing to fetch.

`python -m experiments.gpu` (`make gpu`) needs a checkout, torch and Transformers, and no package
index. It runs the tests that need a GPU, measures the throughput of `measure`, and for each model
times its layers and heads and runs PPD with planted matches: the default model where it is
installed, else random weights of its shape, and random weights in the shapes of a model of a
billion weights and of one of seven. Units share one GPU, and have one each where there are two.
CUDA graphs are not used.

Each step is a process with a limit of time; one that fails does not lose the others. Everything is
written to a folder, `results/gpu`: gpu.json says which steps ran.

`--device cpu` runs all of it on CPUs, with small shapes; `--shapes` names others, as config.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ppdmodel.decide.hardware import models
from ppdmodel.errors import PpdModelError
from ppdmodel.measure import GenerationOptions, default_prompts, load_model, locate
from ppdmodel.measure.batch import measure_batch
from ppdmodel.measure.decoder.ranks import Ranker
from ppdmodel.measure.decoder.verify import verified
from ppdmodel.measure.models.loading import PACKAGES, LoadedModel
from ppdmodel.pipeline import Pipeline, PpdSetting, Workers
from ppdmodel.pipeline.decoding import plant
from ppdmodel.pipeline.devices import CPU, CUDA, machine, synchronize
from ppdmodel.pipeline.options import RunOptions
from ppdmodel.pipeline.random_weights import random_model, random_source
from ppdmodel.pipeline.timing import (
    CONTEXT,
    TOKENS,
    any_ids,
    model_provenance,
    time_pipeline,
    timing_provenance,
)
from ppdmodel.results import files
from ppdmodel.results.files import atomic, json_ready
from ppdmodel.results.io import save
from ppdmodel.results.timing import Timing

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "gpu"
#: the model that is run where it is installed, and its shape
MODEL, MODEL_SHAPE = "smollm2-135m", "SmolLM2 135M"
#: the sizes of Llama 3.2 1B
BILLION = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
SMALL = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
CONFIGS = {"1b": BILLION, "small": SMALL}
SHAPES = {CUDA: ("1b", "Llama 2 7B"), CPU: ("small",)}
DTYPES = {CUDA: "bfloat16", CPU: "float32"}
#: seconds of all steps together, and of each kind
MINUTES = 8.0
LIMITS = {"tests": 100.0, "throughput": 75.0, "model": 180.0}
#: seconds that are kept for starting, ending and writing
RESERVE_S = 15.0
#: guesses and repetitions that are timed
KS, ROUNDS = (1, 3), 4
#: exit layers of the planted runs, as fractions of the layers, their guesses, and match rates
DEPTHS, PLANTED_KS, SHARES, REPEATS = (0.5, 0.8), (1, 3), (0.0, 0.5, 1.0), 2
#: prompts that `measure` decodes together, and tokens of each
BATCH = {CUDA: (36, 128), CPU: (4, 16)}
#: last characters of a step's output that are kept
KEPT = 4000
#: tests by device: those on a GPU, and on the simulated device
TESTS = {CUDA: "test_on_gpus", CPU: "test_a_split_text_is_the_same or test_samples_on_devices"}
TEST_FILES = ("tests/pipeline/test_unit.py", "tests/pipeline/test_tensor_parallel_unit.py")


@dataclass(frozen=True)
class Step:
    """One process: a name, its command, and the seconds that it may take."""

    name: str
    command: tuple[str, ...]
    limit_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps, or the one that this process was started for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=(CUDA, CPU), default=CUDA)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--shapes", nargs="*", help="config.json, or shapes that are known")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all steps together")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # ends the step too
    if given.device == CUDA and not torch.cuda.device_count():
        parser.error("there must be a GPU that torch can use; got none; give --device cpu")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.step:
        name, *rest = given.step
        return STEPS[name](given.device, given.out, *rest)
    shapes = SHAPES[given.device] if given.shapes is None else given.shapes
    longer = given.minutes / MINUTES
    all_steps = [
        replace(step, limit_s=longer * step.limit_s)
        for step in steps(given.device, given.out, shapes)
    ]
    document: dict[str, Any] = {
        "device": given.device,
        "cuda_graphs": False,
        "machine": machine([f"cuda:{n}" for n in range(torch.cuda.device_count())]),
        "steps": [],
        "provenance": files.provenance(PACKAGES),
    }
    for row in run_all(all_steps, 60 * given.minutes):
        document["steps"].append(row)
        write(given.out / "gpu.json", document)
    done = document["steps"]
    failed = [row for row in done if not row["ok"]]
    say(f"{len(done) - len(failed)} of {len(done)} steps succeeded; written to {given.out}")
    for row in failed:
        say(f"FAILED {row['name']}: {row['error']}")
    return 1 if failed else 0


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON."""
    with atomic(path) as part:
        part.write_text(json.dumps(json_ready(document), indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- steps as processes


def steps(device: str, out: Path, shapes: Sequence[str]) -> list[Step]:
    """All steps, those that need the least time first."""
    start = (sys.executable, "-m", "experiments.gpu", "--device", device, "--out", str(out))

    def step(kind: str, *words: str) -> Step:
        command = (*start, "--step", kind, *words)
        return Step(" ".join([kind, *words]), command, LIMITS[kind])

    models_to_time = ["default", *shapes]
    by_place = [[step("model", name, where) for name in models_to_time] for where in places(device)]
    return [step("tests"), step("throughput"), *(one for each in by_place for one in each)]


def places(device: str) -> dict[str, str]:
    """How two units are placed, by name: on one GPU, and on two where there are."""
    if device == CPU:
        return {CPU: CPU}
    two = {"two-gpus": "cuda:0,cuda:1"} if torch.cuda.device_count() > 1 else {}
    return {"one-gpu": "cuda:0,cuda:0"} | two


def run_all(all_steps: Sequence[Step], seconds: float) -> Iterator[dict[str, Any]]:
    """Run steps one after another, all of them within so many seconds; say how each went."""
    end = time.monotonic() + seconds - RESERVE_S
    for step in all_steps:
        left = min(step.limit_s, end - time.monotonic())
        say(f"{step.name} ({max(left, 0):.0f} s at most) ...")
        if left < 1:
            about: dict[str, Any] = {"ok": False, "error": "no time was left", "seconds": 0.0}
        else:
            about = run_step(step.command, left)
        say(f"  {'done' if about['ok'] else 'FAILED'} in {about['seconds']:.0f} s")
        yield {"name": step.name, "limit_s": left, **about}


def run_step(command: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Run a command; when it takes too long, it is killed with all processes of its group."""
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+b") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        error = ""
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code, error = -1, f"took longer than {limit_s:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace").strip()
    if code and not error:
        error = text.splitlines()[-1] if text else f"exit code {code}"
    return {
        "ok": code == 0,
        "error": error,
        "seconds": time.monotonic() - begin,
        "output": text[-KEPT:],
    }


# ---------------------------------------------------------------- what a step does


def run_tests(device: str, _out: Path) -> int:
    """The tests that need the device; at least one must run."""
    wanted = ["-q", "-rs", "-p", "no:cacheprovider", "-k", TESTS[device], *TEST_FILES]
    command = [sys.executable, "-m", "pytest", *wanted]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    say(done.stdout + done.stderr)
    if done.returncode == 0 and not re.search(r"\b[1-9]\d* passed", done.stdout):
        say(f"a test must have run; got none of: {TESTS[device]}")
        return 1
    return done.returncode


class Bytes:
    """A tokenizer of random weights, whose token ids are bytes."""

    eos_token_id, chat_template = None, None

    def __call__(self, text: str, add_special_tokens: bool = False) -> SimpleNamespace:
        """Token ids of a text."""
        del add_special_tokens
        return SimpleNamespace(input_ids=list(text.encode()))

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """A text, any one."""
        del skip_special_tokens
        return "".join(chr(32 + token % 95) for token in token_ids)


def default_model(dtype: str) -> LoadedModel:
    """The default model where it is installed, else random weights of its shape."""
    try:
        return load_model(locate(MODEL), dtype)
    except (PpdModelError, ImportError) as error:
        say(f"{MODEL} cannot be loaded: {error}; random weights of its shape take its place")
        return random_model(random_source(MODEL_SHAPE), dtype)


def measure_throughput(device: str, out: Path) -> int:
    """Tokens per second of decoding a batch and ranking every token at every exit."""
    n_prompts, new_tokens = BATCH[device]
    loaded = default_model(DTYPES[device])
    if loaded.tokenizer is None:
        loaded = replace(loaded, tokenizer=Bytes())
    where = torch.device(device)
    loaded.model.to(where)
    decoder = verified(loaded.model).prepacked()
    ranker = Ranker(decoder.exit)
    single = [prompt for prompt in default_prompts() if not prompt.later_turns]
    prompts = sorted(single, key=lambda prompt: len(prompt.text))[:n_prompts]
    options = GenerationOptions(raw=True, max_new_tokens=new_tokens)
    measure_batch(loaded, decoder, ranker, prompts, replace(options, max_new_tokens=4))  # warm-up
    synchronize(where)
    begin = time.monotonic()
    batch = measure_batch(loaded, decoder, ranker, prompts, options)
    synchronize(where)
    seconds = time.monotonic() - begin
    tokens = len(batch.measurement({}, range(len(prompts))).token_id)
    write(
        out / "throughput.json",
        {
            "tokens": tokens,
            "prompts": len(prompts),
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "layers": loaded.layers,
            "provenance": {
                **model_provenance(loaded.source, DTYPES[device], None),
                "device": device,
                "threads": torch.get_num_threads(),
                "machine": machine(["cuda:0"] if device == CUDA else ()),
                **files.provenance(PACKAGES),
            },
        },
    )
    say(f"{loaded.source.name}: {tokens / seconds:.0f} tokens per second, ranked at every exit")
    return 0


def run_model(device: str, out: Path, shape: str, where: str) -> int:
    """Time a model's layers and heads, and run it with planted matches, on units placed so."""
    dtype = DTYPES[device]
    if shape == "default":
        loaded = default_model(dtype)
    else:
        loaded = random_model(random_source(config_of(shape, out)), dtype)
    name = f"{shape_name(shape)}-{where}.json"
    with Pipeline(
        loaded,
        prompt_tokens=CONTEXT,
        tokens=TOKENS,
        k=max(*KS, *PLANTED_KS),
        workers=Workers(2, places(device)[where]),
    ) as pipeline:
        write(out / f"planted-{name}", planted_runs(pipeline))
        save_timing(time_pipeline(pipeline, KS, ROUNDS), out / f"timing-{name}")
    return 0


def shape_name(shape: str) -> str:
    """A shape's name in those of files: `llama-2-7b`."""
    path = Path(shape)
    known = path.parent.name if path.name == "config.json" else path.name.removesuffix(".json")
    return known.lower().replace(" ", "-")


def config_of(shape: str, out: Path) -> str:
    """What `random_source` takes: a known name or a file, which is written for shapes of ours."""
    if shape in models() or shape not in CONFIGS:
        return shape
    path = out / f"{shape}.json"
    write(path, CONFIGS[shape])
    return str(path)


def planted_runs(pipeline: Pipeline) -> dict[str, Any]:
    """Seconds per token with so many right guesses, beside plain decoding in the same rounds."""
    ids, options = any_ids(pipeline.loaded), RunOptions(stops=False)
    text = pipeline.greedy(ids, TOKENS, options).token_ids
    exits = sorted({min(round(d * pipeline.layers), pipeline.layers - 1) for d in DEPTHS})
    rows: list[dict[str, Any]] = [
        {"exit_layer": e, "k": k, "planted": share, "latency_s": []}
        for e in exits for k in PLANTED_KS for share in SHARES
    ]  # fmt: skip
    plain, split = [], []
    for number in range(REPEATS + 1):  # the first is a warm-up
        greedy = pipeline.greedy(ids, TOKENS, options)
        together = pipeline.greedy_split(ids, TOKENS, options)
        if number:
            plain.append(float(greedy.times_s.mean()))
            split.append(float(together.times_s.mean()))
        for row in rows:
            setting = PpdSetting(row["exit_layer"], row["k"])
            forced = plant(text, row["planted"])
            run = pipeline.ppd(ids, TOKENS, setting, options, forced=forced)
            if number:
                row["latency_s"].append(float(run.times_s.mean()))
                row["n_trials"] = row.get("n_trials", 0) + len(run.matches)
                row["n_matched"] = row.get("n_matched", 0) + int(run.matches.sum())
                row["n_late"] = row.get("n_late", 0) + int(run.late_guesses.sum())
                row["same_text"] = row.get("same_text", True) and run.token_ids == text
    return {
        "what": "PPD with planted matches: times are real, match rates are given",
        "layers": pipeline.layers,
        "plain_latency_s": plain,
        "split_latency_s": split,
        "rows": rows,
        "provenance": timing_provenance(pipeline.loaded, None, pipeline.devices)
        | {"context": CONTEXT, "tokens": TOKENS, "repeats": REPEATS},
    }


def save_timing(timing: Timing, path: Path) -> None:
    """Write a timing, unchecked where jsonschema, which checks it, is not installed."""
    try:
        save(timing, path)
    except ModuleNotFoundError as missing:
        say(f"{path.name} is not checked against its schema: {missing.name} is not installed")
        about = {"schema": files.TIMING, "schema_version": files.SCHEMA_VERSION}
        write(path, about | asdict(timing))


STEPS: Mapping[str, Callable[..., int]] = {
    "tests": run_tests,
    "throughput": measure_throughput,
    "model": run_model,
}


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # ends the step too
    sys.exit(main())
