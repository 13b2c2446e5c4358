"""What a long run reports while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is: its stage, tokens that are done, and the share of the work in [0, 1]."""

    stage: str
    tokens: int
    share: float


OnProgress = Callable[[Progress], None]
