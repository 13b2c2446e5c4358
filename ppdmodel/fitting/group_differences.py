"""Simultaneous tests of differences in match rate between measurements or categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm, t

from ..checks import positive_integer
from ..errors import InvalidInputError
from ..results.intervals import LEVEL, Interval, interval_of, prompt_weights
from ..results.measurement import Measurement, titled
from ..results.tabular import Frame

if TYPE_CHECKING:
    from .._types import Floats

DEFAULT_DEPTHS, DEFAULT_K = (0.25, 0.5, 0.75, 0.9), (1, 5)
RESAMPLES, PERMUTATIONS = 2000, 999
#: permutations at a time; a divisor of their number
CHUNK = 111


@dataclass(frozen=True)
class RateDifference:
    """One group's match rate less the first group's, at one relative depth and k.

    `difference` has a pointwise 95% interval, too short for groups of a few prompts. `differs`
    is a test at a familywise error of 5% over all depths, k and groups of the table, by the
    critical value of the max-|t| statistic: under permutation of the categories among the prompts,
    else by the bootstrap with a small-sample factor.
    """

    name: str
    relative_depth: float
    k: int
    p_correct: float
    p_first: float
    difference: Interval
    differs: bool


@dataclass(frozen=True)
class Differences(Frame):
    """Groups compared with the first of them; `paired` where both have the same prompts."""

    first: str
    groups: tuple[str, ...]
    paired: tuple[bool, ...]
    rows: tuple[RateDifference, ...]

    def _rows(self) -> Sequence[RateDifference]:
        return self.rows


@dataclass(frozen=True)
class _Group:
    name: str
    prompt_ids: tuple[str, ...]
    tokens: Floats
    hits: Floats  # [prompts, depths, ks]


def differences(
    measurements: Sequence[Measurement],
    *,
    by_category: bool = False,
    relative_depths: Sequence[float] = DEFAULT_DEPTHS,
    ks: Sequence[int] = DEFAULT_K,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Differences:
    """Compare match rates with those of the first group, at the same shares of the depth.

    Groups with the same prompts are resampled together, as paired samples; others independently.

    Args:
        measurements: at least two; or one, with `by_category`, whose categories are the groups and
            all its prompts together the first.
        by_category: compare categories of one measurement.
        relative_depths: e/d in (0, 1]; between two layers hits are interpolated.
        ks: numbers of guesses.
        names: of the measurements; by default their models with kinds of exits.
        seed: of the bootstrap over prompts.

    Raises:
        InvalidInputError: there is nothing to compare, or a number is out of its domain.
    """
    for k in ks:
        positive_integer("k", k)
    for depth in relative_depths:
        if not 0 < depth <= 1:
            raise InvalidInputError(
                f"relative_depth must lie in (0, 1]; got {depth}; 0.5 is the middle layer"
            )
    if by_category:
        groups = _categories(measurements, relative_depths, ks)
    else:
        named = names or [
            titled(str(one.provenance["model"]), one.provenance) for one in measurements
        ]
        groups = [
            _group(name, one, relative_depths, ks, np.ones(len(one.prompt_ids), dtype=bool))
            for name, one in zip(named, measurements, strict=True)
        ]
    if len(groups) < 2:
        raise InvalidInputError(
            f"a comparison needs two groups; got {len(groups)}; give more measurements, or "
            "compare categories"
        )
    return _compared(groups, relative_depths, ks, seed, permuted=by_category)


def _categories(
    measurements: Sequence[Measurement], depths: Sequence[float], ks: Sequence[int]
) -> list[_Group]:
    if len(measurements) != 1:
        raise InvalidInputError(
            f"categories are those of one measurement; got {len(measurements)}; give one"
        )
    (one,) = measurements
    labels = np.array(one.categories)
    everyone = _group("all", one, depths, ks, np.ones(len(labels), dtype=bool))
    counted = [(name, labels == name) for name in sorted(set(one.categories))]
    return [everyone] + [_group(n, one, depths, ks, m) for n, m in counted if m.sum() > 1]


def _group(
    name: str,
    one: Measurement,
    depths: Sequence[float],
    ks: Sequence[int],
    keep: np.ndarray,
) -> _Group:
    counts = one.hits_by_prompt(max(ks))[keep][:, :, np.array(ks) - 1]
    places = np.array(depths) * one.layers
    layers = np.arange(1, one.layers + 1)
    hits = np.array(
        [[np.interp(places, layers, column) for column in prompt.T] for prompt in counts]
    ).transpose(0, 2, 1)
    ids = tuple(np.array(one.prompt_ids)[keep].tolist())
    return _Group(name, ids, one.tokens_by_prompt()[keep].astype(float), hits)


def _compared(
    groups: Sequence[_Group],
    depths: Sequence[float],
    ks: Sequence[int],
    seed: int,
    *,
    permuted: bool,
) -> Differences:
    first, others = groups[0], groups[1:]
    base, base_draws = _rates(first, first.prompt_ids, np.random.default_rng([seed, 0]))
    paired = tuple(set(group.prompt_ids) <= set(first.prompt_ids) for group in others)
    values, draws = [], []
    for number, (group, same) in enumerate(zip(others, paired, strict=True), start=1):
        rng = np.random.default_rng([seed, 0 if same else number])  # paired: the same draws
        rates, its_draws = _rates(group, first.prompt_ids if same else group.prompt_ids, rng)
        values.append(rates - base)
        draws.append(its_draws - base_draws)
    if permuted:
        errors = np.array([_ratio_standard_error(group.hits, group.tokens) for group in others])
        limit = _permutation_critical_value(first, others, np.random.default_rng([seed, 1]))
    else:
        errors = np.array(draws).std(axis=1)
        limit = _bootstrap_critical_value(np.array(values), np.array(draws))
        limit *= _small_sample_factor(min(len(group.prompt_ids) for group in groups))
    differs = np.abs(values) > limit * errors
    rows = tuple(
        RateDifference(
            name=group.name,
            relative_depth=depth,
            k=k,
            p_correct=float(base[i, j] + values[n][i, j]),
            p_first=float(base[i, j]),
            difference=interval_of(values[n][i, j], draws[n][:, i, j], group.tokens),
            differs=bool(differs[n, i, j]),
        )
        for n, group in enumerate(others)
        for i, depth in enumerate(depths)
        for j, k in enumerate(ks)
    )
    return Differences(first.name, tuple(group.name for group in others), paired, rows)


def _rates(
    group: _Group, drawn_from: Sequence[str], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Rates [depths, ks], and those of resamples of `drawn_from`, the group's prompts among them.

    A resample that has none of the group's prompts takes each of them once.
    """
    where = {name: place for place, name in enumerate(drawn_from)}
    weights = prompt_weights(len(drawn_from), RESAMPLES, rng)
    weights = weights[:, [where[name] for name in group.prompt_ids]]
    weights[weights.sum(axis=1) == 0] = 1
    total = group.hits.sum(0) / group.tokens.sum()
    drawn = np.tensordot(weights, group.hits, axes=1) / (weights @ group.tokens)[:, None, None]
    return total, drawn


def _bootstrap_critical_value(values: Floats, draws: Floats) -> float:
    """Critical value of the max-|t| statistic by the bootstrap: familywise error 5%."""
    spread = draws.std(axis=1, keepdims=True)
    safe = np.where(spread > 0, spread, np.inf)
    largest = np.abs((draws - values[:, None]) / safe).max(axis=(0, 2, 3))
    return float(np.quantile(largest, LEVEL))


def _small_sample_factor(prompts: int) -> float:
    """Small-sample factor: Student's t over the normal quantile, and Bessel's correction."""
    quantile = 0.5 + LEVEL / 2
    return float(
        t.ppf(quantile, prompts - 1) / norm.ppf(quantile) * (prompts / (prompts - 1)) ** 0.5
    )


def _ratio_standard_error(hits: Floats, tokens: Floats) -> Floats:
    """Standard error of a ratio estimator over prompts, at least 1e-12.

    Args:
        hits: [..., prompts, depths, ks].
        tokens: [..., prompts].

    Returns:
        [..., depths, ks].
    """
    n, total = tokens.shape[-1], tokens.sum(-1)[..., None, None]
    rate = (hits.sum(-3) / total)[..., None, :, :]
    squares = ((hits - rate * tokens[..., None, None]) ** 2).sum(-3)
    found: Floats = np.sqrt(squares * n / (n - 1)) / total
    return np.maximum(found, 1e-12)


def _permutation_critical_value(
    first: _Group, others: Sequence[_Group], rng: np.random.Generator
) -> float:
    """Critical value of the max-|t| statistic by permutation: familywise error 5%.

    Under the null hypothesis the prompts are exchangeable between the categories.
    """
    sizes = np.cumsum([0, *(len(group.prompt_ids) for group in others)])
    base = first.hits.sum(0) / first.tokens.sum()
    largest: list[float] = []
    for _ in range(PERMUTATIONS // CHUNK):
        order = np.array([rng.permutation(len(first.prompt_ids)) for _ in range(CHUNK)])
        found = np.zeros(CHUNK)
        for start, end in pairwise(sizes):
            hits, tokens = first.hits[order[:, start:end]], first.tokens[order[:, start:end]]
            rates = hits.sum(1) / tokens.sum(1)[:, None, None]
            off = np.abs(rates - base) / _ratio_standard_error(hits, tokens)
            found = np.maximum(found, off.max(axis=(1, 2)))
        largest += found.tolist()
    return float(np.quantile(largest, LEVEL))
