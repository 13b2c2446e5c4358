"""Times of a model's layers and heads on one machine, in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .intervals import IntervalEstimate


@dataclass(frozen=True)
class Timed(IntervalEstimate):
    """A median time in seconds, its interval over n repetitions."""

    n: int


@dataclass(frozen=True)
class Timing:
    """Times of a model's layers and heads on one machine, one core per unit.

    Attributes:
        model: the model's name.
        layers: its decoder layers d.
        units: units that were busy at the same time.
        terms: of plain decoding: `layer_time_s`, `head_time_s`, `token_time_s` (the rest of a
            token), `plain_latency_s`, `split_latency_s` (all units on one token).
        exit_layers: where PPD was timed, ascending.
        by_k: of PPD with k guesses in a batch, by name and per exit layer: `layer_time_s` of the
            main process before the exit, `busy_layer_time_s` after it and `head_time_s`, while the
            other unit works too; `exit_time_s` and `batch_layer_time_s` of the sub-processes;
            `token_time_s`, what a miss costs before the next token's first layer;
            `start_delay_s`, from the exit to its reading; `promotion_delay_s`.
        layer_profile_s: median time of each layer in plain decoding, [layers].
        samples: every repetition of every term: `terms` by name, `by_k` by k and name, a list per
            exit layer.
    """

    model: str
    layers: int
    units: int
    terms: Mapping[str, Timed]
    exit_layers: tuple[int, ...]
    by_k: Mapping[int, Mapping[str, tuple[Timed, ...]]]
    layer_profile_s: tuple[float, ...]
    samples: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def machine(self) -> str | None:
        """Processor, number of CPUs and GPUs that it was measured on."""
        return self.provenance.get("machine")

    @property
    def is_ideal(self) -> bool:
        """Whether the times are of a roofline model, and never vary, instead of measured."""
        return bool(self.provenance.get("basis") == "ideal")

    @property
    def has_random_weights(self) -> bool:
        """Whether the model that was timed had random weights: of match rates it says nothing."""
        return bool(self.provenance.get("random_weights"))

    @property
    def units_per_process(self) -> int:
        """Units that each process is split over by tensor parallelism."""
        return int(self.provenance.get("units_per_process", 1))


def resampled_timing(timing: Timing, rng: np.random.Generator) -> Timing:
    """One bootstrap resample of the repetitions: all terms of a repetition are drawn together."""
    n = next(iter(timing.terms.values())).n
    rows = rng.integers(0, n, n)

    def again(values: Sequence[float]) -> Timed:
        middle = float(np.median(np.asarray(values)[rows]))
        return Timed(middle, middle, middle, n)

    terms = {name: again(values) for name, values in timing.samples["terms"].items()}
    by_k = {
        int(k): {name: tuple(map(again, each)) for name, each in named.items()}
        for k, named in timing.samples["by_k"].items()
    }
    return replace(timing, terms=terms, by_k=by_k)
