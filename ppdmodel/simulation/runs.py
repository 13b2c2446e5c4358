"""Results of simulated and replayed generations: times, layer executions, processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..results.tabular import Frame
from .policy import Policy

if TYPE_CHECKING:
    from .._types import Floats, Ints


@dataclass(frozen=True)
class ProcessRecord:
    """When a group of identical processes occupied its devices.

    `generation` counts the guesses since the last match: 0 for a true process. `started` is when
    it occupied its device.
    """

    token: int
    generation: int
    count: int
    started: float
    ended: float
    verified: bool


@dataclass(frozen=True, eq=False)
class Simulation:
    """One simulated generation; in layer times and executions, or the unit of its layer times.

    `finish_times[i]` is when token i was verified, `work_done[i]` the work of all processes that
    had ended by then; shape [tokens]. `first_hit[i]` is the number, from 1, of the first exit whose
    guesses contained token i+1, or 0; shape [tokens - 1].
    """

    first_hit: Ints
    finish_times: Floats
    work_done: Floats
    peak_units: int
    processes: tuple[ProcessRecord, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return len(self.finish_times)

    @property
    def latency_per_token(self) -> float:
        """Time until the last token was verified, per token; start-up included."""
        return float(self.finish_times[-1] / self.tokens)

    @property
    def compute_per_token(self) -> float:
        """Layer executions until the last token was verified, per token."""
        return float(self.work_done[-1] / self.tokens)


@dataclass(frozen=True)
class Generation:
    """One replayed text: its tokens, and its latency and compute per token."""

    tokens: int
    latency_per_token: float
    compute_per_token: float
    peak_units: int


@dataclass(frozen=True, eq=False)
class Replay(Frame):
    """Recorded matches replayed under a policy, one simulation per generation."""

    policy: Policy
    layers: int
    generations: tuple[Simulation, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens generated, over all generations."""
        return sum(run.tokens for run in self.generations)

    @property
    def latency_per_token(self) -> float:
        """Time of all generations per token."""
        return sum(float(run.finish_times[-1]) for run in self.generations) / self.n_tokens

    @property
    def compute_per_token(self) -> float:
        """Layer executions of all generations per token."""
        return sum(float(run.work_done[-1]) for run in self.generations) / self.n_tokens

    def _rows(self) -> Sequence[Generation]:
        return [
            Generation(run.tokens, run.latency_per_token, run.compute_per_token, run.peak_units)
            for run in self.generations
        ]

    @property
    def match_rate(self) -> float | None:
        """Share of matched tokens, the first of each generation excluded; None without any."""
        trials = self.n_tokens - len(self.generations)
        hits = sum(int((run.first_hit > 0).sum()) for run in self.generations)
        return hits / trials if trials else None

    @property
    def autocorrelation(self) -> float | None:
        """Lag-1 autocorrelation of the matches within generations; None where undefined."""
        p = self.match_rate
        if p is None or not 0 < p < 1:
            return None
        series = [(run.first_hit > 0) - p for run in self.generations]
        pairs = sum(len(x[1:]) for x in series)
        if not pairs:
            return None
        products = sum(float(x[1:] @ x[:-1]) for x in series)
        return products / pairs / (p * (1 - p))
