"""One worker process: it runs the verified process of a token, or guesses of the next one.

There is no coordinator; all units run the same loop. Each verdict on the shared board names the
unit whose process goes on as the verified one; every other unit drafts guesses from the next exit
as soon as that process has passed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..measure.decoder.sampling import TokenPosition, choose
from ..results.prompt_lookup import joined_guesses, prompt_lookup
from .board import UNREAD, Board, TextEndedError, fence, yield_cpu
from .devices import synchronize
from .drafting import exit_guesses, make_text
from .engine import Engine, read_tokens
from .kv_cache import KVCache
from .options import ForcedMatches, PpdSetting, Task
from .trace import EventKind, Trace

if TYPE_CHECKING:
    from .cpu_engine import CpuEngine

#: sleep between two polls, in nanoseconds, while the exit is more than two sleeps and `NEAR_LAYERS`
#: layers away
POLL_SLEEP_NS, NEAR_LAYERS = 100_000, 2


@dataclass
class ProcessState:
    """Processes that have run some layers: hidden states [rows, width], and those at the exit."""

    x: Tensor
    layers: int = 0
    at_exit: Tensor | None = None


class Unit:
    """The loop of one unit, for one text after another."""

    def __init__(
        self, number: int, engine: Engine | CpuEngine, board: Board, cache: KVCache
    ) -> None:
        self.number, self.engine, self.board, self.cache = number, engine, board, cache
        self.units, _, k = board.guesses.shape
        own = engine.shape.guesses(k)
        self.own = torch.zeros(own, dtype=engine.dtype, device=engine.device)
        self.trace = Trace()
        self.layer_ns = 0  # of the last layer

    @property
    def _setting(self) -> PpdSetting:
        """Of a text that is made by PPD."""
        assert self.task.setting is not None
        return self.task.setting

    @torch.inference_mode()
    def run(self, task: Task) -> np.ndarray:
        """Run a task; returns its trace, [events, len(EVENT)]."""
        self.trace = Trace()
        with suppress(TextEndedError):
            self._text(task)
        if task.setting is not None:
            self._read_late(task)
        return self.trace.array()

    def _text(self, task: Task) -> None:
        self.task = task
        self.cache.reset(mirrored=task.setting is not None)
        if task.drafts is not None and self.number == 0:
            make_text(self.engine, self.cache, self.board, self.trace, task, self.number)
        elif self.number == 0:
            self._prompt()
        elif task.setting is None:
            return
        else:
            self._until(lambda: self.board.verdict[0], EventKind.AWAIT_VERDICT, 0)
        started: ProcessState | None = None
        for token in range(1, task.max_new_tokens):
            if self.board.stop:
                return
            if self.board.owner[token] == self.number:
                self._verified(token, started)
                started = None
            else:
                started = self._guess(token)

    # ------------------------------------------------------------ the verified process

    def _prompt(self) -> None:
        ids = torch.tensor(self.task.prompt_ids)
        begin = time.monotonic_ns()
        x = read_tokens(self.engine, ids, 0, self.cache)[-1:]
        self._finish()
        self.trace.record(begin, EventKind.PROMPT, 0, 0, len(ids))
        self._publish_verdict(0, x)

    def _verified(self, token: int, started: ProcessState | None) -> None:
        """Run the process that makes `token` to its last layer, and publish the verdict."""
        place = len(self.task.prompt_ids) + token - 1
        if started is None:
            before = torch.tensor([int(self.board.verdict[token - 1]) - 1])
            started = ProcessState(self.engine.embed(before))
        elif started.at_exit is not None:
            self.board.exit_state[token] = started.at_exit
        x = started.x
        self._progress(token, started.layers, x)
        for index in range(started.layers, self.engine.shape.layers):
            begin = time.monotonic_ns()
            x = self.engine.advance(index, x, place, self.cache)
            self._finish()
            self.layer_ns = self.trace.record(begin, EventKind.LAYER, token, index + 1, 1)
            self._progress(token, index + 1, x)
        self._publish_verdict(token, x)

    def _progress(self, token: int, layers: int, x: Tensor) -> None:
        """Publish that the verified process has run so many layers, and its state at the exit."""
        if self.task.setting is not None:
            if layers == self.task.setting.exit_layer:
                self.board.exit_state[token] = x
            fence()
            self.board.progress[token] = layers

    def _publish_verdict(self, token: int, x: Tensor) -> None:
        begin = time.monotonic_ns()
        place = TokenPosition(self.task.prompt_id, 0, token)
        chosen, _ = choose(self.engine.logits(x), [place], self.task.sampling)
        true_id = int(chosen)
        owner, row = self.board.find_match(token, true_id, self.number)
        now = time.monotonic_ns()
        self.trace.record(begin, EventKind.HEAD, token, 0, 1)
        ends = true_id in self.task.end_ids or token + 1 == self.task.max_new_tokens
        if ends:  # published before the verdict, so that no unit waits for a further token
            self.board.stop.fill(True)
        self.board.publish_verdict(token, true_id, owner, row, now)
        if ends:
            raise TextEndedError

    # ------------------------------------------------------------ the guesses

    def _guess(self, token: int) -> ProcessState | None:
        """Run guesses for the token after `token` until the verdict on `token`.

        Returns:
            The guess that goes on as the verified process, if it is one of these.
        """
        exit_layer = self._setting.exit_layer
        decided, progress = self.board.verdict, self.board.progress
        near = max(NEAR_LAYERS, -(-2 * POLL_SLEEP_NS // max(self.layer_ns, 1)))
        if token + 1 < self.task.max_new_tokens:
            self._until(
                lambda: progress[token] >= exit_layer or decided[token],
                EventKind.AWAIT_EXIT,
                token,
                soon=lambda: progress[token] >= exit_layer - near,
            )
            if not decided[token]:
                begin = time.monotonic_ns()
                guesses = self._read_exit(token)
                self.trace.record(begin, EventKind.EXIT, token, exit_layer, 1)
                self.board.publish_guesses(self.number, token, guesses)
                return self._run_guesses(token, guesses)
        self._until(lambda: decided[token], EventKind.AWAIT_VERDICT, token)
        return None

    def _read_exit(self, token: int) -> np.ndarray:
        """This unit's share of the k guesses from the exit of the process that makes `token`."""
        task, owner = self.task, self.board.owner[token]
        fence()
        state = self.board.exit_state[token][None].clone().to(self.engine.device)
        place = TokenPosition(task.prompt_id, 0, token)
        setting = self._setting
        guesses = exit_guesses(
            self.engine, state, setting.exit_layer, setting.k, place, task.sampling
        )
        if setting.ngrams:
            text = [*task.prompt_ids, *(self.board.verdict[:token] - 1).tolist()]
            draft = prompt_lookup(text, setting.ngrams, 1)
            guesses = np.array(joined_guesses(guesses.tolist(), draft), dtype=guesses.dtype)
        if task.forced is not None:
            guesses = self._forced_guesses(token, task.forced, len(guesses))
        others = [unit for unit in range(self.units) if unit != owner]
        share: np.ndarray = guesses[others.index(self.number) :: len(others)]
        return share

    def _read_late(self, task: Task) -> None:
        """Read the exits that it came too late for, after the text: were their guesses right?"""
        board = self.board
        for token in range(1, task.max_new_tokens - 1):
            if board.abandoned:
                return
            unread = board.n_guesses[self.number, token] == UNREAD
            if unread and board.verdict[token] and board.owner[token] != self.number:
                board.publish_guesses(self.number, token, self._read_exit(token))

    def _forced_guesses(self, token: int, forced: ForcedMatches, k: int) -> np.ndarray:
        true_id = forced.token_ids[token]
        wrong = (true_id + 1 + np.arange(k)) % self.engine.shape.vocabulary
        return np.append(true_id, wrong[:-1]) if forced.hits[token] else wrong

    def _run_guesses(self, token: int, guesses: np.ndarray) -> ProcessState | None:
        """Run this unit's guesses until the verdict; return the right one, if any."""
        board, task = self.board, self.task
        place = len(task.prompt_ids) + token
        started = ProcessState(self.engine.embed(torch.from_numpy(guesses)))
        for index in range(self.engine.shape.layers):
            if board.verdict[token] or not len(guesses):
                break
            self._await_layer(token, index)
            begin = time.monotonic_ns()
            started.x = self._rows(index, started.x, place)
            self._finish()
            started.layers = index + 1
            self.layer_ns = self.trace.record(
                begin, EventKind.LAYER, token + 1, index + 1, len(guesses)
            )
            if started.layers == self._setting.exit_layer:
                started.at_exit = started.x
        self._until(lambda: board.verdict[token], EventKind.AWAIT_VERDICT, token)
        begin = time.monotonic_ns()
        if board.owner[token + 1] != self.number:
            self.trace.record(begin, EventKind.DROP, token + 1, started.layers, len(guesses))
            return None
        self._promote(started, int(board.row[token + 1]), place)
        self.trace.record(begin, EventKind.PROMOTE, token + 1, started.layers, 1)
        return started

    def _await_layer(self, token: int, index: int) -> None:
        """Wait for that layer's keys and values of the token before, or for the verdict."""
        board = self.board
        self._until(
            lambda: board.progress[token] > index or board.verdict[token],
            EventKind.AWAIT_LAYER,
            token,
        )

    def _rows(self, index: int, x: Tensor, place: int) -> Tensor:
        """A layer on all guesses as a batch, or one by one, bitwise identical to plain decoding."""
        if not self._setting.row_by_row:
            return self.engine.layer(index, x, place, self.cache, self.own)
        return torch.cat(
            [
                self.engine.layer(index, one, place, self.cache, self.own[:, :, row:])
                for row, one in enumerate(torch.split(x, 1))
            ]
        )

    def _promote(self, started: ProcessState, row: int, place: int) -> None:
        """Select one guess, and copy its keys and values to the KV cache."""
        done = started.layers
        self.cache.write(0, place, self.own[:done, :, row, :, None])
        started.x = started.x[row][None]
        if started.at_exit is not None:
            started.at_exit = started.at_exit[row]

    # ------------------------------------------------------------ waiting, and the trace

    def _finish(self) -> None:
        """Synchronize with the device, where other units wait for the layer, or it is timed."""
        if self.task.timed or self.task.setting is not None:
            synchronize(self.engine.device)

    def _until(
        self,
        ready: Callable[[], object],
        waiting: EventKind,
        token: int,
        soon: Callable[[], object] = lambda: True,
    ) -> None:
        """Poll the board until `ready`, asleep until `soon`: a busy core slows the others down."""
        if ready():
            fence()
            return
        begin = time.monotonic_ns()
        while not ready():
            if self.board.stop and not ready():
                raise TextEndedError
            if soon():
                yield_cpu()
            else:
                time.sleep(POLL_SLEEP_NS / 1e9)
        fence()
        self.trace.record(begin, waiting, token, 0, 0)
