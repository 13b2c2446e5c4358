"""The results that travel between the rooms of the package: frozen, with None for absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A number with its interval, and what the interval rests on."""

    value: float
    ci_low: float
    ci_high: float
    n_tokens: int
    n_prompts: int
    method: str


@dataclass(frozen=True)
class Simulation:
    """One simulated generation; times in layer times, work in layer executions."""

    matches: tuple[bool, ...]
    finish_times: tuple[int, ...]
    work_done: tuple[int, ...]
    peak_units: int

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return len(self.finish_times)

    @property
    def latency_per_token(self) -> float:
        """Time until the last token was verified, over the tokens: start-up included."""
        return self.finish_times[-1] / self.tokens

    @property
    def compute_per_token(self) -> float:
        """Layer executions until the last token was verified, over the tokens."""
        return self.work_done[-1] / self.tokens


@dataclass(frozen=True)
class Measurement:
    """Where the true token ranked at every exit layer, for every generated token.

    Arrays have one row per generated token, in the order of prompts and positions; `rank` and
    `top_prob` have one column per exit layer 1...d. A rank is 1 + the number of larger logits.
    """

    provenance: Mapping[str, Any]
    prompt_ids: tuple[str, ...]
    categories: tuple[str, ...]
    prompt_index: Ints
    position: Ints
    token_id: Ints
    rank: Ints
    top_prob: Floats
    complete: bool
    ties: tuple[Mapping[str, Any], ...] = ()

    @property
    def layers(self) -> int:
        """Decoder layers d of the measured model."""
        return int(self.rank.shape[1])

    @property
    def n_tokens(self) -> int:
        """Generated tokens, over all prompts."""
        return int(self.rank.shape[0])

    def tokens_by_prompt(self) -> Ints:
        """Generated tokens of each prompt, shape [prompts]."""
        import numpy as np

        return np.bincount(self.prompt_index, minlength=len(self.prompt_ids))

    def hits_by_prompt_at(self, exit_layer: int, k: int) -> Ints:
        """Tokens of each prompt that ranked k or better at one exit layer, shape [prompts]."""
        import numpy as np

        hit = self.prompt_index[self.rank[:, exit_layer - 1] <= k]
        return np.bincount(hit, minlength=len(self.prompt_ids))

    def hits_by_prompt(self, k_max: int) -> Ints:
        """Tokens of each prompt that ranked k or better, shape [prompts, layers, k_max]."""
        import numpy as np

        shape = (len(self.prompt_ids), self.layers, k_max)
        row, layer = np.nonzero(self.rank <= k_max)
        cell = (self.prompt_index[row], layer, self.rank[row, layer] - 1)
        flat = np.ravel_multi_index(cell, shape)
        counts = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
        return np.cumsum(counts, axis=2)


@dataclass(frozen=True)
class MatchCurve:
    """A fitted match-rate surface p_correct(relative depth, k); see `ppdmodel.fit`."""

    family: str
    parameters: Mapping[str, Interval]
    converged: bool
    rms_residual: float
    largest_residual: float
    largest_residual_layer: int
    largest_residual_k: int


@dataclass(frozen=True)
class Calibration:
    """What the later commands need of a measurement: match rates with intervals, and their fit.

    `hits` has shape [prompts, layers, k_max] and counts the tokens of a prompt whose true token
    ranked k or better at a layer; `tokens` has shape [prompts].
    """

    model: str
    layers: int
    prompt_ids: tuple[str, ...]
    tokens: Ints
    hits: Ints
    p_correct: Floats
    ci_low: Floats
    ci_high: Floats
    curve: MatchCurve
    resamples: int
    seed: int
    provenance: Mapping[str, Any]

    @property
    def k_max(self) -> int:
        """Largest k for which hits were counted."""
        return int(self.hits.shape[2])


@dataclass(frozen=True)
class Setting:
    """One way to run PPD on a measured model, in layer units; ratios are to plain decoding."""

    exit_layer: int
    k: int
    depth: int
    p_correct: Interval
    normalized_latency: Interval
    normalized_compute: Interval
    peak_units: int


@dataclass(frozen=True)
class Choice:
    """The best setting under one compute budget, and how sure that is."""

    max_compute: float
    setting: Setting | None
    held_out_latency: Interval | None
    chosen_share: float | None
    runner_up: Setting | None


@dataclass(frozen=True)
class Decision:
    """The answer of `optimize`: a choice per budget, and the frontier over all settings."""

    model: str
    layers: int
    n_tokens: int
    n_prompts: int
    settings: int
    choices: tuple[Choice, ...]
    frontier: tuple[Setting, ...]
    provenance: Mapping[str, Any]
