"""The pool of worker processes: started once, given one task after another, and always ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import numpy as np
import torch
from torch import distributed

from ..errors import InvalidInputError, RunFailedError, excerpt
from .board import Board, new_board
from .child_process import signals_held, start_process
from .devices import CPU, devices
from .engine import PROMPT_ROWS
from .kv_cache import KVCache
from .options import Capacity, Task
from .shared_engine import SharedEngine, warm_up
from .shared_memory import SharedTensors
from .tensor_parallel import (
    ADDRESS,
    Rendezvous,
    Shard,
    SharedCommunicator,
    backend_for,
    new_exchange,
)
from .tensor_parallel_unit import TensorParallelUnit
from .unit import Unit

#: tokens from which on a run is timed: token 0 comes of the prompt, and nothing was guessed for
#: token 1
FIRST_TIMED = 2
#: seconds between two polls of a text while it is made, and until a unit that is to end is killed
POLL_S, SHUTDOWN_TIMEOUT_S = 0.05, 5.0
#: of processes: forking one that has run torch is not safe
START_METHOD = "spawn"
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Placement:
    """A unit's threads, the CPUs that it is pinned to (None: any), and its device."""

    threads: int
    cpus: tuple[int, ...] | None
    device: str = CPU


def placements(units: int, device: str = CPU) -> list[Placement]:
    """Assign CPUs or devices to units of one thread.

    A unit that computes on a CPU is pinned to it. One that feeds a device is not, since the
    device's driver starts threads of its own.

    Args:
        units: how many.
        device: as `Workers.device`.

    Raises:
        InvalidInputError: there are fewer CPUs or devices.
    """
    known = hasattr(os, "sched_getaffinity")
    cpus = sorted(os.sched_getaffinity(0)) if known else range(os.cpu_count() or 1)
    if units > len(cpus):
        raise InvalidInputError(
            f"units must not exceed the CPUs that this process may use; got {units}; "
            f"there are {len(cpus)}"
        )
    names = devices(device, units)
    pinned = known and set(names) == {CPU}
    return [Placement(1, (cpus[n],) if pinned else None, name) for n, name in enumerate(names)]


@dataclass(frozen=True)
class Run:
    """A text, and the trace of how it was made.

    Attributes:
        token_ids: the tokens, end token included.
        verdict_ns: when each became known, on the monotonic clock.
        matched: per token, whether it matched: its verified process began as a guess. False for the
            first `FIRST_TIMED`.
        late: likewise, whether it did not although a guess was right, which came after the verdict.
        events: each unit's trace, [events, len(unit.EVENT)].
    """

    token_ids: tuple[int, ...]
    verdict_ns: np.ndarray
    matched: np.ndarray
    late: np.ndarray
    events: tuple[np.ndarray, ...]

    @property
    def times_s(self) -> np.ndarray:
        """Seconds of each token from token `FIRST_TIMED` on, [tokens - FIRST_TIMED]."""
        return np.diff(self.verdict_ns[FIRST_TIMED - 1 :]) / 1e9

    @property
    def matches(self) -> np.ndarray:
        """`matched` of the same tokens."""
        return self.matched[FIRST_TIMED:]

    @property
    def late_guesses(self) -> np.ndarray:
        """`late` of the same tokens."""
        return self.late[FIRST_TIMED:]


class WorkerPool:
    """Worker processes that decode together: `start` them, `wait` for them, and `close` them."""

    def __init__(
        self,
        engine: SharedEngine,
        where: Sequence[Placement],
        capacity: Capacity,
        *,
        tensor_parallel: bool = False,
    ) -> None:
        """Reserve memory.

        Args:
            engine: weights in shared memory.
            where: a placement per unit.
            capacity: the largest text.
            tensor_parallel: the units make plain texts together, each with a shard of the weights.
        """
        shape = engine.shape
        on_cpus = {place.device for place in where} == {CPU}
        dtype = torch.float32 if on_cpus else engine.dtype
        self.where, self.engine, self.capacity = tuple(where), engine, capacity
        self.tensor_parallel = tensor_parallel
        self.memory = new_board(capacity.new_tokens, len(where), capacity.k, shape.width, dtype)
        self.cache = SharedTensors({"cache": (shape.cache(capacity.text_tokens), dtype)})
        self.board = Board(self.memory)
        self.exchange: SharedTensors | None = None
        if tensor_parallel and on_cpus:
            largest = max(shape.vocabulary, PROMPT_ROWS * shape.width)
            self.exchange = new_exchange(len(where), largest)
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._ready: set[int] = set()
        self._due: set[int] = set()  # units whose answer to a task has not come
        self._store: Any = None  # of the process group

    def start(self) -> None:
        """Start the processes, which load their libraries at the same time."""
        meeting: Rendezvous | SharedTensors | None = self.exchange
        if self.tensor_parallel and meeting is None:
            meeting = self._new_rendezvous()
        for number, place in enumerate(self.where):
            spec = _UnitSpec(number, place, self.engine, self.memory, self.cache, meeting)
            with signals_held(), _thread_settings(place.threads):
                ours, theirs = Pipe()
                self._pipes.append(ours)
                try:
                    self._processes.append(start_process(START_METHOD, _serve, spec, theirs))
                finally:
                    theirs.close()

    def wait(self) -> None:
        """Wait until every unit is ready; one that fails is reported while others still load."""
        while len(self._ready) < len(self.where):
            self._ready |= set(self._arrived(None, self._ready))

    def _new_rendezvous(self) -> Rendezvous:
        self._store = distributed.TCPStore(  # type: ignore[attr-defined]
            ADDRESS, 0, is_master=True, wait_for_workers=False
        )
        names = [place.device for place in self.where]
        return Rendezvous(self._store.port, len(names), backend_for(names))

    def close(self) -> None:
        """End all units; those that still load, or do not end in time, are killed."""
        with signals_held():
            for pipe in self._pipes:
                pipe.close()
            deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
            for number, process in enumerate(self._processes):
                process.join(deadline - time.monotonic() if number in self._ready else 0)
                if process.is_alive():
                    process.kill()
                    process.join()
            self._processes, self._pipes, self._store = [], [], None
            self._ready.clear()
            self.memory.close()
            self.cache.close()
            if self.exchange is not None:
                self.exchange.close()

    def run(self, task: Task, on_token: Callable[[int], None] | None = None) -> Run:
        """Make one text.

        Args:
            task: what to make, within the capacity.
            on_token: called with each token id, up to `POLL_S` after it was made: this process
                sleeps between polls, since it may share a core with a unit.

        Raises:
            RunFailedError: a unit failed.
        """
        self._check_fit(task)
        said = 0
        events: dict[int, np.ndarray] = {}
        try:
            self._begin(task)
            while len(events) < len(self.where):
                events |= self._arrived(POLL_S if on_token else None, set(events))
                if on_token is not None:
                    said = self._say(said, on_token)
        except BaseException:
            self._settle()
            raise
        return self._result([events[number] for number in range(len(self.where))])

    def _check_fit(self, task: Task) -> None:
        k = task.setting.k if task.setting else 1
        asked = (len(task.prompt_ids) + task.max_new_tokens, task.max_new_tokens, k)
        largest = (self.capacity.text_tokens, self.capacity.new_tokens, self.capacity.k)
        if any(a > b for a, b in zip(asked, largest, strict=True)):
            raise InvalidInputError(
                "a task must fit the units' room (tokens of the text, new tokens, guesses); got "
                f"{asked}; there is {largest}"
            )

    def _begin(self, task: Task) -> None:
        if self._due:
            raise RunFailedError(
                "the units must be idle; got one that has not answered; start them again"
            )
        self.board.clear()
        self._exchange("arrived", 0)
        self._exchange("abandoned", 0)
        for number, pipe in enumerate(self._pipes):
            try:
                pipe.send(task)
                self._due.add(number)
            except OSError:
                raise self._lost(number) from None

    def _settle(self) -> None:
        """Stop the text, and discard every answer that is still due."""
        self.board.abandoned.fill(True)
        self.board.stop.fill(True)
        self._exchange("abandoned", 1)
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        for number in tuple(self._due):
            with suppress(EOFError, OSError):
                if self._pipes[number].poll(deadline - time.monotonic()):
                    self._pipes[number].recv()
                    self._due.discard(number)

    def _exchange(self, name: str, value: int) -> None:
        if self.exchange is not None:
            self.exchange.tensor(name).fill_(value)

    def _arrived(self, timeout: float | None, known: set[int]) -> dict[int, Any]:
        waiting = [n for n in range(len(self.where)) if n not in known]
        ready = wait([self._pipes[n] for n in waiting], timeout)
        return {n: self._receive(n) for n in waiting if self._pipes[n] in ready}

    def _receive(self, number: int) -> Any:
        try:
            answer = self._pipes[number].recv()
        except (EOFError, OSError):
            raise self._lost(number) from None
        self._due.discard(number)
        if isinstance(answer, str):
            raise RunFailedError(f"a unit must not fail; got on unit {number}: {answer}")
        return answer

    def _lost(self, number: int) -> RunFailedError:
        self._processes[number].join(SHUTDOWN_TIMEOUT_S)
        code = self._processes[number].exitcode
        return RunFailedError(
            f"a unit must not end before its work; unit {number} ended with exit code {code}; "
            "there may be too little memory"
        )

    def _say(self, said: int, on_token: Callable[[int], None]) -> int:
        while said < self.capacity.new_tokens and self.board.verdict[said]:
            on_token(int(self.board.verdict[said]) - 1)
            said += 1
        return said

    def _result(self, events: Sequence[np.ndarray]) -> Run:
        made = int(np.count_nonzero(self.board.verdict))
        matched = self.board.row[:made] >= 0
        right = np.roll(self.board.guessed_right(made), 1)  # a process begins as a right guess
        late = right & ~matched
        matched[:FIRST_TIMED] = late[:FIRST_TIMED] = False
        return Run(
            token_ids=tuple((self.board.verdict[:made] - 1).tolist()),
            verdict_ns=self.board.verdict_ns[:made].copy(),
            matched=matched,
            late=late,
            events=tuple(events),
        )


@contextmanager
def _thread_settings(threads: int) -> Iterator[None]:
    """Set the thread counts that a new process's libraries read when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(THREAD_SETTINGS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class _UnitSpec:
    """What a worker process builds its unit from."""

    number: int
    place: Placement
    engine: SharedEngine
    memory: SharedTensors
    cache: SharedTensors
    meeting: Rendezvous | SharedTensors | None

    def build(self) -> Unit:
        board, device, shared = Board(self.memory), self.place.device, self.cache.tensor("cache")
        if self.meeting is not None:
            if isinstance(self.meeting, Rendezvous):
                communicator = self.meeting.join(self.number, device)
            else:
                units = len(self.meeting.tensor("arrived"))
                communicator = SharedCommunicator(Shard(self.number, units), self.meeting)
            shard = self.engine.open(device, communicator)
            own = torch.zeros(shard.shape.cache(shared.shape[3]), dtype=shard.dtype, device=device)
            return TensorParallelUnit(self.number, shard, board, KVCache(own))
        if device == CPU:
            cache = KVCache(shared)
        else:
            cache = KVCache(torch.zeros(shared.shape, dtype=shared.dtype, device=device), shared)
        engine = self.engine.open(device)
        warm_up(engine)
        return Unit(self.number, engine, board, cache)


def _serve(spec: _UnitSpec, pipe: Connection) -> None:
    """The main function of a worker process: one task after another, until the pipe is closed."""
    if spec.place.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, spec.place.cpus)
    torch.set_num_threads(spec.place.threads)
    try:
        try:
            unit = spec.build()
        except Exception as error:  # such as too little memory
            pipe.send(_named(error))
            return
        pipe.send(None)  # it is ready
        while True:
            task = pipe.recv()
            try:
                done: Any = unit.run(task)
            except Exception as error:  # the parent raises it
                done = _named(error)
            pipe.send(done)
    except (EOFError, OSError):
        return
    finally:
        if isinstance(spec.meeting, Rendezvous):
            spec.meeting.leave()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {excerpt(error)}"
