"""Which exit layer, k and depth are best for a measured model, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import formulas
from .checks import positive_integer
from .errors import InvalidInputError
from .resample import METHOD, percentiles, prompt_weights, resampled_rates
from .results import Calibration, Choice, Decision, Interval, Setting

if TYPE_CHECKING:
    from .results import Floats, Ints

DEFAULT_BUDGETS = (1.5, 2.0, 3.0)
FOLDS = 5


def optimize(
    calibration: Calibration,
    *,
    max_compute: Sequence[float] = DEFAULT_BUDGETS,
    max_depth: int = 1,
    max_units: int | None = None,
) -> Decision:
    """Find the setting of least latency under each compute budget, by trying all of them.

    Latency and compute are those of the closed forms at the measured match rates, in layer units.
    The best of many noisy settings looks better than it is, so each choice is also made on 4/5 of
    the prompts and judged on the rest (`held_out_latency`).

    Args:
        calibration: from `fit`.
        max_compute: budgets, as multiples of plain decoding's layer executions; at least 1.
        max_depth: depths 1...max_depth are tried.
        max_units: most processes at once; None for any number.

    Returns:
        A choice per budget, and the latency-compute frontier.

    Raises:
        InvalidInputError: a budget below 1, or a number that is not a positive integer.
    """
    for budget in max_compute:
        if not budget >= 1:
            raise InvalidInputError(
                f"max_compute must be at least 1; got {budget}; 2 allows twice the layers"
            )
    positive_integer("max_depth", max_depth)
    grid = Grid.of(calibration.layers, calibration.k_max, max_depth)
    if max_units is not None:
        grid = grid.only(grid.peak_units() <= positive_integer("max_units", max_units))
    judged = _Judged(grid, calibration)
    choices = tuple(_choice(judged, float(budget)) for budget in sorted(max_compute))
    frontier = tuple(judged.setting(index) for index in _frontier(judged.latency, judged.compute))
    return Decision(
        model=calibration.model,
        layers=calibration.layers,
        n_tokens=int(calibration.tokens.sum()),
        n_prompts=len(calibration.tokens),
        settings=grid.size,
        choices=choices,
        frontier=frontier,
        provenance=calibration.provenance,
    )


@dataclass(frozen=True)
class Grid:
    """Every setting there is: exit layers below the last, every k, every depth."""

    layers: int
    exit_layer: Ints
    k: Ints
    depth: Ints

    @classmethod
    def of(cls, layers: int, k_max: int, max_depth: int = 1) -> Grid:
        """All exit layers 1...layers-1, k = 1...k_max and depths 1...max_depth."""
        axes = np.meshgrid(
            np.arange(1, max_depth + 1),
            np.arange(1, layers),
            np.arange(1, k_max + 1),
            indexing="ij",
        )
        depth, exit_layer, k = (axis.ravel() for axis in axes)
        return cls(layers, exit_layer, k, depth)

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

    def latency(self, p_correct: Floats) -> Floats:
        """Normalized latency of each setting, for match rates [..., settings]."""
        result = np.empty_like(p_correct)
        for depth, at in self._depths():
            p, e = p_correct[..., at], self.exit_layer[at]
            result[..., at] = formulas.normalized_latency(p, self.layers, e, depth)
        return result

    def compute(self, p_correct: Floats) -> Floats:
        """Normalized compute of each setting, for match rates [..., settings]."""
        result = np.empty_like(p_correct)
        for depth, at in self._depths():
            p, e, k = p_correct[..., at], self.exit_layer[at], self.k[at]
            result[..., at] = formulas.normalized_compute(p, self.layers, e, k, depth)
        return result

    def _depths(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each depth and where it is: the formulas are fastest at one depth at a time."""
        for depth in np.unique(self.depth):
            yield int(depth), self.depth == depth

    def peak_units(self) -> Floats:
        """Most processes at once, of each setting."""
        return np.asarray(formulas.peak_units(self.layers, self.exit_layer, self.k, self.depth))


class _Judged:
    """Point estimates and bootstrap draws of every setting of a grid."""

    def __init__(self, grid: Grid, calibration: Calibration) -> None:
        self.grid, self.calibration = grid, calibration
        hits, tokens = calibration.hits, calibration.tokens
        self.p_correct = grid.rates(hits.sum(axis=0) / tokens.sum())
        self.latency, self.compute = grid.latency(self.p_correct), grid.compute(self.p_correct)
        self.weights = prompt_weights(len(tokens), calibration.resamples, calibration.seed)
        self.p_draws = grid.rates(resampled_rates(hits, tokens, self.weights))
        self.latency_draws = grid.latency(self.p_draws)
        self.compute_draws = grid.compute(self.p_draws)

    def interval(self, value: float, draws: Floats) -> Interval:
        """A number with the interval of its draws."""
        low, high = percentiles(draws)
        tokens = self.calibration.tokens
        return Interval(value, float(low), float(high), int(tokens.sum()), len(tokens), METHOD)

    def setting(self, index: int) -> Setting:
        """One setting with its intervals."""
        grid = self.grid
        pairs = (
            (self.p_correct, self.p_draws),
            (self.latency, self.latency_draws),
            (self.compute, self.compute_draws),
        )
        p, latency, compute = (self.interval(float(v[index]), d[:, index]) for v, d in pairs)
        return Setting(
            exit_layer=int(grid.exit_layer[index]),
            k=int(grid.k[index]),
            depth=int(grid.depth[index]),
            p_correct=p,
            normalized_latency=latency,
            normalized_compute=compute,
            peak_units=int(grid.peak_units()[index]),
        )


def _best(latency: Floats, compute: Floats, budget: float) -> Ints:
    """Index of the least latency within the budget along the last axis; -1 where nothing saves."""
    allowed = np.where((compute <= budget) & (latency < 1), latency, np.inf)
    best = np.argmin(allowed, axis=-1)
    return np.where(np.isfinite(allowed.min(axis=-1)), best, -1)


def _choice(judged: _Judged, budget: float) -> Choice:
    best = int(_best(judged.latency, judged.compute, budget)) if judged.grid.size else -1
    if best < 0:
        return Choice(budget, None, None, None, None)
    others = judged.latency.copy()
    others[best] = np.inf
    second = int(_best(others, judged.compute, budget))
    drawn = _best(judged.latency_draws, judged.compute_draws, budget)
    return Choice(
        max_compute=budget,
        setting=judged.setting(best),
        held_out_latency=_held_out(judged, budget),
        chosen_share=float(np.mean(drawn == best)),
        runner_up=judged.setting(second) if second >= 0 else None,
    )


def _held_out(judged: _Judged, budget: float) -> Interval | None:
    """Latency of settings chosen on some prompts, on the others; None with too few prompts."""
    calibration, grid = judged.calibration, judged.grid
    prompts = len(calibration.tokens)
    if prompts < 2 * FOLDS:
        return None
    fold = np.random.default_rng(calibration.seed).permutation(prompts) % FOLDS
    everyone = np.ones((1, prompts), dtype=np.int64)
    sums: list[Any] = [0.0, 0.0]
    counts: list[Any] = [0.0, 0.0]
    for number in range(FOLDS):
        outside = (fold == number).astype(np.int64)
        seen = resampled_rates(calibration.hits, calibration.tokens, everyone * (1 - outside))
        p = grid.rates(seen)
        best = int(_best(grid.latency(p), grid.compute(p), budget)[0])
        for i, weights in enumerate((everyone, judged.weights)):
            tokens, latency = _latency_on(judged, best, weights * outside)
            sums[i] = sums[i] + tokens * latency
            counts[i] = counts[i] + tokens
    value, draws = (np.asarray(s) / np.asarray(c) for s, c in zip(sums, counts, strict=True))
    return judged.interval(float(value[0]), draws)


def _latency_on(judged: _Judged, index: int, weights: Ints) -> tuple[Ints, Floats]:
    """Tokens and latency of one setting (-1: plain decoding) on weighted prompts, per resample."""
    tokens = weights @ judged.calibration.tokens
    one = judged.grid.only(np.arange(judged.grid.size) == index)
    if not one.size:
        return tokens, np.ones(len(weights))
    hits = weights @ judged.calibration.hits[:, one.exit_layer[0] - 1, one.k[0] - 1]
    return tokens, one.latency((hits / np.maximum(tokens, 1))[:, None])[:, 0]


def _frontier(latency: Floats, compute: Floats) -> list[int]:
    """Indices of the settings that no other beats in both, by increasing compute."""
    frontier: list[int] = []
    least = 1.0
    for index in np.lexsort((latency, compute)):
        if latency[index] < least:
            least = float(latency[index])
            frontier.append(int(index))
    return frontier
