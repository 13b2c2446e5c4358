"""Real PPD: the same tokens as plain decoding, whatever the setting; nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure import Sampling, load_model, locate
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import decode
from ppdmodel.pipeline import worker_pool as pool_module
from ppdmodel.pipeline.decoding import first_difference, match_rate, speed
from ppdmodel.pipeline.engine import shared_engine
from ppdmodel.pipeline.perfetto import trace_events
from ppdmodel.pipeline.pipeline import Pipeline
from ppdmodel.pipeline.unit import EventKind, ForcedMatches, Task
from ppdmodel.pipeline.worker_pool import Placement, WorkerPool, placements
from tests.conftest import TEXT, make_tiny_llama

LAYERS, TOKENS, K = 12, 24, 5
PROMPTS = [TEXT[n : n + 4 + 5 * n] for n in range(6)]
TWO_CPUS = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="two units need two CPUs, and this machine has one"
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny"), layers=LAYERS)
    return load_model(locate(str(folder)))


@pytest.fixture(scope="module")
def pipeline(loaded: LoadedModel) -> Iterator[Pipeline]:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two units need two CPUs, and this machine has one")
    with Pipeline(loaded, units=2, prompt_tokens=64, tokens=TOKENS, k=K) as made:
        yield made


def ids_of(loaded: LoadedModel) -> list[list[int]]:
    return [loaded.encode([text], chat=False) for text in PROMPTS]


def generated(loaded: LoadedModel, ids: list[int], tokens: int = TOKENS) -> tuple[int, ...]:
    """What Transformers makes of it."""
    given = torch.tensor([ids])
    made = loaded.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(made[0, len(ids) :].tolist())


# ---------------------------------------------------------------- the engine


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (Qwen2Config, {}),
        (Qwen3Config, {"head_dim": 8}),
        (MistralConfig, {"sliding_window": None, "tie_word_embeddings": True}),
    ],
)
def test_other_models_of_llamas_build(
    loaded: LoadedModel, config: Callable[..., Any], changes: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        config(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            **changes,
        )
    ).eval()
    for parameter in model.parameters():  # biases and norms that do something
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    other = replace(loaded, model=model)
    engine = shared_engine(other, logit_exit(model), 32)  # raises where its logits differ
    assert engine.shape.layers == 3


def test_another_build_is_refused_in_one_line(loaded: LoadedModel) -> None:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    ).eval()
    with pytest.raises(InvalidInputError, match=r"decoders of Llama's build .*; got GPT2LMHead"):
        shared_engine(replace(loaded, model=model), logit_exit(model), 32)


def test_weights_that_the_engine_reads_wrongly_are_noticed(loaded: LoadedModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(loaded.source.folder).eval()
    exit_ = logit_exit(model)
    wrong = replace(loaded, model=model)
    shared_engine(wrong, exit_, 32)
    model.model.layers[1].self_attn.scaling *= 2  # the engine has one scale for all layers
    with pytest.raises(InvalidInputError, match="of the largest one away"):
        shared_engine(wrong, exit_, 32)


# ---------------------------------------------------------------- exact tokens


@TWO_CPUS
def test_every_setting_gives_the_tokens_of_plain_decoding(
    loaded: LoadedModel, pipeline: Pipeline
) -> None:
    texts = ids_of(loaded)
    plain = [pipeline.greedy(ids, TOKENS) for ids in texts]
    matches = 0
    for ids, run in zip(texts, plain, strict=True):
        assert run.token_ids == generated(loaded, ids)
        assert run.token_ids == pipeline.greedy_split(ids, TOKENS).token_ids
    for exit_layer in (1, 4, 7, LAYERS - 1):
        for k in (1, 3, 5):
            for row_by_row in (False, True):
                for ids, run in zip(texts, plain, strict=True):
                    made = pipeline.ppd(
                        ids, TOKENS, exit_layer=exit_layer, k=k, row_by_row=row_by_row
                    )
                    assert made.token_ids == run.token_ids, (exit_layer, k, row_by_row)
                    matches += int(made.matched.sum())
    assert matches > 5, "some guesses must have been right, or nothing was tried"


@TWO_CPUS
def test_row_by_row_nothing_rounds_otherwise(loaded: LoadedModel, pipeline: Pipeline) -> None:
    ids = ids_of(loaded)[3]
    plain = pipeline.greedy(ids, TOKENS, stops=False)
    cache = pipeline.together.cache.tensor("cache")
    before = cache.clone()
    script = ForcedMatches(plain.token_ids, (True,) * TOKENS)
    made = pipeline.ppd(ids, TOKENS, exit_layer=2, k=4, row_by_row=True, stops=False, script=script)
    assert made.matched.any(), "some guess must have been promoted, or nothing was tried"
    assert torch.equal(cache, before), "keys and values of promoted guesses, bit by bit"


@TWO_CPUS
def test_given_matches(loaded: LoadedModel, pipeline: Pipeline) -> None:
    ids = ids_of(loaded)[2]
    plain = pipeline.greedy(ids, TOKENS, stops=False)
    hits = tuple(n % 3 != 0 for n in range(TOKENS))
    made = pipeline.ppd(
        ids, TOKENS, exit_layer=1, k=3, stops=False, script=ForcedMatches(plain.token_ids, hits)
    )
    assert made.token_ids == plain.token_ids
    followed = np.array(hits[1:-1])  # the guesses for token i's successor start process i + 1
    assert not made.matched[2:][~followed].any()
    assert made.matched[2:][followed].any(), "some must have come in time"


@TWO_CPUS
def test_samples_are_those_of_plain_decoding(loaded: LoadedModel, pipeline: Pipeline) -> None:
    ids = ids_of(loaded)[4]
    texts = set()
    for seed in range(3):
        options: dict[str, Any] = {"sampling": Sampling(0.9, 0.95, seed), "prompt_id": "p"}
        plain = pipeline.greedy(ids, TOKENS, **options)
        made = pipeline.ppd(ids, TOKENS, exit_layer=3, k=3, **options)
        assert made.token_ids == plain.token_ids
        texts.add(made.token_ids)
    assert len(texts) == 3


def test_guesses_spread_over_several_units(loaded: LoadedModel) -> None:
    exit_ = logit_exit(loaded.model)
    engine = shared_engine(loaded, exit_, 96)
    ids = ids_of(loaded)[1]
    anywhere = [Placement(1, None)] * 4  # more units than CPUs: slower, and right all the same
    with WorkerPool(engine, anywhere, tokens=TOKENS, room=96, k=3) as units:
        plain = units.run(Task(tuple(ids), TOKENS))
        for k in (1, 2, 3):
            made = units.run(Task(tuple(ids), TOKENS, exit_layer=2, k=k))
            assert made.token_ids == plain.token_ids
            rows = max(int(u[u[:, 2] == EventKind.LAYER][:, 5].max(initial=0)) for u in made.events)
            assert rows == 1, "one guess on each"


def test_one_token_and_an_end_token(loaded: LoadedModel, pipeline: Pipeline) -> None:
    ids = ids_of(loaded)[5]
    whole = pipeline.greedy(ids, TOKENS, stops=False).token_ids
    assert pipeline.ppd(ids, 1, exit_layer=2, k=2).token_ids == whole[:1]
    run = pipeline.ppd(ids, 2, exit_layer=2, k=2, stops=False)
    assert run.token_ids == whole[:2]
    assert match_rate(run) is None
    assert speed(run) is None
    task = Task(tuple(ids), TOKENS, end_ids=frozenset([whole[6]]), exit_layer=2, k=2)
    ended = pipeline.together.run(task).token_ids
    assert ended == whole[: whole.index(whole[6]) + 1]


def test_a_difference_is_named_with_its_margin(loaded: LoadedModel) -> None:
    ids = ids_of(loaded)[0]
    plain = generated(loaded, ids)
    assert first_difference(loaded, ids, plain, plain) is None
    logits = loaded.model(torch.tensor([[*ids, *plain[:3]]])).logits[0, -1]
    other = int(logits.topk(2).indices[1])
    found = first_difference(loaded, ids, [*plain[:3], other], plain)
    assert found is not None
    assert (found.position, found.token_id, found.plain_token_id) == (3, other, plain[3])
    expected = float(logits[plain[3]] - logits[other])
    assert found.margin == pytest.approx(expected, rel=1e-3, abs=1e-5)


# ---------------------------------------------------------------- what was done when


@TWO_CPUS
def test_a_trace_says_what_happened(loaded: LoadedModel, pipeline: Pipeline) -> None:
    ids = ids_of(loaded)[3]
    run = pipeline.ppd(ids, TOKENS, exit_layer=2, k=3, stops=False)
    events = json.loads(json.dumps(trace_events(run, lambda i: loaded.decode([i]))))
    for unit in range(2):
        slices = [e for e in events if e["ph"] == "X" and e["tid"] == unit]
        assert len(slices) > TOKENS
        for one, following in pairwise(slices):
            assert one["ts"] + one["dur"] <= following["ts"] + 1e-3, "one thing at a time"
    verdicts = [e["name"] for e in events if e.get("cat") == "verdict"]
    assert len(verdicts) == TOKENS
    assert verdicts.count("match") == run.matched.sum()
    promoted = [e for e in events if e["name"] == "promote"]
    assert len(promoted) == run.matched.sum()
    done = np.concatenate(run.events)
    heads = done[done[:, 2] == EventKind.HEAD]
    assert sorted(heads[:, 3].tolist()) == list(range(TOKENS))


# ---------------------------------------------------------------- bad input, bad luck


def test_bad_input_is_refused(loaded: LoadedModel, pipeline: Pipeline) -> None:
    cpus = len(os.sched_getaffinity(0))
    with pytest.raises(InvalidInputError, match=rf"units must not exceed the CPUs .* are {cpus}"):
        placements(cpus + 1)
    for units in (0, 1):
        with pytest.raises(InvalidInputError, match="units must be"):
            Pipeline(loaded, units=units, prompt_tokens=8, tokens=8)
    if cpus >= 2:
        with pytest.raises(InvalidInputError, match="must fit the model's context"):
            Pipeline(loaded, prompt_tokens=8, tokens=10**6)
    with pytest.raises(InvalidInputError, match="that is plain greedy decoding"):
        pipeline.ppd([1, 2], 4, exit_layer=LAYERS, k=1)
    with pytest.raises(InvalidInputError, match="exit_layer must not exceed layers"):
        pipeline.ppd([1, 2], 4, exit_layer=LAYERS + 1, k=1)
    with pytest.raises(InvalidInputError, match="must fit the units' room"):
        pipeline.ppd([1, 2], 4, exit_layer=2, k=K + 1)


@TWO_CPUS
def test_a_unit_that_dies_is_named(loaded: LoadedModel) -> None:
    engine = shared_engine(loaded, logit_exit(loaded.model), 96)
    with WorkerPool(engine, placements(2), tokens=TOKENS, room=96, k=2) as units:
        os.kill(units._processes[1].pid, signal.SIGKILL)
        with pytest.raises(RunFailedError, match=r"unit 1 ended with exit code -9"):
            units.run(Task((1, 2, 3), TOKENS, exit_layer=2, k=2))
    assert not units._processes


@TWO_CPUS
def test_a_unit_that_fails_says_why(loaded: LoadedModel, pipeline: Pipeline) -> None:
    ids = ids_of(loaded)[0]
    plain = pipeline.greedy(ids, 8, stops=False)
    with pytest.raises(RunFailedError, match=r"got on unit 0: IndexError"):
        pipeline.ppd([10**6], 8, exit_layer=2, k=1)
    for _ in range(2):  # no answer of the failed text is taken for one of the next
        again = pipeline.ppd(ids, 8, exit_layer=2, k=1, stops=False)
        assert again.token_ids == plain.token_ids
        assert len(again.events[1])


def test_one_that_listens_may_fail(loaded: LoadedModel, pipeline: Pipeline) -> None:
    ids = ids_of(loaded)[1]
    plain = pipeline.greedy(ids, TOKENS, stops=False)

    def fail(_token_id: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.ppd(ids, TOKENS, exit_layer=3, k=2, stops=False, on_token=fail)
    again = pipeline.ppd(ids, TOKENS, exit_layer=3, k=2, stops=False)
    assert again.token_ids == plain.token_ids


@TWO_CPUS
def test_memory_is_given_back(loaded: LoadedModel) -> None:
    def held() -> int:
        links = []
        for path in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(path))
        return sum("memfd:ppdmodel" in link for link in links)

    before = held()
    with Pipeline(loaded, prompt_tokens=8, tokens=4) as made:
        assert held() >= before + 3
        made.greedy([1, 2], 2)
    del made
    gc.collect()  # a map of memory holds it as long as a tensor looks at it
    assert held() == before


@TWO_CPUS
def test_a_text_shorter_than_the_probe(loaded: LoadedModel) -> None:
    result = decode(loaded, "a", raw=True, exit_layer=2, max_new_tokens=2)
    assert result.token_ids == generated(loaded, loaded.encode(["a"], False), 2)
    assert result.latency is None


def test_a_window_that_the_engine_does_not_know(loaded: LoadedModel) -> None:
    config = MistralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    shared_engine(replace(loaded, model=model), logit_exit(model), 16)
    with pytest.raises(InvalidInputError, match="a sliding window of 16 tokens"):
        shared_engine(replace(loaded, model=model), logit_exit(model), 17)


@TWO_CPUS
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_stopped_program(
    loaded: LoadedModel, how: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "from ppdmodel.measure import load_model, locate, Pipeline\n"
        "if __name__ == '__main__':\n"
        f"    loaded = load_model(locate({str(loaded.source.folder)!r}))\n"
        "    with Pipeline(loaded, prompt_tokens=8, tokens=64, k=2) as pipeline:\n"
        "        units = pipeline.together._processes + pipeline.split._processes\n"
        "        print(*[unit.pid for unit in units], flush=True)\n"
        "        while True:\n"
        "            pipeline.ppd([1, 2, 3], 64, exit_layer=2, k=2, stops=False)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    units = [int(pid) for pid in process.stdout.readline().split()]
    assert len(units) == 3
    time.sleep(0.5)
    process.send_signal(how)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in units) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in units if _alive(pid)], "no unit outlives the program"


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_closing_takes_no_time(loaded: LoadedModel) -> None:
    engine = shared_engine(loaded, logit_exit(loaded.model), 96)
    units = WorkerPool(engine, [Placement(1, None)], tokens=4, room=96)
    with units:
        begin = time.monotonic()
    assert time.monotonic() - begin < pool_module.SHUTDOWN_TIMEOUT_S


# ---------------------------------------------------------------- decode, in Python and by command


@TWO_CPUS
def test_decode(loaded: LoadedModel, tmp_path: Path) -> None:
    trace, said = tmp_path / "trace.json", list[int]()
    result = decode(
        loaded,
        "the quick",
        exit_layer=3,
        k=2,
        max_new_tokens=16,
        trace=trace,
        on_token=said.append,
    )
    plain = generated(loaded, loaded.encode(["the quick"]), 16)
    assert result.token_ids == plain == tuple(said)
    assert result.difference is None
    assert result.text == loaded.decode(plain)
    assert result.predicted_match_rate is None
    assert json.loads(trace.read_text())["traceEvents"]


@TWO_CPUS
def test_decode_by_command(
    loaded: LoadedModel, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(loaded.source.folder)
    common = ["decode", "--model", folder, "--prompt", "the fox", "--max-new-tokens", "12"]
    assert run_command([*common, "--exit-layer", "3", "--k", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = (
        "token_ids text match_rate latency_per_token_s predicted_match_rate "
        "predicted_latency_per_token_s greedy_latency_per_token_s "
        "greedy_same_units_latency_per_token_s"
    )
    assert set(names.split()) <= set(found)
    assert len(found["token_ids"]) == 12
    assert run_command([*common, "--exit-layer", "3", "--trace", str(tmp_path / "t.json")]) == 0
    shown = capsys.readouterr().out
    assert "plain, split over the same units" in shown
    assert "12 tokens, the same as plain decoding's" in shown


@TWO_CPUS
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--exit-layer", "12"], "that is plain greedy decoding"),
        (["--exit-layer", "13"], "exit_layer must not exceed layers"),
        (["--exit-layer", "2", "--units", "4096"], "units must not exceed the CPUs"),
        (["--exit-layer", "2", "--units", "1"], "units must be at least 2"),
        (["--exit-layer", "2", "--max-new-tokens", "99999999"], "must fit the model's context"),
        (["--exit-layer", "2", "--calibration", "nowhere.json"], "the result must exist"),
        (["--exit-layer", "2", "--prompt", " "], "the prompt must have text"),
        (["--exit-layer", "2", "--k", "0"], "k must be a positive integer"),
        (["--exit-layer", "2", "--k", "5000"], "k must not exceed the vocabulary"),
    ],
)
def test_bad_commands(
    loaded: LoadedModel,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    command = ["decode", "--model", str(loaded.source.folder), "--prompt", "x", *arguments]
    assert run_command(command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line != "loading ..."]
    assert words in error[-1]
