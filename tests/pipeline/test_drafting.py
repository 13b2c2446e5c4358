"""Decoding with drafts makes the text of plain decoding, in fewer rounds, on one unit and two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import Sampling
from ppdmodel.pipeline.options import PromptLookup, SelfSpeculation, Task
from ppdmodel.pipeline.pipeline import Pipeline
from ppdmodel.pipeline.shared_engine import SharedEngine
from ppdmodel.pipeline.trace import EventKind
from ppdmodel.pipeline.worker_pool import Run, WorkerPool
from ppdmodel.results.prompt_lookup import prompt_lookup
from tests.pipeline.conftest import CPUS, LAYERS, TOKENS, Texts, pool_of

DRAFTS = [SelfSpeculation(1, 1), SelfSpeculation(3, 2), PromptLookup(2, 3), PromptLookup(1, 1)]


@pytest.fixture(scope="module")
def split(engine: SharedEngine) -> Iterator[WorkerPool]:
    with pool_of(engine, CPUS, tensor_parallel=True) as made:
        yield made


@pytest.mark.parametrize("drafts", DRAFTS)
def test_the_same_text(
    on_cpus: WorkerPool,
    on_devices: WorkerPool,
    split: WorkerPool,
    texts: Texts,
    plain: Texts,
    drafts: SelfSpeculation | PromptLookup,
) -> None:
    for pool in (on_cpus, on_devices, split):
        for ids, wanted in zip(texts, plain, strict=True):
            assert pool.run(Task(ids, TOKENS, drafts=drafts)).token_ids == wanted
        assert pool.run(Task(texts[0], 1, drafts=drafts)).token_ids == plain[0][:1]
        ended = pool.run(Task(texts[0], TOKENS, frozenset({plain[0][4]}), drafts=drafts))
        assert ended.token_ids == plain[0][: plain[0].index(plain[0][4]) + 1]


@pytest.mark.parametrize("drafts", DRAFTS)
def test_the_same_samples(
    on_cpus: WorkerPool, texts: Texts, drafts: SelfSpeculation | PromptLookup
) -> None:
    drawn = {"sampling": Sampling(1.5, 0.9, 4), "prompt_id": "p"}
    wanted = on_cpus.run(Task(texts[1], TOKENS, **drawn)).token_ids  # type: ignore[arg-type]
    made = on_cpus.run(Task(texts[1], TOKENS, drafts=drafts, **drawn))  # type: ignore[arg-type]
    assert made.token_ids == wanted


def rounds(run: Run) -> list[int]:
    """Rows of each verified batch: those that the last layer ran, after the prompt's."""
    events = run.events[0]
    last = (events[:, 2] == EventKind.LAYER) & (events[:, 4] == LAYERS)
    return [int(rows) for rows in events[last, 5]]


def test_drafts_that_are_right_are_accepted_and_counted(
    on_cpus: WorkerPool, texts: Texts, plain: Texts
) -> None:
    """A prompt that holds the text that follows it: each round takes all its drafts."""
    prompt = (*texts[0], *plain[0], *texts[0])
    made = on_cpus.run(Task(prompt, TOKENS)).token_ids
    run = on_cpus.run(Task((*prompt, *made, *prompt), TOKENS, drafts=PromptLookup(3, 4)))
    ids = [*prompt, *made, *prompt]
    accepted, batches = list[bool](), list[int]()
    text = on_cpus.run(Task(tuple(ids), TOKENS)).token_ids
    assert run.token_ids == text
    ids.append(text[0])
    while len(accepted) + 1 < TOKENS:
        done = len(accepted) + 1
        drafts = prompt_lookup(ids, 3, min(4, TOKENS - done - 1)) if TOKENS - done > 1 else []
        agree = 0
        while agree < len(drafts) and drafts[agree] == text[done + agree]:
            agree += 1
        new = text[done : done + agree + 1]
        accepted += [True] * agree + [False] * (len(new) - agree)
        batches.append(len(drafts) + 1)
        ids += new
    assert run.matched.tolist()[2:] == accepted[1:]
    assert rounds(run) == batches


def test_self_speculation_drafts_what_the_exit_says(
    engine: SharedEngine, on_cpus: WorkerPool, texts: Texts, plain: Texts
) -> None:
    run = on_cpus.run(Task(texts[0], TOKENS, drafts=SelfSpeculation(3, 2)))
    events = run.events[0]
    exits = int((events[:, 2] == EventKind.EXIT).sum())
    assert exits == sum(batch - 1 for batch in rounds(run))
    assert sum(rounds(run)) >= TOKENS - 1
    assert run.token_ids == plain[0]
    assert np.all(np.diff(run.verdict_ns) >= 0)
    opened = engine.open()
    assert opened.device == torch.device("cpu")


def test_bad_drafts_are_refused(pipeline: Pipeline) -> None:
    for drafts, what in (
        (SelfSpeculation(0, 1), "exit_layer"),
        (SelfSpeculation(12, 1), "exit_layer must be below the last layer"),
        (SelfSpeculation(3, 0), "drafted must be"),
        (PromptLookup(0, 1), "ngram must be"),
        (PromptLookup(1, -1), "drafted must be"),
    ):
        with pytest.raises(InvalidInputError, match=what):
            pipeline.drafted([1, 2], 4, drafts)
