"""Calibration of the guesses' probabilities by Platt scaling, and their reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from ..results.calibration import Reliability
from ..results.token_counts import second_half
from .cross_validation import FOLDS, folds

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.measurement import Guesses, Measurement

#: equal-mass bins of the expected calibration error
BINS = 10
#: probabilities are clipped to this distance from 0 and 1, which two bytes may round to
NEAREST = 1e-6
#: scale and shift of the logits, by exit layer
Fits: TypeAlias = Mapping[int, tuple[float, float]]


class Guessed:
    """The guesses of some exits with their logits, and the rank of the true token.

    `owner` [tokens] is the prompt of each token, `rank` and `logits` of an exit have shapes
    [tokens] and [tokens, guesses].
    """

    def __init__(self, parts: Sequence[tuple[Measurement, Guesses]], exits: Sequence[int]) -> None:
        """Concatenate measurements of one model with their guesses."""
        self.exits = exits
        sizes = [len(one.prompt_ids) for one, _ in parts]
        before = np.cumsum(sizes) - sizes
        self.owner = np.concatenate(
            [one.prompt_index + n for (one, _), n in zip(parts, before, strict=True)]
        )
        self.tokens = np.concatenate([one.tokens_by_prompt() for one, _ in parts])
        self.most = min(its.ids.shape[2] for _, its in parts)
        self.rank = {e: np.concatenate([one.rank[:, e - 1] for one, _ in parts]) for e in exits}
        self.logits = {e: self._logits(parts, e) for e in exits}

    def _logits(self, parts: Sequence[tuple[Measurement, Guesses]], exit_layer: int) -> Floats:
        probs = [its.probs[:, exit_layer - 1, : self.most].astype(float) for _, its in parts]
        found: Floats = logit(np.clip(np.concatenate(probs), NEAREST, 1 - NEAREST))
        return found

    def calibrated(self, prompts: np.ndarray) -> Fits:
        """Platt scaling of each exit, maximum likelihood on the prompts marked in `prompts`."""
        rows = prompts[self.owner]
        found = {}
        for e in self.exits:
            x = self.logits[e][rows]
            true = np.arange(1, self.most + 1) == self.rank[e][rows, None]

            def loss(theta: Floats, x: Floats = x, true: np.ndarray = true) -> tuple[float, Floats]:
                z = theta[0] * x + theta[1]
                off = expit(z) - true
                value = (np.logaddexp(0, z) - true * z).mean()
                return float(value), np.array([(off * x).mean(), off.mean()])

            bounds = [(1e-3, 20.0), (-20.0, 20.0)]
            best = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds)
            found[e] = (float(best.x[0]), float(best.x[1]))
        return found

    def reliability(
        self, fold: Ints, fits: Mapping[int, Fits], whole: Fits
    ) -> tuple[Reliability, ...]:
        """Expected calibration error of each exit, each fold scaled as fitted on the others."""
        found = []
        for e in self.exits:
            table = np.array([fits[n][e] for n in range(len(fits))])[fold[self.owner]]
            calibrated = expit(table[:, :1] * self.logits[e] + table[:, 1:])
            true = np.arange(1, self.most + 1) == self.rank[e][:, None]
            raw, after = (_bin_error(q, true) for q in (expit(self.logits[e]), calibrated))
            found.append(Reliability(e, *whole[e], error_raw=raw, error=after))
        return tuple(found)


def _bin_error(q: Floats, true: np.ndarray) -> float:
    """Expected calibration error: mean |predicted - observed share| over equal-mass bins."""
    order = np.argsort(q, axis=None)
    parts = (np.array_split(values.ravel()[order], BINS) for values in (q, true))
    pairs = zip(*parts, strict=True)
    return float(np.mean([abs(a.mean() - b.mean()) for a, b in pairs]))


def reliability_of(
    parts: Sequence[tuple[Measurement, Guesses]], seed: int = 0
) -> tuple[Reliability, ...]:
    """Platt scaling and reliability of the exits in the second half, by theory page 7.

    Args:
        parts: measurements of one model, each with its guesses.
        seed: of the folds; the errors are those of cross-validation over prompts.

    Returns:
        One for each exit layer; none with fewer than two prompts per fold.
    """
    (first, _), *_ = parts
    guessed = Guessed(parts, range(second_half(first.layers), first.layers))
    prompts = len(guessed.tokens)
    if prompts < 2 * FOLDS:
        return ()
    fold = folds(prompts, seed)
    fits = {n: guessed.calibrated(fold != n) for n in range(FOLDS)}
    return guessed.reliability(fold, fits, guessed.calibrated(np.ones(prompts, dtype=bool)))
