"""WorkerPool on devices with a memory of their own, and plain text split over such devices."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure import Sampling, load_model, locate
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import decode, time_model
from ppdmodel.pipeline import pipeline as pipeline_module
from ppdmodel.pipeline import timing as timing_module
from ppdmodel.pipeline import unit as unit_module
from ppdmodel.pipeline.board import Board, BoardSize, new_board
from ppdmodel.pipeline.devices import devices, machine
from ppdmodel.pipeline.engine import SharedEngine, shared_engine
from ppdmodel.pipeline.kv_cache import KVCache
from ppdmodel.pipeline.tensor_parallel import Communicator, Shard, backend_for, check_shards
from ppdmodel.pipeline.unit import EventKind, ForcedMatches, Task, Unit
from ppdmodel.pipeline.worker_pool import Placement, WorkerPool, placements
from tests.conftest import TEXT, make_tiny_llama
from tests.support.far_device import FarPlacement

LAYERS, TOKENS, K = 4, 12, 3
#: most new tokens, and most tokens of a text
MOST, ROOM = 40, 80
#: commands as far as their last option, a file
RUNS = {
    "decode": ["--exit-layer", "2", "--prompt", "x", "--trace"],
    "time": ["--out"],
    "validate": ["--calibration", "data/smollm2-135m.json", "--out"],
}
CPUS = [Placement(1, None)] * 2
FAR = [FarPlacement(1, None, "far:0"), FarPlacement(1, None, "far:1")]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny"), layers=LAYERS)
    return load_model(locate(str(folder)))


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> SharedEngine:
    return shared_engine(loaded, logit_exit(loaded.model), ROOM)


@pytest.fixture(scope="module")
def texts(loaded: LoadedModel) -> list[tuple[int, ...]]:
    return [tuple(loaded.encode([TEXT[n : n + 6 + 9 * n]], chat=False)) for n in range(3)]


def units(engine: SharedEngine, where: Sequence[Placement], **options: Any) -> WorkerPool:
    return WorkerPool(engine, where, tokens=MOST, room=ROOM, k=K, **options)


@pytest.fixture(scope="module")
def on_cpus(engine: SharedEngine) -> Iterator[WorkerPool]:
    with units(engine, CPUS) as made:
        yield made


@pytest.fixture(scope="module")
def on_devices(engine: SharedEngine) -> Iterator[WorkerPool]:
    with units(engine, FAR) as made:
        yield made


@pytest.fixture(scope="module")
def plain(on_cpus: WorkerPool, texts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [on_cpus.run(Task(ids, TOKENS)).token_ids for ids in texts]


# ---------------------------------------------------------------- names


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"GPU of {name}")
    assert devices("cpu", 3) == ("cpu",) * 3
    assert devices("cuda", 2) == ("cuda:0", "cuda:1")
    assert devices("cuda:1,cuda:0", 2) == ("cuda:1", "cuda:0")
    assert devices("cuda:1, cuda:1", 2) == ("cuda:1", "cuda:1")
    assert [place.device for place in placements(2, device="cuda")] == ["cuda:0", "cuda:1"]
    assert {place.cpus for place in placements(2, device="cuda")} == {None}
    assert machine(("cpu", "cpu")) == machine()
    assert (
        machine(("cuda:0", "cuda:1")) == f"{machine()}; cuda:0 GPU of cuda:0; cuda:1 GPU of cuda:1"
    )


@pytest.mark.parametrize(
    ("device", "found", "words"),
    [
        ("cuda", 1, "got cuda:0, cuda:1; torch finds 1; name one twice to share it"),
        ("cuda", 0, "torch finds 0; use cpu"),
        ("cuda:0,cuda:2", 2, "torch finds 2"),
        ("cuda:0", 2, "got 1 for 2 units; the same may be named twice"),
        ("cuda:0,cuda:0,cuda:0", 2, "got 3 for 2 units"),
        ("tpu", 2, "such as cuda:0,cuda:1; got 'tpu'"),
        ("cuda:0,cpu", 2, "got 'cuda:0,cpu'"),
        ("cuda:-1,cuda:0", 2, "got 'cuda:-1,cuda:0'"),
        ("", 2, "got ''"),
    ],
)
def test_wrong_names(device: str, found: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(InvalidInputError) as raised:
        devices(device, 2)
    assert words in str(raised.value)


@pytest.mark.parametrize("command", ["decode", "time", "validate"])
def test_more_units_than_there_could_be(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for device in ("cpu", "cuda"):
        words = [*RUNS[command], str(tmp_path / "x"), "--units", str(10**12), "--device", device]
        assert run_command([command, *words]) == 2
        assert "units must not exceed the CPUs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["decode", "time", "validate"])
def test_a_device_that_is_not_there(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*RUNS[command], str(tmp_path / "x"), "--device", "cuda:0,cuda:99"]
    assert run_command([command, *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "units must not exceed the CUDA devices; got cuda:0, cuda:99" in error[0]


# ---------------------------------------------------------------- PPD


def assert_every_setting(made: WorkerPool, texts: list[tuple[int, ...]], plain: Any) -> None:
    matches = 0
    for ids, wanted in zip(texts, plain, strict=True):
        assert made.run(Task(ids, TOKENS)).token_ids == wanted
        script = ForcedMatches(wanted, (True,) * TOKENS)
        for exit_layer in (1, LAYERS - 1):
            for row_by_row in (False, True):
                task = Task(ids, TOKENS, exit_layer=exit_layer, k=K, row_by_row=row_by_row)
                assert made.run(task).token_ids == wanted, (exit_layer, row_by_row)
                run = made.run(replace(task, script=script))
                assert run.token_ids == wanted, (exit_layer, row_by_row)
                matches += int(run.matched.sum())
    assert matches > 3, "some guesses must have been right, or nothing was handed over"


def test_every_setting_gives_the_same_tokens(
    on_devices: WorkerPool, texts: list[tuple[int, ...]], plain: Any
) -> None:
    assert_every_setting(on_devices, texts[1:], plain[1:])


def test_units_that_share_a_device(
    engine: SharedEngine, texts: list[tuple[int, ...]], plain: Any
) -> None:
    with units(engine, [*FAR, FAR[0]]) as made:
        assert_every_setting(made, texts[:1], plain[:1])


def test_all_see_what_is_handed_over(
    on_cpus: WorkerPool, on_devices: WorkerPool, texts: list[tuple[int, ...]], plain: Any
) -> None:
    """After a text in which every other guess was right, keys and values are those of a CPU."""
    script = ForcedMatches(plain[1], tuple(n % 2 == 0 for n in range(TOKENS)))
    task = Task(texts[1], TOKENS, exit_layer=1, k=2, row_by_row=True, script=script)
    kept = []
    for made in (on_cpus, on_devices):
        cache = made.cache.tensor("cache")
        cache.zero_()
        run = made.run(task)
        kept.append(cache.clone())
        assert run.token_ids == plain[1]
        assert run.matched.any(), "some guess must have been promoted, or nothing was tried"
        assert not run.matched.all()
    assert kept[0][:, :, :, len(texts[1]) :].any()
    # a device multiplies by another library than NumPy, and so rounds otherwise
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-4, atol=1e-5)


def test_samples_on_devices(
    on_cpus: WorkerPool, on_devices: WorkerPool, texts: list[tuple[int, ...]]
) -> None:
    task = Task(texts[2], TOKENS, sampling=Sampling(0.9, 0.95, 3), prompt_id="p")
    wanted = on_cpus.run(task).token_ids
    assert on_devices.run(task).token_ids == wanted
    assert on_devices.run(replace(task, exit_layer=2, k=K)).token_ids == wanted


@pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU")
def test_on_gpus(engine: SharedEngine, texts: list[tuple[int, ...]], plain: Any) -> None:
    for split in (False, True):
        with units(engine, placements(2, device="cuda:0,cuda:0"), split=split) as made:
            if not split:
                assert_every_setting(made, texts, plain)
            assert made.run(Task(texts[0], TOKENS)).token_ids == plain[0]


def test_a_device_that_computes_wrongly_is_refused(engine: SharedEngine) -> None:
    wrong = FarPlacement(1, None, "far:1", wrong=True)
    with (
        pytest.raises(RunFailedError, match=r"unit 1: .*far:1 must give the CPU's logits; got 0"),
        units(engine, [FAR[0], wrong]),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({}, 0),  # plain text is as fast as it can be
        ({"timed": True}, 1 + 3 * LAYERS),
        ({"exit_layer": 2, "k": 1}, 1 + 3 * LAYERS),  # others wait for what a layer made
    ],
)
def test_where_a_device_is_waited_for(
    engine: SharedEngine,
    texts: list[tuple[int, ...]],
    plain: Any,
    options: dict[str, Any],
    waits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the prompt, and after each layer of the three tokens behind the first."""
    waited: list[torch.device] = []
    monkeypatch.setattr(unit_module, "synchronize", waited.append)
    opened = engine.open()
    board = new_board(BoardSize(MOST, 1, K, engine.shape.width, opened.dtype))
    unit = Unit(0, opened, Board(board), KVCache(torch.zeros(opened.cache_shape(ROOM))))
    unit.run(Task(texts[0], 4, **options))
    assert tuple(unit.board.verdict[:4] - 1) == plain[0][:4]
    assert len(waited) == waits


def test_a_cache_fetches_each_row_once() -> None:
    shared = torch.arange(2 * 2 * 1 * 5 * 3.0).reshape(2, 2, 1, 5, 3)
    cache = KVCache(torch.full_like(shared, -1.0), shared)
    cache.begin(handed_over=True)
    assert torch.equal(cache.before(1, 3), shared[1, :, :, :3])
    assert (cache.tensor[0] == -1).all(), "the other layer was not asked for"
    shared[1, :, :, :3] = 7  # nobody does: what a layer once has is final
    assert not (cache.before(1, 4)[:, :, :3] == 7).any()
    cache.put(1, 4, torch.full((1, 2, 1, 3), 9.0))
    assert (shared[1, :, :, 4] == 9).all()
    assert cache.have == [0, 5]
    cache.begin(handed_over=False)
    cache.put(0, 0, torch.full((2, 2, 1, 3), -5.0))
    assert not (shared == -5).any(), "a text of one unit is its own"


# ---------------------------------------------------------------- plain text split over devices


class ThreadCommunicator(Communicator):
    """Parts as threads of this process."""

    def __init__(self, part: Shard, box: list[Tensor | None], all_here: threading.Barrier) -> None:
        super().__init__(part)
        self.box, self.all_here = box, all_here

    def sum(self, x: Tensor) -> Tensor:
        self.box[self.part.number] = x
        self.all_here.wait(20)
        total = torch.stack([x for x in self.box if x is not None]).sum(0)
        self.all_here.wait(20)
        return total


@pytest.mark.parametrize("of", [2, 3, 4, 6])
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LlamaConfig, {"num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True}),
        (LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        (Qwen2Config, {"num_key_value_heads": 6}),
        (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 8}),
    ],
)
def test_parts_make_the_whole(
    loaded: LoadedModel, config: Callable[..., Any], changes: dict[str, Any], of: int
) -> None:
    """Each is held against the logits of the CPU when it is opened: that raises, or all is well."""
    torch.manual_seed(1)
    settings = {
        "vocab_size": 97,
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
    }
    model = AutoModelForCausalLM.from_config(config(**settings, **changes)).eval()
    for parameter in model.parameters():  # biases and norms that do something
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    engine = shared_engine(replace(loaded, model=model), logit_exit(model), 16)
    box: list[Tensor | None] = [None] * of
    all_here, found = threading.Barrier(of), dict[int, Any]()

    def one(number: int) -> None:
        try:
            link = ThreadCommunicator(Shard(number, of), box, all_here)
            found[number] = engine.open(link=link).shape
        except Exception as error:
            all_here.abort()
            found[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(of)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [shape for shape in found.values() if isinstance(shape, Exception)]
    assert sum(shape.heads for shape in found.values()) == 6
    assert sum(shape.inner for shape in found.values()) == 50


def test_more_parts_than_heads(engine: SharedEngine) -> None:
    check_shards(engine.shape, 4)
    with pytest.raises(InvalidInputError, match="must not exceed the model's 4 heads on devices"):
        check_shards(engine.shape, 5)


def test_how_parts_talk() -> None:
    assert backend_for(("cuda:0", "cuda:0")) == "gloo", "NCCL does not take a GPU twice"
    assert backend_for(("cpu", "cpu")) == "gloo"


def test_a_part_that_never_comes(engine: SharedEngine) -> None:
    """The first waits for it; still the error is the other one's, and soon."""
    nowhere = Placement(1, None, "cuda:99")
    begin = time.monotonic()
    with (
        pytest.raises(RunFailedError, match="got on unit 1: "),
        units(engine, [CPUS[0], nowhere], split=True),
    ):
        pass
    assert time.monotonic() - begin < 60, "not as long as it would wait"


@pytest.mark.parametrize("where", [CPUS, FAR])
def test_a_split_text_is_the_same(
    engine: SharedEngine, texts: list[tuple[int, ...]], plain: Any, where: Sequence[Placement]
) -> None:
    with units(engine, where, split=True) as made:
        for ids, wanted in zip(texts, plain, strict=True):
            run = made.run(Task(ids, TOKENS))
            assert run.token_ids == wanted
            for events in run.events:  # all of them do every layer of every token
                assert (events[:, 2] == EventKind.LAYER).sum() == LAYERS * (len(wanted) - 1)
            assert made.run(Task(ids, 1)).token_ids == wanted[:1]
            ended = made.run(Task(ids, TOKENS, end_ids=frozenset([wanted[4]])))
            assert ended.token_ids == wanted[: wanted.index(wanted[4]) + 1]
        assert made.run(Task(texts[0], TOKENS)).token_ids == plain[0]


def test_a_split_text_that_is_stopped(
    engine: SharedEngine, texts: list[tuple[int, ...]], plain: Any
) -> None:
    def fail(_token_id: int) -> None:
        raise KeyboardInterrupt

    with units(engine, CPUS, split=True) as made:
        for _ in range(3):  # all leave at one and the same token, whenever it comes
            with pytest.raises(KeyboardInterrupt):
                made.run(Task(texts[0], MOST), fail)
            assert made.run(Task(texts[0], TOKENS)).token_ids == plain[0]
        os.kill(made._processes[1].pid, signal.SIGKILL)
        with pytest.raises(RunFailedError, match=r"unit [01]"):
            made.run(Task(texts[0], TOKENS))
    assert not made._processes


# ---------------------------------------------------------------- the whole, on such devices


def test_time_and_decode(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline_module, "placements", lambda units, device: FAR)
    monkeypatch.setattr(timing_module, "machine", " and ".join)
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(timing_module, "TOKENS", 8)
    monkeypatch.setattr(timing_module, "EXIT_DEPTHS", (0.5,))
    timing = time_model(loaded, ks=(2,), rounds=4, device="cuda")
    assert timing.provenance["machine"] == "far:0 and far:1"
    assert timing.provenance["devices"] == ["far:0", "far:1"]
    assert timing.terms["layer_time_s"].value > 0
    trace = tmp_path / "trace.json"
    found = decode(
        loaded, "the fox", exit_layer=2, k=3, max_new_tokens=TOKENS, device="cuda", trace=trace
    )
    assert found.difference is None
    assert found.greedy is not None
    assert found.greedy_same_units is not None
    assert json.loads(trace.read_text())["traceEvents"]
