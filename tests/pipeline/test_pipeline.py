"""Real PPD: the same tokens as plain decoding, whatever the setting; memory is given back."""

from __future__ import annotations

import gc
import os
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure import Sampling
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.measure.training.trained_exits import TrainedExits
from ppdmodel.pipeline import pipeline as pipeline_module
from ppdmodel.pipeline.options import Capacity, ForcedMatches, PpdSetting, RunOptions, Task, Workers
from ppdmodel.pipeline.pipeline import Pipeline
from ppdmodel.pipeline.worker_pool import Placement
from ppdmodel.results.prompt_lookup import prompt_lookup
from tests.conftest import TEXT
from tests.pipeline.conftest import CPUS, DEEP, FAR, TWO_CPUS, until_promoted
from tests.pipeline.test_decoding import generated
from tests.pipeline.test_shared_memory import held

TOKENS, K = 24, 5
PROMPTS = [TEXT[n : n + 4 + 5 * n] for n in range(6)]
WHOLE = RunOptions(stops=False)


@pytest.fixture(scope="module")
def ids(deep: LoadedModel) -> list[list[int]]:
    return [deep.encode([text], chat=False) for text in PROMPTS]


@torch.inference_mode()
def model_guesses(
    loaded: LoadedModel, prompt: list[int], made: tuple[int, ...], exit_layer: int
) -> np.ndarray:
    """Rank from 0 of the token before among the guesses that the model's own exit has of it.

    [tokens], beyond every k for the first two, of which nothing was guessed in time or late.
    """
    states = loaded.model(torch.tensor([[*prompt, *made]]), output_hidden_states=True)
    state = states.hidden_states[exit_layer][0, len(prompt) - 1 : -1]
    logits = loaded.model.lm_head(loaded.model.model.norm(state))
    ranks = (logits > logits.gather(1, torch.tensor(made)[:, None])).sum(1).numpy()
    found = np.full(len(made), loaded.model.config.vocab_size)
    found[2:] = ranks[1:-1]
    return found


@TWO_CPUS
def test_every_setting_gives_the_tokens_of_plain_decoding(
    deep: LoadedModel, pipeline: Pipeline, ids: list[list[int]]
) -> None:
    plain = [pipeline.greedy(given, TOKENS) for given in ids]
    matches = 0
    both = list(zip(ids, plain, strict=True))
    for given, run in both:
        assert run.token_ids == generated(deep, given, TOKENS)
        assert run.token_ids == pipeline.greedy_split(given, TOKENS).token_ids
    for exit_layer in (1, 4, 7, DEEP - 1):
        right = [model_guesses(deep, given, run.token_ids, exit_layer) for given, run in both]
        for k in (1, 3, 5):
            for row_by_row in (False, True):
                setting = PpdSetting(exit_layer, k, row_by_row)
                for (given, run), ranks in zip(both, right, strict=True):
                    made = pipeline.ppd(given, TOKENS, setting)
                    assert made.token_ids == run.token_ids, setting
                    assert (made.matched | made.late).tolist() == (ranks < k).tolist(), setting
                    matches += int(made.matched.sum())
    assert matches > 5, "some guesses must have been right, or nothing was tried"


@TWO_CPUS
def test_guesses_of_a_shortlist_give_the_same_tokens(
    deep: LoadedModel, ids: list[list[int]]
) -> None:
    """A token outside of the list is never guessed; another may be."""
    plain = generated(deep, ids[5], TOKENS)
    listed = torch.tensor(sorted(set(plain[: TOKENS // 2])))
    exits = TrainedExits({}, "0" * 64, {}, {"trained_on": []}, listed)
    missing = ~np.isin(plain, listed)
    assert missing[1:-1].any()
    with Pipeline(deep, prompt_tokens=64, tokens=TOKENS, k=4, exits=exits) as listing:
        options = RunOptions(stops=False)
        for exit_layer in (3, DEEP - 1):
            made = listing.ppd(ids[5], TOKENS, PpdSetting(exit_layer, 4), options)
            assert list(made.token_ids) == list(plain)
            guessed = made.matches | made.late_guesses
            assert not guessed[missing[1:-1]].any(), "a process begins as a guess of its input"
        assert guessed.any()
    with pytest.raises(InvalidInputError, match="k must not exceed the exits' shortlist; got 99;"):
        Pipeline(deep, prompt_tokens=64, tokens=TOKENS, k=99, exits=exits)


@TWO_CPUS
def test_a_guess_by_prompt_lookup(deep: LoadedModel, pipeline: Pipeline) -> None:
    """The text is the same, and one guess is what followed the same tokens, whatever the exit."""
    gained = 0
    for first, end in ((36, 39), (34, 37), (21, 30), (5, 8)):
        given = deep.encode([TEXT[first:end]], chat=False)
        run = pipeline.greedy(given, TOKENS)
        ranks = model_guesses(deep, given, run.token_ids, 4)
        for k in (1, 3):
            made = pipeline.ppd(given, TOKENS, PpdSetting(4, k, ngrams=2))
            assert made.token_ids == run.token_ids
            right = (made.matched | made.late).tolist()
            for place in range(2, len(right)):  # the guesses of the token before
                draft = prompt_lookup([*given, *run.token_ids[: place - 1]], 2, 1)
                rank = int(ranks[place])
                if draft == [run.token_ids[place - 1]]:
                    assert right[place]
                    gained += rank >= k
                elif not draft:
                    assert right[place] == (rank < k)
                else:
                    assert right[place] in ((rank < k - 1), (rank < k))
    assert gained > 3, "some only because of the text, or nothing was tried"


@TWO_CPUS
def test_row_by_row_nothing_rounds_otherwise(pipeline: Pipeline, ids: list[list[int]]) -> None:
    plain = pipeline.greedy(ids[3], TOKENS, WHOLE)
    cache = pipeline.pool.cache.tensor("cache")
    before = cache.clone()
    forced = ForcedMatches(plain.token_ids, (True,) * TOKENS)
    setting = PpdSetting(2, 4, row_by_row=True)
    until_promoted(partial(pipeline.ppd, ids[3], TOKENS, setting, WHOLE, forced=forced))
    assert torch.equal(cache, before), "keys and values of promoted guesses, bit by bit"


@TWO_CPUS
def test_what_is_interrupted_while_it_starts_leaves_no_process(
    deep: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = Pipeline(deep, prompt_tokens=8, tokens=4, k=1)
    started: list[Any] = []

    def interrupt() -> None:
        started.extend(interrupted.pool._processes)
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupted.pool, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt), interrupted:
        raise AssertionError("it must not be entered")
    assert len(started) == 2
    assert not interrupted.pool._processes
    assert not any(process.is_alive() for process in started)


@TWO_CPUS
def test_given_matches(pipeline: Pipeline, ids: list[list[int]]) -> None:
    plain = pipeline.greedy(ids[2], TOKENS, WHOLE)
    hits = tuple(n % 3 != 0 for n in range(TOKENS))
    forced = ForcedMatches(plain.token_ids, hits)
    setting = PpdSetting(1, 3)
    made = until_promoted(partial(pipeline.ppd, ids[2], TOKENS, setting, WHOLE, forced=forced))
    assert made.token_ids == plain.token_ids
    followed = np.array(hits[1:-1])  # the guesses for token i's successor start process i + 1
    assert not made.matched[2:][~followed].any()
    assert made.matched[2:][followed].any()


@TWO_CPUS
def test_samples_are_those_of_plain_decoding(pipeline: Pipeline, ids: list[list[int]]) -> None:
    texts = set()
    for seed in range(3):
        options = RunOptions(sampling=Sampling(0.9, 0.95, seed), prompt_id="p")
        plain = pipeline.greedy(ids[4], TOKENS, options)
        made = pipeline.ppd(ids[4], TOKENS, PpdSetting(3, 3), options)
        assert made.token_ids == plain.token_ids
        texts.add(made.token_ids)
    assert len(texts) == 3


def test_an_end_token_ends_the_text(
    deep: LoadedModel, pipeline: Pipeline, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.greedy(ids[5], TOKENS, WHOLE).token_ids
    assert pipeline.ppd(ids[5], 1, PpdSetting(2, 2)).token_ids == whole[:1]
    ends = frozenset([whole[6]])
    task = Task(tuple(ids[5]), TOKENS, end_ids=ends, setting=PpdSetting(2, 2))
    ended = pipeline.pool.run(task).token_ids
    assert ended == whole[: whole.index(whole[6]) + 1]
    monkeypatch.setattr(deep.model.generation_config, "eos_token_id", whole[6])
    assert pipeline.greedy(ids[5], TOKENS).token_ids == ended
    assert pipeline.greedy(ids[5], TOKENS, WHOLE).token_ids == whole


@pytest.mark.parametrize(
    ("where", "split"),
    [
        (CPUS, CPUS),
        ([Placement(1, (3,)), Placement(1, (5,))], [Placement(1, (3,)), Placement(1, (5,))]),
        ([Placement(1, None)] * 5, [Placement(1, None)] * 4),
        (FAR, FAR),
        ([*FAR, *FAR, FAR[0]], None),
    ],
)
def test_where_plain_text_is_split(
    deep: LoadedModel,
    where: list[Placement],
    split: list[Placement] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each shard has a head: CPUs beyond them are left idle, and devices beyond them refused."""
    monkeypatch.setattr(pipeline_module, "placements", lambda units, device: where)
    if split is None:
        with pytest.raises(InvalidInputError, match="must not exceed the model's 4 heads"):
            Pipeline(deep, prompt_tokens=8, tokens=4, workers=Workers(len(where)))
        return
    made = Pipeline(deep, prompt_tokens=8, tokens=4, workers=Workers(len(where)))
    assert made.pool.where == tuple(where)
    assert made.tensor_parallel.where == tuple(split)
    assert made.tensor_parallel.tensor_parallel
    assert made.pool.capacity == made.tensor_parallel.capacity == Capacity(8, 4, 1)
    made.close()


def test_bad_input_is_refused(deep: LoadedModel, pipeline: Pipeline) -> None:
    for units in (0, 1):
        with pytest.raises(InvalidInputError, match="units must be"):
            Pipeline(deep, prompt_tokens=8, tokens=8, workers=Workers(units))
    if len(os.sched_getaffinity(0)) >= 2:
        with pytest.raises(InvalidInputError, match="must fit the model's context"):
            Pipeline(deep, prompt_tokens=8, tokens=10**6)
        with pytest.raises(InvalidInputError, match="k must not exceed the vocabulary"):
            Pipeline(deep, prompt_tokens=8, tokens=8, k=258)
        Pipeline(deep, prompt_tokens=8, tokens=8, k=257).close()
    with pytest.raises(InvalidInputError, match="that is plain greedy decoding"):
        pipeline.ppd([1, 2], 4, PpdSetting(DEEP))
    with pytest.raises(InvalidInputError, match="exit_layer must not exceed layers"):
        pipeline.ppd([1, 2], 4, PpdSetting(DEEP + 1))
    with pytest.raises(InvalidInputError, match="must fit the units' room"):
        pipeline.ppd([1, 2], 4, PpdSetting(2, K + 1))


@TWO_CPUS
def test_a_unit_that_fails_says_why(pipeline: Pipeline, ids: list[list[int]]) -> None:
    plain = pipeline.greedy(ids[0], 8, WHOLE)
    with pytest.raises(RunFailedError, match=r"got on unit 0: IndexError"):
        pipeline.ppd([10**6], 8, PpdSetting(2))
    for _ in range(2):  # no answer of the failed text is taken for one of the next
        again = pipeline.ppd(ids[0], 8, PpdSetting(2), WHOLE)
        assert again.token_ids == plain.token_ids
        assert len(again.events[1])


def test_a_callback_may_fail(pipeline: Pipeline, ids: list[list[int]]) -> None:
    plain = pipeline.greedy(ids[1], TOKENS, WHOLE)

    def fail(_token_id: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.ppd(ids[1], TOKENS, PpdSetting(3, 2), WHOLE, on_token=fail)
    again = pipeline.ppd(ids[1], TOKENS, PpdSetting(3, 2), WHOLE)
    assert again.token_ids == plain.token_ids


@TWO_CPUS
def test_memory_is_given_back(deep: LoadedModel) -> None:
    before = held()
    with Pipeline(deep, prompt_tokens=8, tokens=4) as made:
        assert held() >= before + 3
        made.greedy([1, 2], 2)
    del made
    gc.collect()  # a map of memory holds it as long as a tensor looks at it
    assert held() == before
