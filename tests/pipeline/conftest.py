"""A tiny model, its engine, and units that run it; processes that start without importing torch."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

import pytest

from ppdmodel.measure import load_model, locate
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import time_model, worker_pool
from ppdmodel.pipeline import timing as timing_module
from ppdmodel.pipeline.options import Capacity, Task
from ppdmodel.pipeline.pipeline import Pipeline
from ppdmodel.pipeline.shared_engine import SharedEngine, shared_engine
from ppdmodel.pipeline.worker_pool import Placement, Run, WorkerPool
from ppdmodel.results.timing import Timing
from tests.conftest import TEXT, make_tiny_llama
from tests.support.far_device import FarPlacement

LAYERS, DEEP, TOKENS, K = 4, 12, 12, 3
#: of a model with layers so slow that guesses are in time while other tests run
WIDE = 256
CAPACITY = Capacity(prompt_tokens=40, new_tokens=40, k=K)
CPUS = [Placement(1, None)] * 2
FAR = [FarPlacement(1, None, "far:0"), FarPlacement(1, None, "far:1")]
Texts = list[tuple[int, ...]]

TWO_CPUS = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="two units need two CPUs, and this machine has one"
)


def until_promoted(run: Callable[[], Run]) -> Run:
    """Run a text until a guess is promoted: on a busy machine a unit may always come too late."""
    for _ in range(100):
        found = run()
        if found.matched.any():
            return found
    pytest.fail("some guess must have been promoted, or nothing was tried")


@pytest.fixture(scope="package", autouse=True)
def _quick_processes() -> Iterator[None]:
    """Fork units from a server that has imported torch; whole programs spawn them, as users do."""
    multiprocessing.set_forkserver_preload(["ppdmodel.pipeline.worker_pool"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # two threads that spin starve each other
        with worker_pool._thread_settings(1):
            forkserver.ensure_running()
        patch.setattr(worker_pool, "START_METHOD", "forkserver")
        yield


@pytest.fixture(scope="package")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny"), layers=LAYERS)
    return load_model(locate(str(folder)))


@pytest.fixture(scope="package")
def deep(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_tiny_llama(tmp_path_factory.mktemp("deep"), layers=DEEP, width=WIDE)
    return load_model(locate(str(folder)))


@pytest.fixture(scope="package")
def pipeline(deep: LoadedModel) -> Iterator[Pipeline]:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two units need two CPUs, and this machine has one")
    with Pipeline(deep, prompt_tokens=64, tokens=24, k=5) as made:
        yield made


@pytest.fixture(scope="package")
def engine(loaded: LoadedModel) -> SharedEngine:
    return shared_engine(loaded, logit_exit(loaded.model), CAPACITY.text_tokens)


@pytest.fixture(scope="package")
def texts(loaded: LoadedModel) -> Texts:
    return [tuple(loaded.encode([TEXT[n : n + 6 + 9 * n]], chat=False)) for n in range(3)]


@contextmanager
def pool_of(
    engine: SharedEngine,
    where: Sequence[Placement],
    capacity: Capacity = CAPACITY,
    **options: Any,
) -> Iterator[WorkerPool]:
    made = WorkerPool(engine, where, capacity, **options)
    try:
        made.start()
        made.wait()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="package")
def on_cpus(engine: SharedEngine) -> Iterator[WorkerPool]:
    with pool_of(engine, CPUS) as made:
        yield made


@pytest.fixture(scope="package")
def on_devices(engine: SharedEngine) -> Iterator[WorkerPool]:
    with pool_of(engine, FAR) as made:
        yield made


@pytest.fixture(scope="package")
def plain(on_cpus: WorkerPool, texts: Texts) -> Texts:
    return [on_cpus.run(Task(ids, TOKENS)).token_ids for ids in texts]


@pytest.fixture(scope="package")
def deep_timing(deep: LoadedModel) -> Timing:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing_module, "MAX_SPREAD", 10.0)  # other tests may share this machine
        return time_model(deep, ks=(1, 2), rounds=4)
