"""A unit of tensor-parallel plain decoding, which has a shard of every product."""

from __future__ import annotations

from torch import Tensor

from .board import TextEndedError, fence, yield_cpu
from .drafting import make_text
from .options import Task
from .unit import Unit

#: in `progress`, written by rank 0 before any unit begins a token: make it, or end the text
CONTINUE, END = 1, 2


class TensorParallelUnit(Unit):
    """Runs in lockstep with the others: all must take part in every all-reduce.

    Rank 0 therefore publishes whether the next token is made, so that all end at the same one.
    """

    def _text(self, task: Task) -> None:
        self.task = task
        assert self.engine.communicator is not None
        self.engine.communicator.reset()
        if task.drafts is not None:
            make_text(self.engine, self.cache, self.board, self.trace, task, self.number)
        self._prompt()
        for token in range(1, task.max_new_tokens):
            if not self._continues(token):
                return
            self._verified(token, None)

    def _continues(self, token: int) -> bool:
        progress = self.board.progress
        if self.number == 0:
            self._publish_step(token, END if self.board.stop else CONTINUE)
        while not progress[token]:
            yield_cpu()
        fence()
        return bool(progress[token] == CONTINUE)

    def _publish_step(self, token: int, step: int) -> None:
        fence()
        self.board.progress[token] = step

    def _publish_verdict(self, token: int, x: Tensor) -> None:
        if self.number:
            self.engine.logits(x)
            return
        try:
            super()._publish_verdict(token, x)
        except TextEndedError:
            if token + 1 < self.task.max_new_tokens:
                self._publish_step(token + 1, END)
            raise
