"""Calibration of the guesses' probabilities by Platt scaling, and their reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from ..progress import OnProgress, Progress, no_report
from ..results.calibration import Reliability
from ..results.token_counts import second_half
from .cross_validation import FOLDS, folds

if TYPE_CHECKING:
    from .._types import Bools, Floats, Ints
    from ..results.measurement import Guesses, Measurement

#: equal-mass bins of the expected calibration error
BINS = 10
#: guesses from this probability on are what a price of 8 starts, by theory page 7
STARTED = 1 / 9
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
            true = self.true(e)[rows]

            def loss(theta: Floats, x: Floats = x, true: np.ndarray = true) -> tuple[float, Floats]:
                z = theta[0] * x + theta[1]
                off = expit(z) - true
                value = (np.logaddexp(0, z) - true * z).mean()
                return float(value), np.array([(off * x).mean(), off.mean()])

            bounds = [(1e-3, 20.0), (-20.0, 20.0)]
            best = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds)
            found[e] = (float(best.x[0]), float(best.x[1]))
        return found

    def probabilities(self, exit_layer: int, scale: Any = 1.0, shift: Any = 0.0) -> Floats:
        """Calibrated probabilities of an exit's guesses, [tokens, guesses].

        For one scale and shift, or those of each token, [tokens, 1]. The guesses of a token exclude
        each other, so they add up to at most 1; without a scale and a shift they are as recorded.
        """
        q = expit(scale * self.logits[exit_layer] + shift)
        found: Floats = q / np.maximum(q.sum(axis=1, keepdims=True), 1)
        return found

    def held_out(self, exit_layer: int, fold: Ints, fits: Mapping[int, Fits]) -> Floats:
        """Probabilities of an exit, each fold's prompts scaled as fitted on the others."""
        table = np.array([fits[n][exit_layer] for n in range(len(fits))])[fold[self.owner]]
        return self.probabilities(exit_layer, table[:, :1], table[:, 1:])

    def true(self, exit_layer: int) -> Bools:
        """Which guess is the true token, [tokens, guesses]."""
        found: Bools = np.arange(1, self.most + 1) == self.rank[exit_layer][:, None]
        return found

    def reliability(
        self, fold: Ints, fits: Mapping[int, Fits], whole: Fits, threshold: float = STARTED
    ) -> tuple[Reliability, ...]:
        """Expected calibration errors of each exit, each fold scaled as fitted on the others."""
        found = []
        for e in self.exits:
            first, started = self.errors(e, fold, fits, threshold)
            (first_raw, first_after), worst = map(mean_error, first), float(first[1].max())
            errors = (first_raw, first_after, worst, threshold, *map(mean_error, started))
            found.append(Reliability(e, *whole[e], *errors))
        return tuple(found)

    def errors(
        self, exit_layer: int, fold: Ints, fits: Mapping[int, Fits], threshold: float
    ) -> tuple[list[Floats], list[Floats]]:
        """Errors by bin of the first guess, and of guesses from a threshold on.

        Each of the recorded and of the calibrated probabilities.
        """
        true = self.true(exit_layer)
        both = expit(self.logits[exit_layer]), self.held_out(exit_layer, fold, fits)
        first = [_bin_errors(q[:, 0], true[:, 0]) for q in both]
        return first, [_bin_errors(q[q >= threshold], true[q >= threshold]) for q in both]


def _bin_errors(q: Floats, true: Bools) -> Floats:
    """|mean predicted - observed share| of equal-mass bins; empty without guesses."""
    bins = min(BINS, len(q))
    if not bins:
        return np.empty(0)
    order = np.argsort(q, kind="stable")
    parts = (np.array_split(values[order], bins) for values in (q, true))
    return np.array([abs(a.mean() - b.mean()) for a, b in zip(*parts, strict=True)])


def mean_error(errors: Floats) -> float | None:
    """The expected calibration error of bins; None without any."""
    return float(errors.mean()) if len(errors) else None


def reliability_of(
    parts: Sequence[tuple[Measurement, Guesses]],
    seed: int = 0,
    on_progress: OnProgress = no_report,
) -> tuple[Reliability, ...]:
    """Platt scaling and reliability of the exits in the second half, by theory page 7.

    Args:
        parts: measurements of one model, each with its guesses.
        seed: of the folds; the errors are those of cross-validation over prompts.
        on_progress: called with the progress.

    Returns:
        One for each exit layer; none with fewer than two prompts per fold.
    """
    (first, _), *_ = parts
    guessed = Guessed(parts, range(second_half(first.layers), first.layers))
    prompts = len(guessed.tokens)
    if prompts < 2 * FOLDS:
        return ()
    fold = folds(prompts, seed)
    fits = {}
    for n in range(FOLDS):
        on_progress(Progress("calibrating guesses", 0, n / (FOLDS + 1)))
        fits[n] = guessed.calibrated(fold != n)
    on_progress(Progress("calibrating guesses", 0, FOLDS / (FOLDS + 1)))
    return guessed.reliability(fold, fits, guessed.calibrated(np.ones(prompts, dtype=bool)))
