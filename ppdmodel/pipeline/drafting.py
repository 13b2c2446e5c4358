"""Decoding with drafts on the engine of PPD: several tokens are verified together, as one batch.

A draft is accepted where it is the token that the model chooses itself, so the text is that of
plain decoding. All units of tensor parallelism take part; they see the same logits, and so decide
alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..measure.decoder.sampling import Sampling, TokenPosition, choose, gumbel, scaled
from ..results.prompt_lookup import prompt_lookup
from .board import NO_MATCH, Board, TextEndedError
from .engine import Engine, read_tokens
from .kv_cache import KVCache
from .options import PromptLookup, Task
from .trace import EventKind, Trace

if TYPE_CHECKING:
    from .cpu_engine import CpuEngine


def exit_guesses(
    engine: Engine | CpuEngine,
    state: Tensor,
    exit_layer: int,
    k: int,
    place: TokenPosition,
    sampling: Sampling | None,
) -> np.ndarray:
    """The k most likely tokens by an exit [k], most likely first.

    Args:
        engine: a model, or a shard of it.
        state: hidden state [1, width] after the exit layer.
        exit_layer: from 1.
        k: guesses.
        place: position of the token, whose noise the guesses share.
        sampling: None is greedy.
    """
    logits, ids = engine.logits(state, exit_layer), engine.exit_ids
    if sampling is not None:
        noise = torch.from_numpy(gumbel(sampling.seed, place, engine.shape.vocabulary))
        noise = noise.to(logits.device)
        logits = scaled(logits, sampling.temperature) + (noise if ids is None else noise[ids])
    found = logits.topk(k).indices
    guesses: np.ndarray = (found if ids is None else ids[found]).cpu().numpy()[0]
    return guesses


def make_text(
    engine: Engine | CpuEngine, cache: KVCache, board: Board, trace: Trace, task: Task, number: int
) -> None:
    """Make a text on one unit, or on all units of tensor parallelism, until it ends.

    A token's `row` on the board is its place among the accepted drafts of its round, or `NO_MATCH`.

    Raises:
        TextEndedError: the text has ended.
    """
    text = _Text(engine, cache, board, trace, task, number)
    ids = torch.tensor(task.prompt_ids)
    text.append(read_tokens(engine, ids, 0, cache)[-1:], ())
    while True:
        text.append(*text.round())


class _Text:
    """The prompt and the tokens made so far."""

    def __init__(
        self,
        engine: Engine | CpuEngine,
        cache: KVCache,
        board: Board,
        trace: Trace,
        task: Task,
        number: int,
    ) -> None:
        assert task.drafts is not None
        self.engine, self.cache, self.board, self.trace = engine, cache, board, trace
        self.task, self.drafts, self.number = task, task.drafts, number
        self.ids = list(task.prompt_ids)

    @property
    def made(self) -> int:
        """Number of tokens so far."""
        return len(self.ids) - len(self.task.prompt_ids)

    def append(self, x: Tensor, drafts: Sequence[int]) -> None:
        """Choose the tokens after the last states [rows, width], as far as the drafts agree."""
        first = self.made
        begin = time.monotonic_ns()
        chosen = self._chosen(self.engine.logits(x), first)
        now = time.monotonic_ns()
        self.trace.record(begin, EventKind.HEAD, first, 0, len(x))
        for row, token_id in enumerate(chosen):
            accepted = row < len(drafts) and drafts[row] == token_id
            self._publish(first + row, token_id, row if accepted else NO_MATCH, now)
            if not accepted:
                return

    def _publish(self, token: int, token_id: int, row: int, now: int) -> None:
        self.ids.append(token_id)
        ends = token_id in self.task.end_ids or token + 1 == self.task.max_new_tokens
        if self.number == 0:
            board = self.board
            board.row[token] = row
            if ends:
                board.stop.fill(True)
            board.publish_verdict(token, token_id, 0, NO_MATCH, now)
        if ends:
            raise TextEndedError

    def _chosen(self, logits: Tensor, first: int) -> list[int]:
        places = [TokenPosition(self.task.prompt_id, 0, first + n) for n in range(len(logits))]
        chosen: list[int] = choose(logits, places, self.task.sampling)[0].cpu().tolist()
        return chosen

    def round(self) -> tuple[Tensor, list[int]]:
        """The states of the last token and of its drafts after all layers, and the drafts."""
        most = min(self.drafts.drafted, self.task.max_new_tokens - self.made - 1)
        place, done = len(self.ids) - 1, 0
        if isinstance(self.drafts, PromptLookup):
            drafts = prompt_lookup(self.ids, self.drafts.ngram, most) if most else []
            x = self.engine.embed(torch.tensor([self.ids[-1], *drafts]))
        else:
            x, drafts = self._by_exit(self.drafts.exit_layer, most)
            done = self.drafts.exit_layer
        return self._through(x, done, self.engine.shape.layers, place), drafts

    def _by_exit(self, exit_layer: int, most: int) -> tuple[Tensor, list[int]]:
        """Draft from an exit; states [drafts + 1, width] after its layer, and the drafts."""
        place, last, states, drafts = len(self.ids) - 1, self.ids[-1], [], []
        for n in range(most + 1):
            x = self._through(self.engine.embed(torch.tensor([last])), 0, exit_layer, place + n)
            states.append(x)
            if n < most:
                begin = time.monotonic_ns()
                at = TokenPosition(self.task.prompt_id, 0, self.made + n)
                guessed = exit_guesses(self.engine, x, exit_layer, 1, at, self.task.sampling)
                self.trace.record(begin, EventKind.EXIT, self.made + n, exit_layer, 1)
                last = int(guessed.item())
                drafts.append(last)
        return torch.cat(states), drafts

    def _through(self, x: Tensor, first: int, last: int, place: int) -> Tensor:
        for index in range(first, last):
            begin = time.monotonic_ns()
            x = self.engine.advance(index, x, place, self.cache)
            self.trace.record(begin, EventKind.LAYER, self.made, index + 1, len(x))
        return x
