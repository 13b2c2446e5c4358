"""A calibration: match rates with intervals, a fitted curve, and the counts for decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .intervals import RATE_METHOD, Interval
from .measurement import titled
from .packing import pack_token_counts
from .tabular import Frame
from .timing import Timing
from .token_counts import TokenCounts

if TYPE_CHECKING:
    from .._types import Floats, Ints


@dataclass(frozen=True)
class FamilyScore:
    """Cross-validated log-likelihood of a family of match-rate curves.

    `held_out` is that of prompts left out of the fit, per token and averaged over exit layers and
    k; `behind` is how much greater the best family's is, with its standard error over prompts.
    """

    family: str
    held_out: float
    behind: float
    behind_se: float


@dataclass(frozen=True)
class MatchCurve:
    """A fitted match-rate curve p_correct(relative depth, k); see `ppdmodel.fit`.

    A parameter that is not identified has no interval: its ends are NaN, and so are its rows in
    `covariance`, the bootstrap covariance of the parameters in their order. `candidates` are the
    families that were compared, the best first. Both are empty in files of older versions.
    """

    family: str
    parameters: Mapping[str, Interval]
    converged: bool
    rms_residual: float
    largest_residual: float
    largest_residual_layer: int
    largest_residual_k: int
    covariance: tuple[tuple[float, ...], ...] = ()
    candidates: tuple[FamilyScore, ...] = ()

    @property
    def standard_errors(self) -> dict[str, float | None]:
        """Bootstrap standard error of each parameter; None where it is not identified."""
        variances = [row[n] for n, row in enumerate(self.covariance)]
        errors = [None if math.isnan(x) else x**0.5 for x in variances]
        return dict(zip(self.parameters, errors, strict=False))


@dataclass(frozen=True)
class Rate:
    """A measured match rate."""

    exit_layer: int
    k: int
    p_correct: Interval


@dataclass(frozen=True)
class Reliability:
    """Reliability of an exit's probabilities, before and after Platt scaling.

    The scaled probability is the logistic function of `shift` + `scale` x logit, where 1 / `scale`
    is a temperature; where those of one token's guesses add up to more than 1, they are divided by
    their sum. The errors are expected calibration errors on held-out prompts, over bins of equally
    many guesses: of the first guess of each token, and of the guesses whose probability reaches
    `threshold`; `_raw` of the recorded probabilities, `_worst` of the worst bin. They are None
    where there are no such guesses, and in files of older versions, which had averages over all
    recorded guesses.
    """

    exit_layer: int
    scale: float
    shift: float
    first_raw: float | None = None
    first: float | None = None
    first_worst: float | None = None
    threshold: float | None = None
    started_raw: float | None = None
    started: float | None = None


@dataclass(frozen=True)
class Calibration(Frame):
    """Match rates of a measurement with intervals, their fitted curve, and counts by prompt.

    `hits` has shape [prompts, layers, k_max] and counts the tokens of a prompt whose true token
    ranked k or better at a layer; `tokens` has shape [prompts]. `timing` has the model's costs
    on one machine; None if costs are counted in layers only. `exit_layers` and `ks` are those that
    were counted, None for all; others have the hits of the next smaller k, or none. `recorded`
    has counts for gates, two exits and self-speculation; None where there were no tokens.
    `reliability` calibrates the probabilities of the guesses; empty where there were none.
    `interval` is the method of `ci_low` and `ci_high`.
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
    timing: Timing | None = None
    exit_layers: tuple[int, ...] | None = None
    ks: tuple[int, ...] | None = None
    recorded: TokenCounts | None = None
    reliability: tuple[Reliability, ...] = ()
    interval: str = RATE_METHOD

    def has(self, exit_layer: Any, k: Any) -> Any:
        """Whether settings, a number each or arrays, were measured."""
        layers = np.arange(1, self.layers + 1) if self.exit_layers is None else self.exit_layers
        ks = np.arange(1, self.k_max + 1) if self.ks is None else self.ks
        return np.isin(exit_layer, layers) & np.isin(k, ks)

    def _document(self) -> dict[str, Any]:
        counts = self.recorded and pack_token_counts(self.recorded)
        return asdict(replace(self, recorded=None)) | {"recorded": counts}

    def _rows(self) -> Sequence[Rate]:
        n = (int(self.tokens.sum()), len(self.tokens), self.interval)
        p, low, high = (np.asarray(x).tolist() for x in (self.p_correct, self.ci_low, self.ci_high))
        return [
            Rate(e, k, Interval(p[e - 1][k - 1], low[e - 1][k - 1], high[e - 1][k - 1], *n))
            for e in range(1, self.layers + 1)
            for k in range(1, self.k_max + 1)
            if self.has(e, k)
        ]

    @property
    def k_max(self) -> int:
        """Largest k for which hits were counted."""
        return int(self.hits.shape[2])

    @property
    def measured(self) -> Mapping[str, Any]:
        """Provenance of the measurement or table that was fitted; empty where none is known."""
        about = self.provenance.get("measurement")
        return about if isinstance(about, Mapping) else {}

    @property
    def title(self) -> str:
        """The model, with its kind of exits and of text where not the defaults."""
        return titled(self.model, self.measured)
