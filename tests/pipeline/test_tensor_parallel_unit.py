"""Plain text by tensor parallelism: the tokens of one unit, and an end that all units share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import pytest
import torch

from ppdmodel.errors import RunFailedError
from ppdmodel.pipeline.options import Task
from ppdmodel.pipeline.shared_engine import SharedEngine
from ppdmodel.pipeline.trace import EventKind
from ppdmodel.pipeline.worker_pool import Placement, placements
from tests.pipeline.conftest import CAPACITY, CPUS, FAR, LAYERS, TOKENS, Texts, pool_of


@pytest.mark.parametrize("where", [CPUS, FAR])
def test_a_split_text_is_the_same(
    engine: SharedEngine, texts: Texts, plain: Texts, where: Sequence[Placement]
) -> None:
    with pool_of(engine, where, tensor_parallel=True) as made:
        for ids, wanted in zip(texts, plain, strict=True):
            run = made.run(Task(ids, TOKENS))
            assert run.token_ids == wanted
            for events in run.events:  # all of them do every layer of every token
                assert (events[:, 2] == EventKind.LAYER).sum() == LAYERS * (len(wanted) - 1)
            assert made.run(Task(ids, 1)).token_ids == wanted[:1]
            ended = made.run(Task(ids, TOKENS, end_ids=frozenset([wanted[4]])))
            assert ended.token_ids == wanted[: wanted.index(wanted[4]) + 1]
        assert made.run(Task(texts[0], TOKENS)).token_ids == plain[0]


def test_a_split_text_that_is_stopped(engine: SharedEngine, texts: Texts, plain: Texts) -> None:
    def fail(_token_id: int) -> None:
        raise KeyboardInterrupt

    with pool_of(engine, CPUS, tensor_parallel=True) as made:
        for _ in range(3):  # all leave at one and the same token, whenever it comes
            with pytest.raises(KeyboardInterrupt):
                made.run(Task(texts[0], CAPACITY.new_tokens), fail)
            assert made.run(Task(texts[0], TOKENS)).token_ids == plain[0]
        longest = made.run(Task(texts[0], CAPACITY.new_tokens)).token_ids
        assert len(longest) == CAPACITY.new_tokens
        os.kill(made._processes[1].pid, signal.SIGKILL)
        with pytest.raises(RunFailedError, match=r"unit [01]"):
            made.run(Task(texts[0], TOKENS))
    assert not made._processes


def test_a_shard_that_never_comes(engine: SharedEngine) -> None:
    """The first waits for it; still the error is the other one's, and soon."""
    nowhere = Placement(1, None, "cuda:99")
    begin = time.monotonic()
    with (
        pytest.raises(RunFailedError, match="got on unit 1: "),
        pool_of(engine, [CPUS[0], nowhere], tensor_parallel=True),
    ):
        pass
    assert time.monotonic() - begin < 60, "not as long as it would wait"


@pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU")
def test_on_gpus(engine: SharedEngine, texts: Texts, plain: Texts) -> None:
    with pool_of(engine, placements(2, device="cuda:0,cuda:0"), tensor_parallel=True) as made:
        assert made.run(Task(texts[0], TOKENS)).token_ids == plain[0]
