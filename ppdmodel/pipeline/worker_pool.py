"""Units as processes: started once, given one text after another, and always ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import distributed

from ..errors import InvalidInputError, RunFailedError
from .board import Board, Size, new_board
from .devices import CPU, devices
from .engine import SharedEngine
from .kv_cache import Cache
from .shared_memory import Shared, zeros
from .tensor_parallel import ADDRESS, Meeting, backend_for
from .tensor_parallel_unit import Member
from .unit import EVENT, Task, Unit

#: tokens from which on a run is timed: token 0 comes of the prompt, and nothing was guessed for
#: token 1
FIRST_TIMED = 2
#: seconds: between two looks at a text as it comes, and for a unit to end by itself
GLANCE, PARTING = 0.05, 5.0
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Place:
    """Where a unit runs: threads of its own, on CPUs of its own or any; and where it computes."""

    threads: int
    cpus: tuple[int, ...] | None
    device: str = CPU


def places(units: int, threads: int = 1, device: str = CPU) -> list[Place]:
    """Where some units run: on CPUs, or on devices, as `devices` reads them.

    A unit on a CPU is kept there. One on a device has a thread that feeds it, wherever there is
    room: what drives the device starts threads of its own.

    Raises:
        InvalidInputError: there are fewer.
    """
    if not hasattr(os, "sched_getaffinity"):
        found = os.cpu_count() or 1
        cpus = None
    else:
        cpus = sorted(os.sched_getaffinity(0))
        found = len(cpus)
    if units * threads > found:
        raise InvalidInputError(
            f"units must not exceed the CPUs that this process may use; got {units} of "
            f"{threads} threads each; there are {found}"
        )
    names = devices(device, units)
    if cpus is None or set(names) != {CPU}:
        return [Place(threads, None, name) for name in names]
    return [Place(threads, tuple(cpus[n * threads : (n + 1) * threads])) for n in range(units)]


@dataclass(frozen=True)
class Run:
    """One text as it was made.

    Attributes:
        token_ids: the tokens, end token included.
        verdict_ns: when each was known, on the monotonic clock.
        matched: per token, whether a process that had been started on it went on; False for the
            first.
        events: what each unit did, [events, len(unit.EVENT)].
    """

    token_ids: tuple[int, ...]
    verdict_ns: np.ndarray
    matched: np.ndarray
    events: tuple[np.ndarray, ...]

    @property
    def times_s(self) -> np.ndarray:
        """Seconds of each token from token `FIRST_TIMED` on, [tokens - FIRST_TIMED]."""
        return np.diff(self.verdict_ns[FIRST_TIMED - 1 :]) / 1e9

    @property
    def matches(self) -> np.ndarray:
        """Of the same tokens, whose process had been started on a right guess."""
        return self.matched[FIRST_TIMED:]


class Units:
    """Processes that decode together; a context manager, so that none outlives its use."""

    def __init__(
        self,
        engine: SharedEngine,
        where: Sequence[Place],
        *,
        tokens: int,
        room: int,
        k: int = 1,
        split: bool = False,
    ) -> None:
        """Prepare; entering the context starts the processes.

        Args:
            engine: weights in shared memory.
            where: a place per unit.
            tokens: most new tokens of a text.
            room: most tokens of a text with its prompt.
            k: most guesses.
            split: the units make plain texts together, each with a part of every product.
        """
        opened = engine.open()
        shape, dtype = engine.shape, opened.dtype
        self.where, self.engine = tuple(where), engine
        self.memory = new_board(Size(tokens, len(where), k, shape.width, dtype))
        self.cache = zeros({"cache": (opened.cache_shape(room), dtype)})
        self.board = Board(self.memory)
        self.room, self.tokens, self.k, self.split = room, tokens, k, split
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._due: set[int] = set()  # units that owe an answer
        self._store: Any = None  # where the parts of a split text meet

    def __enter__(self) -> Units:
        context = multiprocessing.get_context("spawn")
        try:
            meeting = self._meeting() if self.split else None
            for number, place in enumerate(self.where):
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                arguments = (number, place, theirs, self.engine, self.memory, self.cache, meeting)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                try:
                    with _thread_settings(place.threads), _deaf_to_interrupts():
                        process.start()
                finally:
                    theirs.close()
                self._processes.append(process)
            here = set[int]()
            while len(here) < len(self.where):  # whoever fails says so, though others wait for it
                here |= set(self._arrived(None, here))
        except BaseException:
            self.close()
            raise
        return self

    def _meeting(self) -> Meeting:
        self._store = distributed.TCPStore(  # type: ignore[attr-defined]
            ADDRESS, 0, is_master=True, wait_for_workers=False
        )
        names = [place.device for place in self.where]
        return Meeting(self._store.port, len(names), backend_for(names))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all units, by force if they do not listen."""
        self.board.stop[0] = 1
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + PARTING
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0.0))
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes, self._store = [], [], None
        self.memory.close()
        self.cache.close()

    def run(self, task: Task, on_token: Callable[[int], None] | None = None) -> Run:
        """Make one text.

        Args:
            task: what to make; it must fit what was prepared for.
            on_token: called with each token id, a little after it was made: this process sleeps
                meanwhile, since it may share a core with a unit.

        Raises:
            RunFailedError: a unit failed.
        """
        self._check_fit(task)
        said = 0
        events: dict[int, np.ndarray] = {}
        try:
            self._begin(task)
            while len(events) < len(self.where):
                events |= self._arrived(GLANCE if on_token else None, set(events))
                if on_token is not None:
                    said = self._say(said, on_token)
        except BaseException:
            self._settle()
            raise
        return self._result([events[number] for number in range(len(self.where))], task)

    def _check_fit(self, task: Task) -> None:
        asked = (len(task.prompt_ids) + task.max_new_tokens, task.max_new_tokens, task.k)
        if any(a > b for a, b in zip(asked, (self.room, self.tokens, self.k), strict=True)):
            raise InvalidInputError(
                "a task must fit the units' room (tokens of the text, new tokens, guesses); got "
                f"{asked}; there is {(self.room, self.tokens, self.k)}"
            )

    def _begin(self, task: Task) -> None:
        if self._due:
            raise RunFailedError(
                "the units must be idle; got one that has not answered; start them again"
            )
        self.board.clear()
        for number, pipe in enumerate(self._pipes):
            try:
                pipe.send(task)
                self._due.add(number)
            except OSError:
                raise self._lost(number) from None

    def _settle(self) -> None:
        """Stop the text, and take away every answer that is still due."""
        self.board.stop[0] = 1
        deadline = time.monotonic() + PARTING
        for number in tuple(self._due):
            with suppress(EOFError, OSError):
                if self._pipes[number].poll(max(deadline - time.monotonic(), 0.0)):
                    self._pipes[number].recv()
                    self._due.discard(number)

    def _arrived(self, timeout: float | None, known: set[int]) -> dict[int, np.ndarray]:
        waiting = [n for n in range(len(self.where)) if n not in known]
        ready = wait([self._pipes[n] for n in waiting], timeout)
        return {n: self._receive(n) for n in waiting if self._pipes[n] in ready}

    def _receive(self, number: int) -> np.ndarray:
        try:
            answer = self._pipes[number].recv()
        except (EOFError, OSError):
            raise self._lost(number) from None
        self._due.discard(number)
        if isinstance(answer, str):
            raise RunFailedError(f"a unit must not fail; got on unit {number}: {answer}")
        found: np.ndarray = answer
        return found

    def _lost(self, number: int) -> RunFailedError:
        self.board.stop[0] = 1
        self._processes[number].join(1.0)
        code = self._processes[number].exitcode
        return RunFailedError(
            f"a unit must not end before its work; unit {number} ended with exit code {code}; "
            "there may be too little memory"
        )

    def _say(self, said: int, on_token: Callable[[int], None]) -> int:
        while said < self.tokens and self.board.verdict[said]:
            on_token(int(self.board.verdict[said]) - 1)
            said += 1
        return said

    def _result(self, events: Sequence[np.ndarray], task: Task) -> Run:
        verdicts = self.board.verdict[: task.max_new_tokens]
        made = int(np.count_nonzero(verdicts))
        matched = self.board.row[:made] >= 0
        matched[:FIRST_TIMED] = False
        return Run(
            token_ids=tuple(int(v) - 1 for v in verdicts[:made]),
            verdict_ns=self.board.verdict_ns[:made].copy(),
            matched=matched,
            events=tuple(events),
        )


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process that is started here does not take Ctrl-C, from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _thread_settings(threads: int) -> Iterator[None]:
    """Set what a new process's libraries read when they are loaded."""
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


def _serve(
    number: int,
    place: Place,
    pipe: Connection,
    engine: SharedEngine,
    memory: Shared,
    cache: Shared,
    meeting: Meeting | None,
) -> None:
    """Run in a unit's own process: one task after another, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that started it ends it
    if place.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, place.cpus)
    torch.set_num_threads(place.threads)
    try:
        try:
            unit = _unit(number, place.device, engine, Board(memory), cache, meeting)
        except Exception as error:  # no memory, say
            pipe.send(_named(error))
            return
        pipe.send(np.zeros((0, len(EVENT)), dtype=np.int64))
        while True:
            task = pipe.recv()
            try:
                done: Any = unit.run(task)
            except Exception as error:  # whatever went wrong belongs to the program that asked
                done = _named(error)
            pipe.send(done)
    except (EOFError, OSError):
        return
    finally:
        if meeting is not None:
            meeting.leave()


def _unit(
    number: int,
    device: str,
    engine: SharedEngine,
    board: Board,
    cache: Shared,
    meeting: Meeting | None,
) -> Unit:
    shared = cache.tensor("cache")
    if meeting is not None:
        part = engine.open(device, meeting.join(number, device))
        room = part.cache_shape(shared.shape[3])
        alone = Cache(torch.zeros(room, dtype=part.dtype, device=device))
        return Member(number, part, board, alone)
    held = Cache(shared)
    if device != CPU:
        held = Cache(torch.zeros(shared.shape, dtype=shared.dtype, device=device), shared)
    return Unit(number, engine.open(device), board, held)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
