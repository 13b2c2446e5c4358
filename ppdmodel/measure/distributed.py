"""The process group of `accelerate launch`, or a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, PpdModelError
from ..results.locks import owned


class Group:
    """Processes that share a run: their number, this one's rank and its device.

    Outside a launcher it is a group of one, and Accelerate is not imported.
    """

    def __init__(self, on_cpu: bool) -> None:
        self.on_cpu = on_cpu
        self.rank, self.size = 0, 1
        self.device: str | None = None
        self._state: Any = None

    def __enter__(self) -> Group:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=self.on_cpu)
            self.rank, self.size = self._state.process_index, self._state.num_processes
            self.device = str(self._state.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._state is not None:
            self._state.destroy_process_group()

    @contextmanager
    def owns(self, folder: Path) -> Iterator[None]:
        """Own a folder, through the first process.

        Raises:
            InvalidInputError: another run is using the folder.
            RunFailedError: the folder cannot be made.
        """
        with ExitStack() as stack:
            refusal: PpdModelError | None = None
            if self.rank == 0:
                try:
                    stack.enter_context(owned(folder))
                except PpdModelError as error:
                    refusal = error
            if self._told(refusal is not None):
                raise refusal or InvalidInputError(
                    f"the out folder must be that of this run; got {folder}, which the first "
                    "process was refused; see its message"
                )
            yield

    def _told(self, answer: bool) -> bool:
        """The first process's answer, in all of them."""
        if self._state is None:
            return answer
        import torch
        from accelerate.utils import broadcast

        return bool(broadcast(torch.tensor(int(answer), device=self._state.device)))

    def wait(self) -> None:
        """Wait until every process has called this (barrier)."""
        if self._state is not None:
            self._state.wait_for_everyone()
