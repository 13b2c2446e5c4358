"""One of the units that make a plain text together, each with a part of every product."""

from __future__ import annotations

from torch import Tensor

from .unit import PATIENCE, GoneError, Task, Unit, give_way

#: what the first unit says of a token before all begin it: that it is made, or that none is
GOES_ON, ENDS = 1, 2


class Member(Unit):
    """Runs in step with the others: no one may begin a sum that another does not come to.

    The first says whether a token is made at all, so that all leave at the same one.
    """

    def _text(self, task: Task) -> None:
        self.task = task
        self.cache.begin(handed_over=False)
        self._prompt()
        for token in range(1, task.max_new_tokens):
            if not self._goes_on(token):
                return
            self._verified(token, None)

    def _goes_on(self, token: int) -> bool:
        said = self.board.progress
        if self.number == 0:
            self._check_parent()
            self._say(token, not self.board.stop[0])
        looks = 0
        while not said[token]:
            looks += 1
            if looks % PATIENCE == 0:
                self._check_parent()
            give_way()
        self.board.fence()
        return bool(said[token] == GOES_ON)

    def _say(self, token: int, goes_on: bool) -> None:
        self.board.fence()
        self.board.progress[token] = GOES_ON if goes_on else ENDS

    def _give_verdict(self, token: int, x: Tensor) -> None:
        if self.number:
            self.engine.logits(x)
            return
        try:
            super()._give_verdict(token, x)
        except GoneError:
            if token + 1 < self.task.max_new_tokens:
                self._say(token + 1, False)
            raise
