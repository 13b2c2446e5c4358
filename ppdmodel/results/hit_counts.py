"""Hits and tokens by prompt, from which every rate, fit and decision is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from .calibration import Calibration
from .intervals import RESAMPLES, SEED, prompt_weights
from .measurement import Guesses, Measurement, titled
from .token_counts import TokenCounts

if TYPE_CHECKING:
    from .._types import Ints

#: guesses for which the hits of a measurement are counted, unless told otherwise
K_MAX = 32


@dataclass(frozen=True, eq=False)
class HitCounts:
    """Hits out of tokens, by prompt, of exit layers 1...d and k = 1...k_max.

    The fields are as those of `Calibration`, but `provenance` is of the measurement, or of the
    table that the counts are from. `resamples` and `seed` are of the bootstrap over the prompts.
    """

    model: str
    layers: int
    prompt_ids: tuple[str, ...]
    tokens: Ints
    hits: Ints
    provenance: Mapping[str, Any]
    exit_layers: tuple[int, ...] | None = None
    ks: tuple[int, ...] | None = None
    recorded: TokenCounts | None = None
    resamples: int = RESAMPLES
    seed: int = SEED

    @classmethod
    def of(
        cls,
        source: Measurement | Calibration,
        *,
        k_max: int = K_MAX,
        guesses: Guesses | None = None,
        with_recorded: bool = True,
    ) -> HitCounts:
        """Count a measurement, or take the counts of a calibration.

        Args:
            source: a measurement or a calibration.
            k_max: largest k to count hits for in a measurement; a calibration has its own.
            guesses: those of the measurement, for `recorded`.
            with_recorded: whether to count for gates, two exits and self-speculation too.

        Raises:
            InvalidInputError: the guesses are of other tokens, or beside a calibration.
        """
        if isinstance(source, Calibration):
            if guesses is not None:
                raise InvalidInputError(
                    "guesses must be left out for a calibration; got guesses; fit the measurement "
                    "with them"
                )
            kept = {n: getattr(source, n) for n in cls.__dataclass_fields__ if n != "provenance"}
            return cls(**kept, provenance=source.measured)
        return cls(
            model=str(source.provenance["model"]),
            layers=source.layers,
            prompt_ids=source.prompt_ids,
            tokens=source.tokens_by_prompt(),
            hits=source.hits_by_prompt(k_max),
            provenance=source.provenance,
            recorded=TokenCounts.of(source, guesses) if with_recorded else None,
        )

    @classmethod
    def joined(cls, parts: Sequence[HitCounts]) -> HitCounts:
        """Concatenate several measurements of one model."""
        first = parts[0]
        recorded = [part.recorded for part in parts if part.recorded is not None]
        return replace(
            first,
            prompt_ids=tuple(name for part in parts for name in part.prompt_ids),
            tokens=np.concatenate([part.tokens for part in parts]),
            hits=np.concatenate([part.hits for part in parts]),
            recorded=TokenCounts.joined(recorded) if len(recorded) == len(parts) else None,
        )

    def weights(self) -> Ints:
        """How often each prompt is drawn in each resample, [resamples, prompts]."""
        return prompt_weights(len(self.tokens), self.resamples, self.seed)

    @property
    def title(self) -> str:
        """The model, with its kind of exits and of text where not the defaults."""
        return titled(self.model, self.provenance)


def hits_at(source: Measurement | Calibration, exit_layer: int, k: int) -> tuple[Ints, Ints]:
    """Hits at one exit layer and k, and tokens, both [prompts].

    Raises:
        InvalidInputError: the calibration does not hold that exit layer or k.
    """
    if isinstance(source, Measurement):
        return source.hits_by_prompt_at(exit_layer, k), source.tokens_by_prompt()
    if k > source.k_max:
        raise InvalidInputError(
            f"k must not exceed what the calibration recorded; got {k}; it has 1 to {source.k_max}"
        )
    if not source.has(exit_layer, k):
        raise InvalidInputError(
            f"the calibration must hold the setting; got exit layer {exit_layer}, k = {k}; it has "
            f"exit layers {source.exit_layers or 'all'} and k {source.ks or 'all'}"
        )
    return source.hits[:, exit_layer - 1, k - 1], source.tokens
