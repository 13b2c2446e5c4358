"""The process group of `accelerate launch`, or a single process."""

from __future__ import annotations

import os
from typing import Any


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

    def wait(self) -> None:
        """Wait until every process has called this (barrier)."""
        if self._state is not None:
            self._state.wait_for_everyone()
