"""Search spaces: decoding methods with all their settings, on the measured prompts.

For given weights of the prompts, each computes latency and compute of its settings, as ratios to
plain decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .. import formulas
from ..results.intervals import Interval, resampled_rates
from ..results.token_counts import TokenCounts, up_to
from .costs import CostModel, Grid, TimedCosts
from .outcomes import Method
from .selection import Rule, Selection

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.calibration import Calibration
    from ..results.hit_counts import HitCounts

#: weights [rows, prompts], indices of settings -> latency and compute, [rows, settings]
Evaluate = Callable[["Ints | Floats", "Ints"], "tuple[Floats, Floats]"]

GIVEN = "given, not measured"
#: shown for a method without a setting within the budget
NOTHING = "none is faster than plain decoding"


@dataclass(frozen=True)
class MethodSettings:
    """One method with all its settings, a search space.

    Attributes:
        name: the method.
        settings: each setting in words.
        units: most processes of each setting at once, [settings].
        evaluate: weights [rows, prompts] and the indices of some settings -> their latency and
            compute, [rows, settings].
        note: a remark on the numbers.
    """

    name: str
    settings: Sequence[str]
    units: Ints
    evaluate: Evaluate
    note: str = ""

    @property
    def size(self) -> int:
        """Number of settings."""
        return len(self.settings)

    def within(self, max_units: int | None) -> MethodSettings:
        """The settings with at most `max_units` processes."""
        if max_units is None:
            return self
        kept = np.flatnonzero(self.units <= max_units)
        return replace(
            self,
            settings=[self.settings[place] for place in kept.tolist()],
            units=self.units[kept],
            evaluate=lambda weights, at: self.evaluate(weights, kept[at]),
        )


def best_methods(
    selection: Selection[MethodSettings], rules: Sequence[Rule], basis: str
) -> list[Method]:
    """The best setting of a method under each rule with its intervals, also cross-validated.

    Plain decoding where no setting is better; none at all where the method has no settings.
    """
    if not selection.space.size:
        return []
    found = []
    for rule, held in zip(rules, selection.held_out(rules), strict=True):
        method = _in_sample(selection, rule, basis)
        if held is not None:
            method = replace(method, held_out=held.latency, held_out_compute=held.compute)
        found.append(method)
    return found


def _in_sample(selection: Selection[MethodSettings], rule: Rule, basis: str) -> Method:
    space, place = selection.space, selection.best(rule)
    plain = given(space.name, NOTHING, 1.0, 1.0, 1, basis, space.note)
    if place is None:
        return plain
    found = selection.evaluation(rule, place)
    return replace(
        plain,
        setting=space.settings[place],
        latency=found.latency,
        compute=found.compute,
        units=int(space.units[place]),
    )


def beyond(least: Mapping[str, int], max_units: int | None) -> list[str]:
    """Why methods are left out: the least units of each, where `max_units` are fewer."""
    return [
        f"{name}: it takes {units} units or more"
        for name, units in least.items()
        if max_units is not None and units > max_units
    ]


def given(
    name: str, setting: str, latency: float, compute: float, units: int, basis: str, note: str = ""
) -> Method:
    """A method without confidence intervals."""
    value, cost = (Interval(x, x, x, 0, 0, GIVEN) for x in (latency, compute))
    return Method(name, setting, value, None, cost, units, basis, note)


@dataclass(frozen=True)
class PpdSettings:
    """PPD at one exit layer, every setting of a grid, at the measured match rates.

    Attributes:
        grid: the settings.
        costs: the cost model.
        hits: matched tokens of each prompt, [prompts, layers, k_max].
        tokens: of each prompt, [prompts].
        link_time: delay of the guesses by a message, in layer times; it moves the exit later.
    """

    grid: Grid
    costs: CostModel
    hits: Ints
    tokens: Ints
    link_time: float = 0.0

    @classmethod
    def of(
        cls,
        counts: HitCounts | Calibration,
        costs: CostModel,
        max_depth: int = 1,
        link_time: float = 0.0,
    ) -> PpdSettings:
        """Every setting that was counted and that the cost model covers."""
        grid = costs.grid(counts.layers, counts.hits.shape[2], max_depth)
        if counts.exit_layers is not None:
            grid = grid.only(np.isin(grid.exit_layer, counts.exit_layers))
        if counts.ks is not None:
            grid = grid.only(np.isin(grid.k, counts.ks))
        return cls(grid, costs, counts.hits, counts.tokens, link_time)

    @property
    def size(self) -> int:
        """Number of settings."""
        return self.grid.size

    @cached_property
    def units(self) -> Ints:
        """Processes, or devices, of each setting, [settings]."""
        return self.costs.units(self.grid)

    def rates(self, weights: Ints | Floats, at: Ints) -> Floats:
        """Match rates of some settings, [rows, settings]."""
        grid, shape = self.grid.only(at), self.hits.shape[1:]
        cells = np.ravel_multi_index((grid.exit_layer - 1, grid.k - 1), shape)
        found, place = np.unique(cells, return_inverse=True)  # all depths have the same rate
        exits, ks = np.unravel_index(found, shape)
        return resampled_rates(self.hits[:, exits, ks], self.tokens, weights)[:, place]

    def evaluate(self, weights: Ints | Floats, at: Ints) -> tuple[Floats, Floats]:
        """Latency and compute of some settings, [rows, settings]."""
        grid, rates = self._delayed(self.grid.only(at)), self.rates(weights, at)
        costs = self.costs
        return costs.ratios(grid, rates) if len(weights) == 1 else costs.drawn_ratios(grid, rates)

    def draws(self, rates: Floats) -> tuple[Floats, Floats]:
        """Latency and compute of every setting, for match rates [draws, layers, k_max]."""
        return self.costs.drawn_ratios(self._delayed(self.grid), self.grid.rates(rates))

    def _delayed(self, grid: Grid) -> Grid:
        if not self.link_time:
            return grid
        return replace(grid, exit_layer=np.minimum(grid.exit_layer + self.link_time, grid.layers))


def ppd(space: PpdSettings, name: str = "PPD", note: str = "") -> MethodSettings:
    """PPD at one exit layer and depth 1 as a method."""
    pairs = zip(space.grid.exit_layer, space.grid.k, strict=True)
    words = [f"exit {e}, k = {k}" for e, k in pairs]
    return MethodSettings(name, words, space.units, space.evaluate, note)


def self_speculation(recorded: TokenCounts) -> MethodSettings:
    """Self-speculative decoding: the first layers draft, and the verification reuses them.

    With a gate it drafts only while the exit is confident, where that was counted.
    """
    layers, tokens = recorded.layers, recorded.tokens
    axes = np.meshgrid(np.arange(1, layers), np.array(recorded.drafted), indexing="ij")
    exit_layer, gamma = (axis.ravel() for axis in axes)
    words = [f"exit {e}, {g} drafted" for e, g in zip(exit_layer, gamma, strict=True)]
    rounds = recorded.rounds.reshape(len(tokens), len(gamma))
    drafts = rounds * gamma
    if recorded.gated_rounds is not None and recorded.gated_drafts is not None:
        e, g, j = (axis.ravel() for axis in np.indices(recorded.gated_rounds.shape[1:]))
        most, gates = np.array(recorded.gated_k)[j], np.array(recorded.draft_gates)[g]
        words += [
            f"exit {x}, up to {y} drafted, gate {z:g}"
            for x, y, z in zip(e + 1, most, gates, strict=True)
        ]
        exit_layer = np.append(exit_layer, e + 1)
        flat = (x.reshape(len(tokens), -1) for x in (recorded.gated_rounds, recorded.gated_drafts))
        rounds, drafts = (
            np.concatenate(pair, axis=1) for pair in zip((rounds, drafts), flat, strict=True)
        )
    # of a round without drafts, and what a drafted token adds to it
    alone = formulas.self_speculative_latency(0, layers, exit_layer, 0) / layers
    added = formulas.self_speculative_latency(0, layers, exit_layer, 1) / layers - alone
    executed = formulas.self_speculative_compute(0, layers, exit_layer, 0) / layers
    more = formulas.self_speculative_compute(0, layers, exit_layer, 1, reuse=1) / layers - executed

    def evaluate(weights: Ints | Floats, at: Ints) -> tuple[Floats, Floats]:
        n = (weights @ tokens)[:, None]
        made, drafted = (weights @ rounds[:, at]) / n, (weights @ drafts[:, at]) / n
        latency = made * alone[at] + drafted * added[at]
        return latency, made * executed[at] + drafted * more[at]

    return MethodSettings(
        "self-speculation",
        words,
        np.ones(len(words), dtype=np.int64),
        evaluate,
        "drafts follow one another on one unit; a pass over several tokens counts as one in time; "
        "how confident an exit is behind a wrong draft is taken from the true text",
    )


def prompt_lookup(recorded: TokenCounts, costs: TimedCosts | None = None) -> MethodSettings | None:
    """Prompt lookup decoding; None where it was not counted.

    With measured times a pass takes as long as they say, and drafts have as many tokens as were
    timed; without, a pass takes as long over several tokens as over one.
    """
    if recorded.lookups is None or not recorded.lookups.size:
        return None
    tokens, most = recorded.tokens, recorded.lookups.shape[3] - 1
    if costs is not None:
        most = min(most, max(costs.timing.by_k) - 1)
    columns = [place for place, m in enumerate(recorded.looked_up) if m <= most]
    if not columns:
        return None
    kept = recorded.lookups[:, :, columns, : most + 1]
    n, m = (axis.ravel() for axis in np.indices(kept.shape[1:3]))
    counts = kept.reshape(len(tokens), len(n), most + 1)
    drafted = np.arange(most + 1)
    compute = formulas.prompt_lookup_compute(0, 1, drafted)

    def evaluate(weights: Ints | Floats, at: Ints) -> tuple[Floats, Floats]:
        rounds = np.tensordot(weights, counts[:, at], 1) / (weights @ tokens)[:, None, None]
        times = np.ones((1, most + 1)) if costs is None else costs.verification(len(weights))
        of_round = formulas.prompt_lookup_latency(0, 1, drafted, 1, times[:, : most + 1])
        return (rounds * of_round[:, None]).sum(axis=2), rounds @ compute

    searched = "prompt and text" if recorded.with_contexts else "generated text alone"
    return MethodSettings(
        "prompt lookup" if costs is None else "prompt lookup, timed",
        [
            f"n-grams of up to {recorded.ngrams[x]}, {recorded.looked_up[columns[y]]} drafted"
            for x, y in zip(n, m, strict=True)
        ],
        np.ones(len(n), dtype=np.int64),
        evaluate,
        f"drafts what followed the same tokens before; searched: {searched}; a pass over several "
        + ("tokens counts as one in time" if costs is None else "tokens takes what was timed"),
    )


def gated(recorded: TokenCounts, link_time: float = 0.0) -> MethodSettings:
    """PPD with one exit in the second half, gated by the top probability there.

    The link time moves the exit later.
    """
    layers, tokens, passed = recorded.layers, recorded.tokens, recorded.passed
    right = recorded.right.cumsum(axis=3)
    e, g, j = (axis.ravel() for axis in np.indices(right.shape[1:]))
    right = right.reshape(len(tokens), len(e))
    exit_layer, k = recorded.gated_exits[e], np.array(recorded.gated_k)[j]
    started = np.minimum(exit_layer + link_time, layers)

    def evaluate(weights: Ints | Floats, at: Ints) -> tuple[Floats, Floats]:
        n = (weights @ tokens)[:, None]
        open_ = weights @ passed[:, e[at], g[at]]
        p = (weights @ right[:, at]) / np.maximum(open_, 1)
        share = open_ / n
        latency = formulas.gated_latency(p, layers, started[at], share)
        compute = formulas.gated_compute(p, layers, started[at], share, k[at])
        return latency / layers, compute / layers

    words = zip(exit_layer, k, g, strict=True)
    return MethodSettings(
        "PPD, gated",
        [f"exit {x}, k = {y}, gate {recorded.gates[z]:g}" for x, y, z in words],
        1 + k,
        evaluate,
        "starts guesses only where the exit is confident",
    )


@dataclass(frozen=True)
class Pairs:
    """Counts for all pairs of exits and k at each; arrays [settings] or [prompts, settings].

    `early` and `late` are the exits; `q_early` and `q_late` count the tokens that each is the first
    to guess; `new` the guesses that the later one starts.
    """

    early: Ints
    late: Ints
    k_early: Ints
    k_late: Ints
    q_early: Ints
    q_late: Ints
    new: Ints

    @classmethod
    def of(cls, recorded: TokenCounts) -> Pairs:
        """All pairs; a guess that both exits share starts once, where guesses were recorded."""
        n, ks, pairs = len(recorded.tokens), np.array(recorded.pair_k), recorded.pairs
        shape = (n, len(pairs), len(ks), len(ks))
        held = recorded.first.cumsum(axis=2)  # [prompts, exits, k]
        both = up_to(recorded.both)
        q_early = np.broadcast_to(held[:, pairs[:, 0], :, None], shape)
        q_late = held[:, pairs[:, 1], None, :] - both
        new = np.broadcast_to(recorded.tokens[:, None, None, None] * ks, shape)
        if recorded.shared is not None:
            new = new - up_to(recorded.shared)
        number, a, b = (axis.ravel() for axis in np.indices(shape[1:]))
        exits = np.array(recorded.pair_exits, dtype=np.int64)[pairs[number]]
        flat = (counts.reshape(n, len(a)) for counts in (q_early, q_late, new))
        return cls(exits[:, 0], exits[:, 1], ks[a], ks[b], *flat)

    def only(self, keep: np.ndarray) -> Pairs:
        """Some of the settings."""
        return Pairs(*(getattr(self, name)[..., keep] for name in self.__dataclass_fields__))

    def words(self) -> list[str]:
        """Each setting in words."""
        columns = (self.early, self.late, self.k_early, self.k_late)
        return [f"exits {a}, {b}, k = {x}, {y}" for a, b, x, y in zip(*columns, strict=True)]


def two_exits(recorded: TokenCounts, link_time: float = 0.0) -> MethodSettings | None:
    """PPD with two exits in the second half: the later one starts only its new guesses.

    The link time counts as in `gated`; exits whose guesses come too late are left out.
    """
    layers, tokens = recorded.layers, recorded.tokens
    found = Pairs.of(recorded)
    found = found.only(found.late + link_time < layers)
    if not len(found.early):
        return None

    def evaluate(weights: Ints | Floats, at: Ints) -> tuple[Floats, Floats]:
        n, some = (weights @ tokens)[:, None], found.only(at)
        rates = [(weights @ counted) / n for counted in (some.q_early, some.q_late)]
        started = [some.k_early, (weights @ some.new) / n]
        exits = [some.early + link_time, some.late + link_time]
        latency = formulas.multi_exit_latency(rates, layers, exits)
        compute = formulas.multi_exit_compute(rates, layers, exits, started)
        return np.asarray(latency) / layers, np.asarray(compute) / layers

    return MethodSettings(
        "PPD, two exits",
        found.words(),
        1 + found.k_early + found.k_late,
        evaluate,
        ""
        if recorded.shared is not None
        else "compute is an upper bound: the record has no guesses, so none is known to repeat",
    )
