"""Shards whose sums are the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline.board import TextEndedError
from ppdmodel.pipeline.engine_shape import EngineShape
from ppdmodel.pipeline.shared_engine import SharedEngine, shared_engine
from ppdmodel.pipeline.tensor_parallel import (
    ADDRESS,
    Communicator,
    Rendezvous,
    Shard,
    SharedCommunicator,
    backend_for,
    check_shards,
    new_exchange,
    shard_of,
)

SHAPE = EngineShape(
    layers=1, width=6, heads=4, kv_heads=2, head_size=3, inner=5, vocabulary=7,
    epsilon=1e-5, scaling=0.5,
)  # fmt: skip


class ThreadCommunicator(Communicator):
    """Shards in threads of this process."""

    def __init__(self, shard: Shard, box: list[Tensor | None], all_here: threading.Barrier) -> None:
        super().__init__(shard)
        self.box, self.all_here = box, all_here

    def all_reduce(self, x: Tensor) -> Tensor:
        self.box[self.shard.rank] = x
        self.all_here.wait(20)
        total = torch.stack([x for x in self.box if x is not None]).sum(0)
        self.all_here.wait(20)
        return total


@pytest.mark.parametrize("n", [1, 5, 8])
@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_slices_cover_everything_once(n: int, of: int) -> None:
    slices = [range(n)[Shard(rank, of).slice(n)] for rank in range(of)]
    assert [x for part in slices for x in part] == list(range(n))
    sizes = [len(part) for part in slices]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("of", [2, 3, 4])
def test_products_of_shards_add_up(of: int) -> None:
    """Feed-forward and output products, and columns that are no shard's twice."""
    torch.manual_seed(0)
    weights = {
        "0.qkv": torch.randn(6, 24),
        "0.qkv_bias": torch.randn(24),
        "0.out": torch.randn(12, 6),
        "0.out_bias": torch.randn(6),
        "0.gate_up": torch.randn(6, 10),
        "0.down": torch.randn(5, 6),
        "head": torch.randn(6, 7),
        "final_norm": torch.randn(6),
        "map.1": torch.randn(6, 6),
        "map_bias.1": torch.randn(6),
    }
    shards = [shard_of(SHAPE, weights, Shard(rank, of)) for rank in range(of)]
    held = sum(shape.kv_heads for shape, _ in shards)
    assert held == (2 if of <= 2 else 4), "copies only where there are too few"
    x = torch.randn(2, 6)
    both = x @ weights["0.gate_up"]
    whole = (both[:, :5] * both[:, 5:]) @ weights["0.down"]
    total = torch.zeros(2, 6)
    for shape, own in shards:
        mine = x @ own["0.gate_up"]
        total += (mine[:, : shape.inner] * mine[:, shape.inner :]) @ own["0.down"]
    torch.testing.assert_close(total, whole)
    queries = x @ weights["0.qkv"][:, :12] + weights["0.qkv_bias"][:12]
    attended = torch.zeros(2, 6)
    for shape, own in shards:
        mine = x @ own["0.qkv"] + own["0.qkv_bias"]
        assert mine.shape[1] == (shape.heads + 2 * shape.kv_heads) * 3
        assert shape.heads % shape.kv_heads == 0
        attended += mine[:, : shape.heads * 3] @ own["0.out"] + own.get("0.out_bias", 0)
    torch.testing.assert_close(attended, queries @ weights["0.out"] + weights["0.out_bias"])
    head = torch.cat([own["head"] for _, own in shards], 1)
    assert torch.equal(head, weights["head"])
    for _, own in shards:
        assert torch.equal(own["final_norm"], weights["final_norm"])
        assert torch.equal(own["embedding"], weights["head"].t())
        assert torch.equal(own["map.1"], weights["map.1"]), "every shard reads exits alone"


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
def test_shards_make_the_whole(
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

    def one(rank: int) -> None:
        try:
            communicator = ThreadCommunicator(Shard(rank, of), box, all_here)
            found[rank] = engine.open(communicator=communicator).shape
        except Exception as error:
            all_here.abort()
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(of)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [shape for shape in found.values() if isinstance(shape, Exception)]
    assert sum(shape.heads for shape in found.values()) == 6
    assert sum(shape.inner for shape in found.values()) == 50


def test_more_shards_than_heads(engine: SharedEngine) -> None:
    check_shards(engine.shape, 4)
    with pytest.raises(InvalidInputError, match="must not exceed the model's 4 heads on devices"):
        check_shards(engine.shape, 5)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_process_group_of_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its collective operations change nothing; a device is made current first."""
    current: list[str] = []

    class Backend:
        set_device = staticmethod(current.append)

    monkeypatch.setattr(torch, "get_device_module", lambda device: Backend)
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        ADDRESS, 0, is_master=True, wait_for_workers=False
    )
    group = Rendezvous(store.port, 1, "gloo")
    try:
        communicator = group.join(0, device)
        x = torch.arange(6.0).reshape(2, 3)
        assert torch.equal(communicator.all_reduce(x.clone()), x)
        assert torch.equal(communicator.all_gather(x.clone(), 3), x)
    finally:
        group.leave()
    assert current == [name for name in [device] if name != "cpu"]
    assert not distributed.is_initialized()
    group.leave()


def test_which_backend_units_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "nccl"), (False, "gloo")):
        monkeypatch.setattr(distributed, "is_nccl_available", lambda answer=available: answer)
        assert backend_for(("cuda:0", "cuda:1")) == expected
        assert backend_for(("cuda:0", "cuda:0")) == "gloo", "NCCL does not take a GPU twice"
        assert backend_for(("cpu", "cpu")) == "gloo"
        assert backend_for(("cpu",)) == "gloo"


@pytest.mark.parametrize("largest", [3, 4, 24, 100])
def test_shards_on_cpus_add_up_in_shared_memory(largest: int) -> None:
    """Tensors larger than its room too, several in turn, and again in another text."""
    memory = new_exchange(3, largest)
    parts = [[torch.randn(2, 12) for _ in range(5)] for _ in range(3)]
    found: dict[int, list[Tensor]] = {}

    def one(rank: int) -> None:
        communicator = SharedCommunicator(Shard(rank, 3), memory)
        found[rank] = [communicator.all_reduce(x.clone()) for x in parts[rank]]

    for _ in range(2):
        memory.tensor("arrived").zero_()
        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for n, wanted in enumerate(zip(*parts, strict=True)):
            torch.testing.assert_close(found[0][n], torch.stack(wanted).sum(0))
            assert all(torch.equal(found[0][n], found[rank][n]) for rank in (1, 2)), "bit by bit"
    memory.close()


def test_an_abandoned_sum_ends() -> None:
    memory = new_exchange(2, 4)
    memory.tensor("abandoned").fill_(1)
    communicator = SharedCommunicator(Shard(0, 2), memory)
    with pytest.raises(TextEndedError):
        communicator.all_reduce(torch.ones(3))
    memory.tensor("arrived").fill_(1)
    communicator.reset()
    assert communicator.all_reduce(torch.ones(3)).tolist() == [1, 1, 1]
    memory.close()
