"""One unit at a time in this process, and several that hand each other their guesses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ppdmodel.measure import Sampling
from ppdmodel.pipeline import unit as unit_module
from ppdmodel.pipeline.board import Board, new_board
from ppdmodel.pipeline.engine import SharedEngine
from ppdmodel.pipeline.kv_cache import KVCache
from ppdmodel.pipeline.options import PpdSetting
from ppdmodel.pipeline.unit import EventKind, ForcedMatches, Task, TextEndedError, Unit
from ppdmodel.pipeline.worker_pool import WorkerPool, placements
from tests.pipeline.conftest import CAPACITY, FAR, LAYERS, TOKENS, K, Texts, pool_of


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
    layers = [(EventKind.LAYER, token, n) for token in (1, 2) for n in range(1, LAYERS + 1)]
    expected = [(EventKind.PROMPT, 0, 0), (EventKind.HEAD, 0, 0), *layers]
    expected.insert(2 + LAYERS, (EventKind.HEAD, 1, 0))
    expected.append((EventKind.HEAD, 2, 0))
    assert [tuple(row) for row in events[:, 2:5].tolist()] == expected
    assert events[0, 5] == len(texts[0])
    assert (events[:, 1] >= events[:, 0]).all()
    assert (events[1:, 0] >= events[:-1, 1]).all()


@torch.inference_mode()
def test_guesses_are_the_largest_logits_of_the_exit_in_turn(
    engine: SharedEngine, texts: Texts
) -> None:
    """Two units that guess share them out: every second one each."""
    state = torch.randn(1, engine.shape.width)
    wanted = engine.open().logits(state, 2)[0].topk(K).indices.tolist()
    shares = {}
    for number, owner in ((1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2)):
        unit = a_unit(engine, number, units=3)
        unit.task = Task(texts[0], 4, setting=PpdSetting(2, K))
        unit.board.exit_state[1] = state[0]
        unit.board.owner[1] = owner
        shares[number, owner] = unit._read_exit(1).tolist()
    for first, second in (((1, 0), (2, 0)), ((0, 1), (2, 1)), ((0, 2), (1, 2))):
        assert (shares[first], shares[second]) == (wanted[::2], wanted[1::2])


@pytest.mark.parametrize("exit_layer", range(1, LAYERS))
def test_the_state_that_is_handed_over_is_that_of_the_exit_layer(
    engine: SharedEngine, texts: Texts, exit_layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, made = a_unit(engine), {}
    layer = unit.engine.layer

    def recorded(index: int, x: torch.Tensor, place: int, *rest: Any) -> torch.Tensor:
        made[place, index] = layer(index, x, place, *rest)
        return made[place, index]

    monkeypatch.setattr(unit.engine, "layer", recorded)
    unit.run(Task(texts[0], 4, setting=PpdSetting(exit_layer)))
    for token in (1, 2, 3):
        place = len(texts[0]) + token - 1
        assert torch.equal(unit.board.exit_state[token], made[place, exit_layer - 1][0])
        assert not torch.equal(unit.board.exit_state[token], made[place, exit_layer][0])


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
    assert not unit.events


def test_a_unit_without_its_parent_ends(engine: SharedEngine, texts: Texts) -> None:
    unit = a_unit(engine)
    unit.parent = -1
    with pytest.raises(SystemExit):
        unit.run(Task(texts[0], 3))


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
        run = made.run(task)
        kept.append(cache.clone())
        assert run.token_ids == plain[1]
        assert run.matched.any(), "some guess must have been promoted, or nothing was tried"
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
