"""One unit at a time in this process, and several that hand each other their guesses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from ppdmodel.measure import Sampling
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.measure.decoder.sampling import TokenPosition, choose, gumbel, scaled
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import unit as unit_module
from ppdmodel.pipeline.board import NO_MATCH, UNREAD, Board, TextEndedError, new_board, yield_cpu
from ppdmodel.pipeline.kv_cache import KVCache
from ppdmodel.pipeline.options import ForcedMatches, PpdSetting, Task
from ppdmodel.pipeline.shared_engine import SharedEngine, shared_engine
from ppdmodel.pipeline.trace import EventKind
from ppdmodel.pipeline.unit import Unit
from ppdmodel.pipeline.worker_pool import WorkerPool, placements
from ppdmodel.results.prompt_lookup import joined_guesses
from tests.pipeline.conftest import CAPACITY, FAR, LAYERS, TOKENS, K, Texts, pool_of, until_promoted


def a_unit(engine: SharedEngine, number: int = 0, units: int = 1) -> Unit:
    opened = engine.open()
    board = Board(new_board(CAPACITY.new_tokens, units, K, engine.shape.width, opened.dtype))
    board.clear()
    cache = torch.zeros(engine.shape.cache(CAPACITY.text_tokens))
    return Unit(number, opened, board, KVCache(cache))


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({}, 0),  # plain text is as fast as it can be
        ({"timed": True}, 1 + 3 * LAYERS),
        ({"setting": PpdSetting(2)}, 1 + 3 * LAYERS),  # others wait for what a layer made
    ],
)
def test_where_a_device_is_waited_for(
    engine: SharedEngine,
    texts: Texts,
    plain: Texts,
    options: dict[str, Any],
    waits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the prompt, and after each layer of the three tokens behind the first."""
    waited: list[torch.device] = []
    monkeypatch.setattr(unit_module, "synchronize", waited.append)
    unit = a_unit(engine)
    unit.run(Task(texts[0], 4, **options))
    assert tuple(unit.board.verdict[:4] - 1) == plain[0][:4]
    assert len(waited) == waits


def test_the_trace_of_a_plain_text(engine: SharedEngine, texts: Texts) -> None:
    events = a_unit(engine).run(Task(texts[0], 3))
    layers = [(EventKind.LAYER, token, n, 1) for token in (1, 2) for n in range(1, LAYERS + 1)]
    expected = [(EventKind.PROMPT, 0, 0, len(texts[0])), (EventKind.HEAD, 0, 0, 1), *layers]
    expected.insert(2 + LAYERS, (EventKind.HEAD, 1, 0, 1))
    expected.append((EventKind.HEAD, 2, 0, 1))
    assert [tuple(row) for row in events[:, 2:].tolist()] == expected
    assert (events[:, 1] >= events[:, 0]).all()
    assert (events[1:, 0] >= events[:-1, 1]).all()


@torch.inference_mode()
def test_a_text_is_drawn_with_the_noise_of_its_first_turn(
    engine: SharedEngine, loaded: LoadedModel, texts: Texts
) -> None:
    sampling, text = Sampling(0.9, 0.95, 3), list(texts[2])
    unit = a_unit(engine)
    unit.run(Task(texts[2], 4, sampling=sampling, prompt_id="p"))
    for token in range(4):
        logits = loaded.model(torch.tensor([text])).logits[:, -1]
        chosen, _ = choose(logits, [TokenPosition("p", 0, token)], sampling)
        text.append(int(chosen))
    assert (unit.board.verdict[:4] - 1).tolist() == text[-4:]


@pytest.mark.parametrize("sampling", [None, Sampling(2.0, 1.0, 3)])
@torch.inference_mode()
def test_guesses_are_the_most_likely_tokens_of_the_exit_in_turn(
    engine: SharedEngine, texts: Texts, sampling: Sampling | None
) -> None:
    """Two units that guess share them out, every second one each; with the noise of the token."""
    state = torch.randn(1, engine.shape.width, generator=torch.Generator().manual_seed(0))
    logits = engine.open().logits(state, 2)[0]
    if sampling is not None:
        noise = gumbel(sampling.seed, TokenPosition("p", 0, 1), len(logits))
        logits = scaled(logits, sampling.temperature) + torch.from_numpy(noise)
    wanted = logits.topk(K).indices.tolist()
    shares = {}
    for number, owner in ((1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2)):
        unit = a_unit(engine, number, units=3)
        unit.task = Task(texts[0], 4, setting=PpdSetting(2, K), sampling=sampling, prompt_id="p")
        unit.board.exit_state[1] = state[0]
        unit.board.owner[1] = owner
        shares[number, owner] = unit._read_exit(1).tolist()
    for first, second in (((1, 0), (2, 0)), ((0, 1), (2, 1)), ((0, 2), (1, 2))):
        assert (shares[first], shares[second]) == (wanted[::2], wanted[1::2])


@pytest.mark.parametrize("sampling", [None, Sampling(2.0, 1.0, 3)])
@torch.inference_mode()
def test_guesses_are_of_the_shortlist(
    loaded: LoadedModel, engine: SharedEngine, texts: Texts, sampling: Sampling | None
) -> None:
    ids = torch.arange(5, 200, 7)
    listed = replace(logit_exit(loaded.model), shortlist=ids)
    unit = a_unit(shared_engine(loaded, listed, CAPACITY.text_tokens), 1, units=2)
    state = torch.randn(1, engine.shape.width, generator=torch.Generator().manual_seed(0))
    scores = engine.open().logits(state, 2)[0]
    if sampling is not None:
        noise = gumbel(sampling.seed, TokenPosition("p", 0, 1), len(scores))
        scores = scaled(scores, sampling.temperature) + torch.from_numpy(noise)
    unit.task = Task(texts[0], 4, setting=PpdSetting(2, K), sampling=sampling, prompt_id="p")
    unit.board.exit_state[1], unit.board.owner[1] = state[0], 0
    assert unit._read_exit(1).tolist() == ids[scores[ids].topk(K).indices].tolist()


@torch.inference_mode()
def test_one_guess_is_what_followed_the_same_tokens_before(engine: SharedEngine) -> None:
    state = torch.randn(1, engine.shape.width, generator=torch.Generator().manual_seed(0))
    own = engine.open().logits(state, 2)[0].topk(K).indices.tolist()
    for ids, draft in (([7, 8, 9, 7, 8], [9]), ([7, 8, own[0], 7, 8], own[:1]), ([7, 8, 9], [])):
        unit = a_unit(engine, 1, units=2)
        # the last token of the text so far was made, the others were read
        unit.task = Task(tuple(ids[:-1]), 4, setting=PpdSetting(2, K, ngrams=2))
        unit.board.verdict[0] = ids[-1] + 1
        unit.board.exit_state[1] = state[0]
        found = unit._read_exit(1)
        assert found.tolist() == joined_guesses(own, draft)
        assert set(draft) <= set(found.tolist())
        assert found.dtype == np.int64


@pytest.mark.parametrize("exit_layer", range(1, LAYERS))
def test_the_state_that_is_handed_over_is_that_of_the_exit_layer(
    engine: SharedEngine, texts: Texts, exit_layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, made = a_unit(engine), {}
    advance = unit.engine.advance

    def recorded(index: int, x: torch.Tensor, place: int, cache: KVCache) -> torch.Tensor:
        if len(x) > 1:  # the prompt
            return advance(index, x, place, cache)
        assert unit.board.progress[place - len(texts[0]) + 1] == index, "what others may read"
        made[place, index] = advance(index, x, place, cache)
        return made[place, index]

    monkeypatch.setattr(unit.engine, "advance", recorded)
    unit.run(Task(texts[0], 4, setting=PpdSetting(exit_layer)))
    for token in (1, 2, 3):
        place = len(texts[0]) + token - 1
        assert torch.equal(unit.board.exit_state[token], made[place, exit_layer - 1][0])
        assert not torch.equal(unit.board.exit_state[token], made[place, exit_layer][0])
        assert unit.board.progress[token] == LAYERS


@torch.inference_mode()
def test_forced_guesses_are_right_or_wrong(engine: SharedEngine, texts: Texts) -> None:
    unit = a_unit(engine, 1, units=2)
    last = engine.shape.vocabulary - 1
    for hit in (True, False):
        forced = ForcedMatches((5, last, 6), (True, hit, True))
        unit.task = Task(texts[0], 4, setting=PpdSetting(2, K), forced=forced)
        unit.board.owner[1] = 0
        assert unit._read_exit(1).tolist() == ([last, 0, 1] if hit else [0, 1, 2])


def test_a_stopped_text_ends_a_wait(engine: SharedEngine, texts: Texts) -> None:
    unit = a_unit(engine, 1, units=2)
    unit.task = Task(texts[0], 4, setting=PpdSetting(2))
    unit.board.stop[0] = 1
    with pytest.raises(TextEndedError):
        unit._until(lambda: False, EventKind.AWAIT_EXIT, 1)
    unit._until(lambda: True, EventKind.AWAIT_EXIT, 1)  # what is there needs no wait
    assert not unit.trace.events


def test_a_poll_lets_others_compute_where_the_system_can(monkeypatch: pytest.MonkeyPatch) -> None:
    yielded: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: yielded.append(None))
    yield_cpu()
    assert len(yielded) == 1
    monkeypatch.delattr(os, "sched_yield")
    yield_cpu()


class Guessing:
    """The last unit of several, which guesses; what unit 0 does happens while this one waits.

    The KV cache holds a whole plain text, so that unit 0 need only publish. `waits` tells, for each
    poll, whether this unit slept.
    """

    def __init__(
        self, engine: SharedEngine, plain: tuple[int, ...], task: Task, units: int
    ) -> None:
        self.unit, self.task, self.plain = a_unit(engine, units - 1, units), task, plain
        first = Unit(0, self.unit.engine, self.unit.board, self.unit.cache)
        first.run(Task(task.prompt_ids, task.max_new_tokens))
        self.kept = self.unit.cache.tensor.clone()
        self.unit.board.clear()
        self.waits: list[bool] = []
        self.rows: list[tuple[int, int]] = []

    def verdict(self, token: int) -> None:
        board = self.unit.board
        owner, row = board.find_match(token, self.plain[token], 0)
        board.publish_verdict(token, self.plain[token], owner, row, 0)

    def progress(self, token: int, layers: int) -> None:
        self.unit.board.progress[token] = layers

    def run(self, steps: list[Callable[[], None]], patch: pytest.MonkeyPatch) -> list[Any]:
        """Run the task, a step at each poll; returns the trace without times."""
        engine, left = self.unit.engine, iter(steps)
        layer, advance = engine.layer, engine.advance

        def step(asleep: bool) -> None:
            self.waits.append(asleep)
            next(left)()

        def recorded(run: Any) -> Callable[..., torch.Tensor]:
            def one(index: int, x: torch.Tensor, *rest: Any) -> torch.Tensor:
                self.rows.append((index, len(x)))
                made: torch.Tensor = run(index, x, *rest)
                return made

            return one

        patch.setattr(unit_module, "yield_cpu", lambda: step(False))
        patch.setattr(time, "sleep", lambda _seconds: step(True))
        patch.setattr(engine, "layer", recorded(layer))
        patch.setattr(engine, "advance", recorded(advance))
        events = self.unit.run(self.task)
        assert not list(left), "it must have waited for all of them"
        assert (events[1:, 0] >= events[:-1, 1]).all()
        return [tuple(row) for row in events[:, 2:].tolist()]


@pytest.mark.parametrize("row_by_row", [False, True])
def test_a_right_guess_step_by_step(
    engine: SharedEngine,
    texts: Texts,
    plain: Texts,
    row_by_row: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has run all layers at the verdict, and so only reads the LM head; then it goes on."""
    forced = ForcedMatches(plain[1], (True,) * TOKENS)
    task = Task(texts[1], 4, setting=PpdSetting(3, 2, row_by_row), forced=forced)
    made = Guessing(engine, plain[1], task, units=2)
    made.unit.layer_ns = 10**9  # so slow that there is time to sleep
    trace = made.run(
        [
            lambda: made.verdict(0),
            lambda: made.progress(1, 1),
            lambda: made.progress(1, 3),
            lambda: made.progress(1, 4),
            lambda: made.verdict(1),
        ],
        monkeypatch,
    )
    assert made.waits == [False, True, False, False, False], "asleep until the exit is near"
    guessed = [(EventKind.LAYER, 2, layer, 2) for layer in range(1, LAYERS + 1)]
    assert trace == [
        (EventKind.AWAIT_VERDICT, 0, 0, 0),
        (EventKind.AWAIT_EXIT, 1, 0, 0),
        (EventKind.EXIT, 1, 3, 1),
        *guessed[:3],
        (EventKind.AWAIT_LAYER, 1, 0, 0),
        *guessed[3:],
        (EventKind.AWAIT_VERDICT, 1, 0, 0),
        (EventKind.PROMOTE, 2, LAYERS, 1),
        (EventKind.HEAD, 2, 0, 1),
        *[(EventKind.LAYER, 3, layer, 1) for layer in range(1, LAYERS + 1)],
        (EventKind.HEAD, 3, 0, 1),
    ]
    once = [(index, 1 if row_by_row else 2) for index in range(LAYERS)]
    both = [each for each in once for _ in range(2)] if row_by_row else once
    assert made.rows == both + [(index, 1) for index in range(LAYERS)]
    assert tuple(made.unit.board.verdict[:4] - 1) == plain[1][:4]
    torch.testing.assert_close(made.unit.cache.tensor, made.kept, rtol=1e-4, atol=1e-5)


def test_a_right_guess_that_is_not_finished_at_the_verdict(
    engine: SharedEngine, texts: Texts, plain: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer in flight is its last as a guess; its state at the exit is handed over."""
    forced = ForcedMatches(plain[1], (True,) * TOKENS)
    task = Task(texts[1], 3, setting=PpdSetting(1, 2), forced=forced)
    made = Guessing(engine, plain[1], task, units=2)
    trace = made.run(
        [lambda: made.verdict(0), lambda: made.progress(1, 1), lambda: made.verdict(1)], monkeypatch
    )
    assert trace == [
        (EventKind.AWAIT_VERDICT, 0, 0, 0),
        (EventKind.AWAIT_EXIT, 1, 0, 0),
        (EventKind.EXIT, 1, 1, 1),
        (EventKind.LAYER, 2, 1, 2),
        (EventKind.AWAIT_LAYER, 1, 0, 0),
        (EventKind.LAYER, 2, 2, 2),
        (EventKind.PROMOTE, 2, 2, 1),
        (EventKind.LAYER, 2, 3, 1),
        (EventKind.LAYER, 2, 4, 1),
        (EventKind.HEAD, 2, 0, 1),
    ]
    board, opened = made.unit.board, made.unit.engine
    assert int(board.verdict[2]) - 1 == plain[1][2]
    x, place = opened.embed(torch.tensor(plain[1][1:2])), len(texts[1]) + 1
    own = torch.zeros(engine.shape.guesses(1))
    wanted = opened.layer(0, x, place, KVCache(made.kept), own)[0]
    assert torch.equal(board.exit_state[2], wanted), "alone and in a batch, bit by bit"


@pytest.mark.parametrize(("units", "rows"), [(2, 2), (4, 0)])
def test_wrong_guesses_are_dropped(
    engine: SharedEngine,
    texts: Texts,
    plain: Texts,
    units: int,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those for the token behind a wrong one; for the one behind the last there are none."""
    forced = ForcedMatches(plain[1], (False,) * TOKENS)
    task = Task(texts[1], 3, setting=PpdSetting(2, 2), forced=forced)
    made = Guessing(engine, plain[1], task, units)
    trace = made.run(
        [
            lambda: made.verdict(0),
            lambda: made.progress(1, LAYERS),
            lambda: made.verdict(1),
            lambda: made.verdict(2),
        ],
        monkeypatch,
    )
    done = LAYERS if rows else 0
    assert trace == [
        (EventKind.AWAIT_VERDICT, 0, 0, 0),
        (EventKind.AWAIT_EXIT, 1, 0, 0),
        (EventKind.EXIT, 1, 2, 1),
        *[(EventKind.LAYER, 2, layer, rows) for layer in range(1, done + 1)],
        (EventKind.AWAIT_VERDICT, 1, 0, 0),
        (EventKind.DROP, 2, done, rows),
        (EventKind.AWAIT_VERDICT, 2, 0, 0),
    ]
    assert (made.unit.board.row[1:4] == NO_MATCH).all()
    assert torch.equal(made.unit.cache.tensor, made.kept)


@pytest.mark.parametrize("reads", [True, False])
def test_guesses_that_come_after_the_verdict_are_known_in_the_end(
    engine: SharedEngine, texts: Texts, plain: Texts, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict falls while the exit of token 1 is read, or before; that of token 2 before."""
    forced = ForcedMatches(plain[1], (False, True, False, True))
    task = Task(texts[1], 4, setting=PpdSetting(2, 2), forced=forced)
    made = Guessing(engine, plain[1], task, units=2)
    unit, read = made.unit, made.unit._read_exit

    def slowly(token: int) -> np.ndarray:
        if not unit.board.verdict[token]:
            made.verdict(token)
        return read(token)

    monkeypatch.setattr(unit, "_read_exit", slowly)
    first = (lambda: made.progress(1, 2)) if reads else (lambda: made.verdict(1))
    trace = made.run(
        [lambda: made.verdict(0), first, lambda: made.verdict(2), lambda: made.verdict(3)],
        monkeypatch,
    )
    kinds = [kind for kind, *_ in trace]
    assert EventKind.PROMOTE not in kinds
    assert kinds.count(EventKind.EXIT) == reads, "what is read in the end took no time of the text"
    assert unit.board.n_guesses[1, 1:4].tolist() == [2, 2, UNREAD], "the last has none"
    assert (unit.board.row[1:4] == NO_MATCH).all()
    assert unit.board.guessed_right(4).tolist() == [False, True, False, False]


def test_an_abandoned_text_is_not_read_to_its_end(engine: SharedEngine, texts: Texts) -> None:
    unit = a_unit(engine, 1, units=2)
    unit.task = task = Task(texts[0], 4, setting=PpdSetting(2))
    unit.board.verdict[:3] = 1
    unit.board.abandoned[0] = 1
    unit._read_late(task)
    assert (unit.board.n_guesses == UNREAD).all()


@torch.inference_mode()
def test_a_unit_that_lags_behind_reads_every_exit_that_it_left_out(
    engine: SharedEngine, texts: Texts
) -> None:
    """Others have ended the text when it comes to the first; those it owned are not guessed."""
    unit = a_unit(engine, 1, units=2)
    unit.board.verdict[:6], unit.board.stop[0] = 1, 1
    unit.board.owner[3] = 1
    unit.run(Task(texts[0], 8, setting=PpdSetting(2, 2)))
    assert unit.board.n_guesses[1, :8].tolist() == [UNREAD, 2, 2, UNREAD, 2, 2, UNREAD, UNREAD]


# ---------------------------------------------------------------- several of them


def assert_every_setting(made: WorkerPool, texts: Texts, plain: Texts) -> None:
    matches = 0
    for ids, wanted in zip(texts, plain, strict=True):
        assert made.run(Task(ids, TOKENS)).token_ids == wanted
        forced = ForcedMatches(wanted, (True,) * TOKENS)
        for exit_layer in (1, LAYERS - 1):
            for row_by_row in (False, True):
                task = Task(ids, TOKENS, setting=PpdSetting(exit_layer, K, row_by_row))
                assert made.run(task).token_ids == wanted, task.setting
                run = made.run(replace(task, forced=forced))
                assert run.token_ids == wanted, task.setting
                assert (run.matches ^ run.late_guesses).all(), "all are right, in time or late"
                matches += int(run.matched.sum())
    assert matches > 3, "some guesses must have been right, or nothing was handed over"


def test_every_setting_gives_the_same_tokens(
    on_devices: WorkerPool, texts: Texts, plain: Texts
) -> None:
    assert_every_setting(on_devices, texts[1:], plain[1:])


def test_units_that_share_a_device(engine: SharedEngine, texts: Texts, plain: Texts) -> None:
    with pool_of(engine, [*FAR, FAR[0]]) as made:
        assert_every_setting(made, texts[:1], plain[:1])


def test_all_see_what_is_handed_over(
    on_cpus: WorkerPool, on_devices: WorkerPool, texts: Texts, plain: Texts
) -> None:
    """After a text in which every other guess was right, keys and values are those of a CPU."""
    forced = ForcedMatches(plain[1], tuple(n % 2 == 0 for n in range(TOKENS)))
    task = Task(texts[1], TOKENS, setting=PpdSetting(1, 2, row_by_row=True), forced=forced)
    kept = []
    for made in (on_cpus, on_devices):
        cache = made.cache.tensor("cache")
        cache.zero_()
        run = until_promoted(partial(made.run, task))
        kept.append(cache.clone())
        assert run.token_ids == plain[1]
        assert not run.matched.all()
    assert kept[0][:, :, :, len(texts[1]) :].any()
    # a device multiplies by another library than NumPy, and so rounds otherwise
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-4, atol=1e-5)


def test_samples_on_devices(on_cpus: WorkerPool, on_devices: WorkerPool, texts: Texts) -> None:
    task = Task(texts[2], TOKENS, sampling=Sampling(0.9, 0.95, 3), prompt_id="p")
    wanted = on_cpus.run(task).token_ids
    assert on_devices.run(task).token_ids == wanted
    assert on_devices.run(replace(task, setting=PpdSetting(2, K))).token_ids == wanted


@pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU")
def test_on_gpus(engine: SharedEngine, texts: Texts, plain: Texts) -> None:
    with pool_of(engine, placements(2, device="cuda:0,cuda:0")) as made:
        assert_every_setting(made, texts, plain)
        assert made.run(Task(texts[0], TOKENS)).token_ids == plain[0]
