"""Processes that are started, fail, die and end; nothing is left of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import worker_pool
from ppdmodel.pipeline.options import Capacity, ForcedMatches, PpdSetting, Task
from ppdmodel.pipeline.shared_engine import SharedEngine, shared_engine
from ppdmodel.pipeline.trace import EventKind
from ppdmodel.pipeline.worker_pool import Placement, Run, WorkerPool, placements
from tests.pipeline.conftest import (
    CAPACITY,
    CPUS,
    FAR,
    TOKENS,
    TWO_CPUS,
    Texts,
    pool_of,
    until_promoted,
)
from tests.pipeline.test_child_process import left_of
from tests.support.far_device import FarPlacement


def test_units_on_cpus_compute_in_the_one_cache_that_they_share(engine: SharedEngine) -> None:
    made = WorkerPool(engine, CPUS, CAPACITY)
    for number, place in enumerate(CPUS):
        spec = worker_pool._UnitSpec(number, place, engine, made.memory, made.cache, None)
        unit = spec.build()
        assert unit.cache.tensor.data_ptr() == made.cache.tensor("cache").data_ptr()
        assert unit.cache.shared is None


def test_a_run_is_timed_from_its_third_token() -> None:
    run = Run(
        (5, 6, 7, 8),
        np.array([1, 2, 4, 9]) * 10**9,
        np.array([False, False, True, False]),
        np.array([False, False, False, True]),
        (),
    )
    assert run.times_s.tolist() == [2.0, 5.0]
    assert run.matches.tolist() == [True, False]
    assert run.late_guesses.tolist() == [False, True]


def test_placements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 3, 5, 4, 6})
    assert placements(2) == [Placement(1, (3,)), Placement(1, (4,))]
    assert len(placements(5)) == 5
    with pytest.raises(InvalidInputError, match=r"units must not exceed the CPUs .* there are 5"):
        placements(6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    on_gpus = placements(2, device="cuda")
    assert [place.device for place in on_gpus] == ["cuda:0", "cuda:1"]
    assert {place.cpus for place in on_gpus} == {None}


def test_guesses_spread_over_several_units(
    engine: SharedEngine, texts: Texts, plain: Texts
) -> None:
    anywhere = [Placement(1, None)] * 4  # more units than CPUs: slower, and right all the same
    with pool_of(engine, anywhere) as units:
        for k in (1, 2, 3):
            made = units.run(Task(texts[1], TOKENS, setting=PpdSetting(2, k)))
            assert made.token_ids == plain[1]
            rows = max(int(u[u[:, 2] == EventKind.LAYER][:, 5].max(initial=0)) for u in made.events)
            assert rows == 1, "one guess on each"


def test_matched_are_the_tokens_whose_guess_went_on(
    on_cpus: WorkerPool, texts: Texts, plain: Texts
) -> None:
    forced = ForcedMatches(plain[1], tuple(n % 2 == 0 for n in range(TOKENS)))
    task = Task(texts[1], TOKENS, setting=PpdSetting(1, 2), forced=forced)
    run = until_promoted(partial(on_cpus.run, task))
    events = np.concatenate(run.events)
    promoted = events[events[:, 2] == EventKind.PROMOTE][:, 3]
    assert np.flatnonzero(run.matched).tolist() == sorted(promoted.tolist())
    assert len(promoted), "some guess must have come in time, or nothing was tried"
    right = np.arange(TOKENS) % 2 == 1  # a process begins as the guess of the token before
    right[:2] = False
    assert (run.matched | run.late).tolist() == right.tolist()
    assert not (run.matched & run.late).any()


def test_a_plain_text_by_shards(engine: SharedEngine, texts: Texts, plain: Texts) -> None:
    with pool_of(engine, CPUS, tensor_parallel=True) as units:
        run = units.run(Task(texts[1], TOKENS))
    assert run.token_ids == plain[1]
    assert all(map(len, run.events)), "each unit has its shard"


def test_a_task_must_fit(on_cpus: WorkerPool) -> None:
    for task, asked in (
        (Task((1,), 4, setting=PpdSetting(2, 4)), (5, 4, 4)),
        (Task((1,), 41), (42, 41, 1)),
        (Task((1,) * 41, 40), (81, 40, 1)),
    ):
        words = f"must fit the units' room .*; got {re.escape(f'{asked}; there is (80, 40, 3)')}"
        with pytest.raises(InvalidInputError, match=words):
            on_cpus.run(task)
    heard: list[int] = []
    run = on_cpus.run(Task((1,) * 40, 40), heard.append)
    assert len(heard) == 40
    assert tuple(heard) == run.token_ids


def test_a_text_is_heard_while_it_is_made_and_can_be_stopped(loaded: LoadedModel) -> None:
    room = Capacity(prompt_tokens=8, new_tokens=2000)
    engine = shared_engine(loaded, logit_exit(loaded.model), room.text_tokens)

    def interrupt(_token_id: int) -> None:
        raise KeyboardInterrupt

    with pool_of(engine, CPUS[:1], room) as units:
        with pytest.raises(KeyboardInterrupt):
            units.run(Task((1, 2, 3), room.new_tokens), interrupt)
        assert not units.board.verdict.all()
        assert len(units.run(Task((1, 2, 3), 4)).token_ids) == 4, "no answer is still due"


def test_a_device_that_computes_wrongly_is_refused(engine: SharedEngine) -> None:
    wrong = FarPlacement(1, None, "far:1", wrong=True)
    with (
        pytest.raises(RunFailedError, match=r"unit 1: .*far:1 must give the CPU's logits; got 0"),
        pool_of(engine, [FAR[0], wrong]),
    ):
        pass


@TWO_CPUS
def test_a_unit_that_dies_is_named(engine: SharedEngine) -> None:
    where = placements(2)
    with pool_of(engine, where) as units:
        for process, place in zip(units._processes, where, strict=True):
            assert os.sched_getaffinity(process.pid) == set(place.cpus or ())
            assert process.daemon, "a program that ends does not wait for it"
        os.kill(units._processes[1].pid, signal.SIGKILL)
        with pytest.raises(RunFailedError, match=r"unit 1 ended with exit code -9"):
            units.run(Task((1, 2, 3), TOKENS, setting=PpdSetting(2, 2)))
    assert not units._processes


@TWO_CPUS
def test_a_unit_that_died_before_its_task_is_named(engine: SharedEngine) -> None:
    with pool_of(engine, placements(2)) as units:
        os.kill(units._processes[1].pid, signal.SIGKILL)
        units._processes[1].join()
        with pytest.raises(RunFailedError, match=r"unit 1 ended with exit code -9"):
            units.run(Task((1, 2, 3), TOKENS, setting=PpdSetting(2, 2)))


def test_closing_takes_no_time(engine: SharedEngine) -> None:
    with pool_of(engine, CPUS[:1]) as units:
        (process,) = units._processes
        begin = time.monotonic()
    assert process.exitcode == 0
    assert time.monotonic() - begin < worker_pool.SHUTDOWN_TIMEOUT_S


def test_a_unit_that_does_not_end_is_killed(
    engine: SharedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "SHUTDOWN_TIMEOUT_S", 0.3)
    with pool_of(engine, CPUS[:1]) as units:
        (process,) = units._processes
        os.kill(process.pid, signal.SIGSTOP)
    assert process.exitcode == -signal.SIGKILL


@TWO_CPUS
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_stopped_program(
    deep: LoadedModel, how: signal.Signals, tmp_path: Path
) -> None:
    """A program of its own, whose units are spawned; Ctrl-C reaches all of them."""
    script = tmp_path / "endless.py"
    script.write_text(
        "from ppdmodel.measure import load_model, locate\n"
        "from ppdmodel.pipeline import Pipeline, PpdSetting\n"
        "from ppdmodel.pipeline.options import RunOptions\n"
        f"loaded = load_model(locate({str(deep.source.folder)!r}))\n"
        "try:\n"
        "    with Pipeline(loaded, prompt_tokens=8, tokens=64, k=2) as pipeline:\n"
        "        print('ready', flush=True)\n"
        "        while True:\n"
        "            pipeline.ppd([1, 2, 3], 64, PpdSetting(2, 2), RunOptions(stops=False))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    if how == signal.SIGKILL:
        process.kill()
        assert left_of(process.pid) == []
    else:
        os.killpg(process.pid, how)
    out, err = process.communicate(timeout=30)
    assert left_of(process.pid) == []
    assert (out, err) == ("" if how == signal.SIGKILL else "interrupted\n", "")


def test_without_affinities_units_are_counted_by_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert placements(3) == [Placement(1, None)] * 3
    with pytest.raises(InvalidInputError, match=r"got 4; there are 3$"):
        placements(4)
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # not known: one
    with pytest.raises(InvalidInputError, match=r"got 2; there are 1$"):
        placements(2)


def test_thread_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with worker_pool._thread_settings(2):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("2", "2")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_unit_that_still_owes_an_answer_gets_no_task(engine: SharedEngine) -> None:
    units = WorkerPool(engine, CPUS, CAPACITY)
    units._due.add(1)
    with pytest.raises(RunFailedError, match="the units must be idle; got one that has not answ"):
        units._begin(Task((1, 2), 4))
    units._due.clear()
    units.close()
