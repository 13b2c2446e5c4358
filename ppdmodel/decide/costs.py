"""Cost models of settings: layer counts, or a machine's measured times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import formulas
from ..results.calibration import Calibration
from ..results.timing import Timing, resampled_timing
from .estimate import least_p_correct
from .prediction import (
    predicted_compute,
    predicted_latency_curve,
    predicted_latency_s,
    predicted_plain_compute,
    predicted_plain_latency_s,
    verification_times,
)

if TYPE_CHECKING:
    from .._types import Floats, Ints

LAYERS, TIMES, IDEAL_TIMES = "layers", "measured times", "ideal times"
#: resampled timings of a bootstrap
TIMING_DRAWS = 20
#: most match rates in one call of a formula
BLOCK = 2**18


@dataclass(frozen=True)
class Grid:
    """Settings as parallel arrays: exit layers below the last, k's, depths."""

    layers: int
    exit_layer: Ints
    k: Ints
    depth: Ints

    @classmethod
    def of(cls, layers: int, ks: int | tuple[int, ...], max_depth: int) -> Grid:
        """All exit layers 1...layers-1, k's (a number: from 1 to it) and depths 1...max_depth.

        Depths that change nothing are left out: those beyond the first with
        (depth + 1) exit_layer >= layers.
        """
        k = np.arange(1, ks + 1) if isinstance(ks, int) else np.array(ks, dtype=np.int64)
        depth, exit_layer = np.indices((max_depth, layers - 1)).reshape(2, -1) + 1
        useful = (depth == 1) | (depth * exit_layer < layers)
        depth, exit_layer = (np.repeat(axis[useful], len(k)) for axis in (depth, exit_layer))
        return cls(layers, exit_layer, np.tile(k, useful.sum()), depth)

    @property
    def size(self) -> int:
        """Number of settings."""
        return len(self.k)

    def only(self, keep: np.ndarray) -> Grid:
        """The settings where `keep` is true."""
        return Grid(self.layers, self.exit_layer[keep], self.k[keep], self.depth[keep])

    def rates(self, table: Floats) -> Floats:
        """Pick each setting's match rate from a table [..., layers, k_max]."""
        return table[..., self.exit_layer - 1, self.k - 1]

    def blocks(self, draws: int) -> Iterator[tuple[int, Ints]]:
        """Blocks of settings of one depth: the depth and their indices.

        The formulas are fastest at one depth, on arrays that fit in the cache.
        """
        size = max(BLOCK // draws, 1)
        for depth in np.unique(self.depth):
            places = np.flatnonzero(self.depth == depth)
            for start in range(0, len(places), size):
                yield int(depth), places[start : start + size]

    def peak_units(self) -> Ints:
        """Most processes at once for each setting."""
        return np.asarray(formulas.peak_units(self.layers, self.exit_layer, self.k, self.depth))


class CostModel(Protocol):
    """Latency and compute of settings, as ratios to plain decoding on one unit."""

    name: str

    def grid(self, layers: int, k_max: int, max_depth: int) -> Grid:
        """The settings that the model covers."""

    def units(self, grid: Grid) -> Ints:
        """Processes, or devices, of each setting, [settings]."""

    def ratios(self, grid: Grid, p_correct: Floats) -> tuple[Floats, Floats]:
        """Latency and compute of each setting, for match rates [..., settings]."""

    def drawn_ratios(self, grid: Grid, p_correct: Floats) -> tuple[Floats, Floats]:
        """The same for resampled match rates [draws, settings] and resampled costs."""

    def break_even(self, exit_layer: int, k: int) -> float | None:
        """Match rate above which PPD saves time; None if it never does."""


class LayerCosts:
    """Costs in layer executions alone: the closed forms of theory pages 2 and 3."""

    name = LAYERS

    def grid(self, layers: int, k_max: int, max_depth: int) -> Grid:
        """Every exit layer below the last, every k that was recorded, every depth."""
        return Grid.of(layers, k_max, max_depth)

    def units(self, grid: Grid) -> Ints:
        """Most processes at once."""
        return grid.peak_units()

    def ratios(self, grid: Grid, p_correct: Floats) -> tuple[Floats, Floats]:
        """Normalized latency and compute of each setting, for match rates [..., settings]."""
        latency, compute = np.empty_like(p_correct), np.empty_like(p_correct)
        for depth, at in grid.blocks(math.prod(p_correct.shape[:-1])):
            p = p_correct[..., at]
            e, k = (x[at].astype(p.dtype) for x in (grid.exit_layer, grid.k))
            latency[..., at] = formulas.normalized_latency(p, grid.layers, e, depth)
            compute[..., at] = formulas.normalized_compute(p, grid.layers, e, k, depth)
        return latency, compute

    drawn_ratios = ratios

    def break_even(self, exit_layer: int, k: int) -> float | None:  # noqa: ARG002
        """Zero: without overheads any match saves time."""
        return 0.0


class TimedCosts:
    """The calibrated model of theory page 10, at depth 1 on two devices, for the timed k.

    Bootstrap draws cycle through a few timings resampled from the repetitions.
    """

    def __init__(self, timing: Timing, seed: int = 0) -> None:
        self.timing = timing
        self.name = IDEAL_TIMES if timing.is_ideal else TIMES
        rng = np.random.default_rng(seed)
        self.draws = [_Timed(resampled_timing(timing, rng)) for _ in range(TIMING_DRAWS)]
        self._whole = _Timed(timing)
        self.plain_s = predicted_plain_latency_s(timing)

    def grid(self, layers: int, k_max: int, max_depth: int) -> Grid:  # noqa: ARG002
        """Every exit layer below the last and every k that was timed and recorded, at depth 1."""
        ks = tuple(k for k in sorted(self.timing.by_k) if k <= k_max)
        return Grid.of(layers, ks, 1)

    @property
    def n_units(self) -> int:
        """Devices: one for the main process, one for the batch; more with tensor parallelism."""
        return 2 * self.timing.units_per_process

    def units(self, grid: Grid) -> Ints:
        """The same number for every setting."""
        return np.full(grid.size, self.n_units)

    def ratios(self, grid: Grid, p_correct: Floats) -> tuple[Floats, Floats]:
        """Time per token, and layer executions with heads (10.5), over plain decoding's."""
        return self._whole.ratios(grid, p_correct)

    def drawn_ratios(self, grid: Grid, p_correct: Floats) -> tuple[Floats, Floats]:
        """The same, cycling through the resampled timings along the first axis."""
        latency, compute = np.empty_like(p_correct), np.empty_like(p_correct)
        for number, timing in enumerate(self.draws):
            rows = slice(number, None, len(self.draws))
            latency[rows], compute[rows] = timing.ratios(grid, p_correct[rows])
        return latency, compute

    def verification(self, rows: int) -> Floats:
        """`verification_times` of 1 token to the most that was timed, by the timing of each row.

        One row gives those of the timing itself, several cycle through the resampled ones.
        """
        timings = [self.timing] if rows == 1 else [one.timing for one in self.draws]
        times = [verification_times(one, max(self.timing.by_k)) for one in timings]
        return np.array(times)[np.arange(rows) % len(times)]

    def break_even(self, exit_layer: int, k: int) -> float | None:
        """Match rate at which predicted and plain latency are equal, by bisection."""
        return least_p_correct(
            lambda p: bool(predicted_latency_s(self.timing, p, exit_layer, k) < self.plain_s)
        )


class _Timed:
    """Latency and compute by a timing, over plain decoding's, as functions of the match rate."""

    def __init__(self, timing: Timing) -> None:
        self.timing, self.plain_s = timing, predicted_plain_latency_s(timing)
        self._known: dict[tuple[int, int], tuple[Callable[[Any], Any], Floats]] = {}

    def _of(self, exit_layer: int, k: int) -> tuple[Callable[[Any], Any], Floats]:
        """Seconds of a setting, and compute at match rates 0 and 1, which is linear between."""
        if (exit_layer, k) not in self._known:
            ends = predicted_compute(self.timing, np.array([0.0, 1.0]), exit_layer, k)
            seconds = predicted_latency_curve(self.timing, exit_layer, k)
            self._known[exit_layer, k] = seconds, ends / predicted_plain_compute(self.timing)
        return self._known[exit_layer, k]

    def ratios(self, grid: Grid, p_correct: Floats) -> tuple[Floats, Floats]:
        """Ratios of each setting, for match rates [..., settings]."""
        latency, compute = np.empty_like(p_correct), np.empty_like(p_correct)
        pairs = zip(grid.exit_layer.tolist(), grid.k.tolist(), strict=True)
        for place, setting in enumerate(pairs):
            p = p_correct[..., place]
            seconds, (none, all_) = self._of(*setting)
            latency[..., place] = seconds(p) / self.plain_s
            compute[..., place] = none + p * (all_ - none)
        return latency, compute


def cost_model(calibration: Calibration, *, ideal: bool = False) -> CostModel:
    """Measured times where the calibration has them; layer counts if not, or if `ideal`."""
    if calibration.timing is None or ideal:
        return LayerCosts()
    return TimedCosts(calibration.timing, calibration.seed)
