"""What one unit does: it runs the verified process of a token, or guesses for the next one.

All units follow the same rule, so nobody directs them: after each verdict the board says which
unit's process goes on; every other unit reads the next exit as soon as that process has passed it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ..measure.decoder.sampling import Sampling, TokenPosition, choose, gumbel, scaled
from .board import AFRESH, Board
from .devices import wait_for
from .engine import Engine
from .kv_cache import Cache

#: looks at the board between two looks at whether the program is still there
PATIENCE = 4096
#: seconds of sleep while the exit is more than so many layers away
NAP, NEARLY = 1e-4, 2


class Did(IntEnum):
    """What a unit did during an event of its trace."""

    PROMPT = 0
    LAYER = 1
    HEAD = 2
    EXIT = 3
    PROMOTE = 4
    DROP = 5
    AWAIT_EXIT = 6
    AWAIT_LAYER = 7
    AWAIT_VERDICT = 8


#: columns of a trace: nanoseconds on the monotonic clock; token, layer (from 1) and rows, or 0
EVENT = ("start_ns", "end_ns", "did", "token", "layer", "rows")


@dataclass(frozen=True)
class Script:
    """Matches that are given instead of found, to measure what they cost.

    `token_ids[i]` is the text's token i; `hits[i]` says whether the guesses read at the exit of
    token i - 1 hold it.
    """

    token_ids: tuple[int, ...]
    hits: tuple[bool, ...]


@dataclass(frozen=True)
class Task:
    """One text to make. Without `exit_layer` the first unit makes it alone.

    `timed` waits for the device after each layer, so that a layer's time can be told; with an exit
    it always does.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    end_ids: frozenset[int] = frozenset()
    exit_layer: int | None = None
    k: int = 1
    row_by_row: bool = False
    sampling: Sampling | None = None
    prompt_id: str = ""
    script: Script | None = None
    timed: bool = False


@dataclass
class Started:
    """A process that has run some layers: its states [rows, width], and those at the exit."""

    x: Tensor
    layers: int = 0
    at_exit: Tensor | None = None


class GoneError(Exception):
    """The text has ended, or the program that asked for it."""


class Unit:
    """One unit at work on one text after another."""

    def __init__(self, number: int, engine: Engine, board: Board, cache: Cache) -> None:
        self.number, self.engine, self.board, self.cache = number, engine, board, cache
        self.units, _, k = board.guesses.shape
        own = engine.own_shape(max(k, 1))
        self.own = torch.zeros(own, dtype=engine.dtype, device=engine.device)
        self.parent = os.getppid()
        self.events: list[tuple[int, int, int, int, int, int]] = []

    @torch.inference_mode()
    def run(self, task: Task) -> np.ndarray:
        """Do a task; returns what was done when, [events, len(EVENT)]."""
        self.events = []
        with suppress(GoneError):
            self._text(task)
        return np.array(self.events, dtype=np.int64).reshape(-1, len(EVENT))

    def _text(self, task: Task) -> None:
        self.task = task
        self.cache.begin(handed_over=task.exit_layer is not None)
        if self.number == 0:
            self._prompt()
        elif task.exit_layer is None:
            return
        else:
            self._until(lambda: self.board.verdict[0], Did.AWAIT_VERDICT, 0)
        started: Started | None = None
        for token in range(1, task.max_new_tokens):
            if self.board.stop[0]:
                return
            self._check_parent()
            if self.board.owner[token] == self.number:
                self._verified(token, started)
                started = None
            else:
                started = self._guess(token)

    # ------------------------------------------------------------ the verified process

    def _prompt(self) -> None:
        ids = torch.tensor(self.task.prompt_ids)
        begin = time.monotonic_ns()
        x = self.engine.read_prompt(ids, self.cache.tensor)
        self.cache.put_prompt(len(ids))
        self._finish()
        self._did(begin, Did.PROMPT, 0, 0, len(ids))
        self._give_verdict(0, x)

    def _verified(self, token: int, started: Started | None) -> None:
        """Run the process that makes `token` to its end, and say what it is."""
        place = len(self.task.prompt_ids) + token - 1
        if started is None:
            before = torch.tensor([int(self.board.verdict[token - 1]) - 1])
            started = Started(self.engine.embed(before))
        elif started.at_exit is not None:
            self._at_exit(token, started.at_exit)
        self._progress(token, started.layers)
        x, own = started.x, self.own[:, :, :1]
        for index in range(started.layers, self.engine.shape.layers):
            begin = time.monotonic_ns()
            x = self.engine.layer(index, x, place, self.cache.before(index, place), own)
            self.cache.put(index, place, own[index : index + 1, :, 0])
            self._finish()
            self._did(begin, Did.LAYER, token, index + 1, 1)
            if index + 1 == self.task.exit_layer:
                self._at_exit(token, x)
            self._progress(token, index + 1)
        self._give_verdict(token, x)

    def _at_exit(self, token: int, x: Tensor) -> None:
        self.board.exit_state[token] = x[0]

    def _progress(self, token: int, layers: int) -> None:
        if self.task.exit_layer is not None:
            self.board.fence()
            self.board.progress[token] = layers

    def _give_verdict(self, token: int, x: Tensor) -> None:
        begin = time.monotonic_ns()
        place = TokenPosition(self.task.prompt_id, 0, token)
        chosen, _ = choose(self.engine.logits(x), [place], self.task.sampling)
        true_id = int(chosen[0])
        owner, row = self.board.row_of(token, true_id, self.number)
        now = time.monotonic_ns()
        self._did(begin, Did.HEAD, token, 0, 1)
        ends = true_id in self.task.end_ids or token + 1 == self.task.max_new_tokens
        if ends:  # before the verdict: who sees that one sees this
            self.board.stop[0] = 1
        self.board.give_verdict(token, true_id, owner, row, now)
        if ends:
            raise GoneError

    # ------------------------------------------------------------ the guesses

    def _guess(self, token: int) -> Started | None:
        """Start processes for the token after `token`, until the verdict on that one is known.

        Returns:
            The process that goes on as the verified one, if it is one of these.
        """
        exit_layer = self.task.exit_layer or 0
        decided, progress = self.board.verdict, self.board.progress
        if token + 1 < self.task.max_new_tokens:
            self._until(
                lambda: progress[token] >= exit_layer or decided[token],
                Did.AWAIT_EXIT,
                token,
                soon=lambda: progress[token] >= exit_layer - NEARLY or decided[token],
            )
            if not decided[token]:
                begin = time.monotonic_ns()
                guesses = self._read_exit(token)
                self._did(begin, Did.EXIT, token, exit_layer, 1)
                self.board.publish_guesses(self.number, token, guesses)
                return self._run_guesses(token, guesses)
        self._until(lambda: decided[token], Did.AWAIT_VERDICT, token)
        return None

    def _read_exit(self, token: int) -> np.ndarray:
        """This unit's share of the k guesses at the exit of the process that makes `token`."""
        task, owner = self.task, self.board.owner[token]
        self.board.fence()
        state = self.board.exit_state[token : token + 1].clone().to(self.engine.device)
        logits = self.engine.logits(state, task.exit_layer)
        if task.sampling is not None:
            place = TokenPosition(task.prompt_id, 0, token)
            logits = scaled(logits, task.sampling.temperature) + _noise(
                task.sampling, place, logits
            )
        guesses = logits[0].topk(task.k).indices.cpu().numpy()
        if task.script is not None:
            guesses = self._scripted(token, task.script)
        share = self.number - (self.number > owner)  # the place among the other units
        return guesses[share :: self.units - 1]

    def _scripted(self, token: int, script: Script) -> np.ndarray:
        true_id, k = script.token_ids[token], self.task.k
        wrong = (true_id + 1 + np.arange(k)) % self.engine.shape.vocabulary
        return np.append(true_id, wrong[:-1]) if script.hits[token] else wrong

    def _run_guesses(self, token: int, guesses: np.ndarray) -> Started | None:
        """Run this unit's guesses layer by layer until the verdict; keep the right one, if any."""
        board, task = self.board, self.task
        place = len(task.prompt_ids) + token
        started = Started(self.engine.embed(torch.from_numpy(guesses)))
        for index in range(self.engine.shape.layers if len(guesses) else 0):
            if board.verdict[token]:
                break
            self._await_layer(token, index)
            begin = time.monotonic_ns()
            started.x = self._rows(index, started.x, place)
            self._finish()
            started.layers = index + 1
            self._did(begin, Did.LAYER, token + 1, index + 1, len(guesses))
            if started.layers == task.exit_layer:
                started.at_exit = started.x
        self._until(lambda: board.verdict[token], Did.AWAIT_VERDICT, token)
        begin = time.monotonic_ns()
        if board.owner[token + 1] != self.number or board.row[token + 1] == AFRESH:
            self._did(begin, Did.DROP, token + 1, started.layers, len(guesses))
            return None
        self._promote(started, int(board.row[token + 1]), place)
        self._did(begin, Did.PROMOTE, token + 1, started.layers, 1)
        return started

    def _await_layer(self, token: int, index: int) -> None:
        """Wait for the keys and values of that layer of the token before, or for the verdict."""
        board = self.board
        self._until(
            lambda: board.progress[token] > index or board.verdict[token], Did.AWAIT_LAYER, token
        )

    def _rows(self, index: int, x: Tensor, place: int) -> Tensor:
        """A layer on all guesses at once, or on one after another, which rounds as a single one."""
        before = self.cache.before(index, place)
        if not self.task.row_by_row:
            return self.engine.layer(index, x, place, before, self.own)
        return torch.cat(
            [
                self.engine.layer(
                    index, x[row : row + 1], place, before, self.own[:, :, row : row + 1]
                )
                for row in range(len(x))
            ]
        )

    def _promote(self, started: Started, row: int, place: int) -> None:
        """Keep one guess, and put its keys and values where the text's are."""
        done = started.layers
        self.cache.put(0, place, self.own[:done, :, row])
        started.x = started.x[row : row + 1].clone()
        if started.at_exit is not None:
            started.at_exit = started.at_exit[row : row + 1].clone()

    # ------------------------------------------------------------ waiting and telling

    def _finish(self) -> None:
        """Until the device has done it, where others wait for that, or it is timed."""
        if self.task.timed or self.task.exit_layer is not None:
            wait_for(self.engine.device)

    def _until(
        self,
        ready: Callable[[], object],
        waiting: Did,
        token: int,
        soon: Callable[[], object] = lambda: True,
    ) -> None:
        """Watch the board: asleep until `soon`, for a busy core slows the others down."""
        if ready():
            self.board.fence()
            return
        begin, looks = time.monotonic_ns(), 0
        while not ready():
            looks += 1
            if looks % PATIENCE == 0:
                self._check_parent()
            if self.board.stop[0] and not ready():
                raise GoneError
            if soon():
                give_way()
            else:
                time.sleep(NAP)
        self.board.fence()
        self._did(begin, waiting, token, 0, 0)

    def _check_parent(self) -> None:
        if os.getppid() != self.parent:
            raise SystemExit

    def _did(self, begin: int, did: Did, token: int, layer: int, rows: int) -> None:
        self.events.append((begin, time.monotonic_ns(), int(did), token, layer, rows))


def _noise(sampling: Sampling, place: TokenPosition, like: Tensor) -> Tensor:
    """The Gumbel noise [1, vocabulary] that draws the next token."""
    return torch.from_numpy(gumbel(sampling.seed, place, like.shape[1]))[None].to(like.device)


def give_way() -> None:
    """Let another process have the core, should one be waiting for it."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
