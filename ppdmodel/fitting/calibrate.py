"""Calibration of a measurement: match rates with intervals, and a fitted curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..checks import MOST_K, MOST_RESAMPLES, check_seed, positive_integer
from ..errors import InvalidInputError
from ..progress import OnProgress, Progress, no_report, part_of
from ..results.calibration import Calibration, Reliability
from ..results.compatibility import check_timing, check_together
from ..results.files import provenance
from ..results.hit_counts import K_MAX, HitCounts
from ..results.intervals import MIN_RESAMPLES, RESAMPLES, SEED, rate_ends
from ..results.measurement import Guesses, Measurement
from ..results.prompt_lookup import joined_hits
from ..results.timing import Timing
from .curve_fit import fit_curve
from .curves import FAMILIES, family_of
from .guess_reliability import reliability_of

#: shares of a fit that are done when the tokens are counted, and when the curve is fitted
COUNTED, FITTED = 0.2, 0.6


def fit(
    measurement: Measurement | Sequence[Measurement],
    *,
    guesses: Guesses | Sequence[Guesses | None] | None = None,
    timing: Timing | None = None,
    family: str | None = None,
    k_max: int | None = None,
    ngrams: int = 0,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    on_progress: OnProgress = no_report,
) -> Calibration:
    r"""Match rates of every exit layer and k with intervals, and a curve p(x, k) fitted to them.

    The rates are ratios of counts, with t intervals on the logit scale whose standard errors are
    those of the jackknife over prompts. Decisions rest on them; the curve predicts other relative
    depths. With $\kappa = (1 - k^{-h}) / h$ the families over relative depth x = e/d and k are

    - floored Kumaraswamy: $1 - p = (1 - f_k)\,(1 - x^a)^{b_k}$, $\log b_k = b + c\,\kappa$;
    - floored power: $1 - p = (1 - f_k)\,(1 - x^{a_k})$, $\log a_k = a - c\,\kappa$;
    - rank tail: $1 - p = (1 - f)\,(1 - x^a)^b\,k^{-(s + t x)}$,

    with $\operatorname{logit} f_k = f + g\,\kappa$; all rise with x and k and reach 1 at the last
    layer. Each is fitted by maximum binomial likelihood over the layers below the last and all k,
    and the family with the greatest held-out log-likelihood (K-fold cross-validation over prompts)
    is kept. Hits at several k and layers come from the same tokens, so the inverse information
    gives no valid standard errors: intervals and covariance are those of a bootstrap over prompts.

    Args:
        measurement: complete or not; at least 2 prompts and 2 layers. Several of one model are
            taken together, if no prompt is in two.
        guesses: those of the measurement, or of each: then a guess that both of two exits make
            counts once in what the calibration holds for `compare` and `optimize`.
        timing: costs of the same model with the same kind of exits on one machine; the
            calibration then has seconds.
        family: a family's name, or None to choose among them.
        k_max: largest k to count hits for; None is 32, or with `ngrams` as many as guesses were
            recorded, which are the most then.
        ngrams: most tokens of the n-grams from which prompt lookup drafts one of the k guesses; 0
            takes all from the exit. It needs the guesses, and what the model read.
        resamples: bootstrap resamples of the prompts; at least 400.
        seed: of the bootstrap and of the cross-validation folds.
        on_progress: called with the progress.

    Raises:
        InvalidInputError: a number is no positive integer, there are too few prompts or layers, no
            such family, or the measurements, guesses or timing are of another model, text or exit.
    """
    if k_max is not None:
        positive_integer("k_max", k_max, most=MOST_K)
    several = [measurement] if isinstance(measurement, Measurement) else list(measurement)
    check_together(several)
    for one in several:
        check_layers(one.layers)
        check_recorded_k(one, k_max or K_MAX)
        if timing is not None:
            check_timing(timing, one.provenance, one.layers)
    parts = _with_guesses(several, guesses)
    on_progress(Progress("counting", 0, 0.0))
    counts = HitCounts.joined(
        [HitCounts.of(one, k_max=k_max or K_MAX, guesses=its) for one, its in parts]
    )
    if ngrams:
        counts = _with_prompt_lookup(counts, parts, ngrams, k_max)
    counts = replace(counts, resamples=resamples, seed=seed)
    known = [(one, its) for one, its in parts if its is not None]
    calibrated = len(known) == len(parts)
    start, end = COUNTED if calibrated else 0.0, FITTED if calibrated else 1.0
    fitting = part_of(on_progress, start, end)
    found = fit_counts(counts, timing=timing, family=family, on_progress=fitting)
    reliability: tuple[Reliability, ...] = ()
    if calibrated:
        reliability = reliability_of(known, seed, part_of(on_progress, end, 1.0))
    return replace(found, reliability=reliability)


def _with_prompt_lookup(
    counts: HitCounts,
    parts: Sequence[tuple[Measurement, Guesses | None]],
    ngrams: int,
    k_max: int | None,
) -> HitCounts:
    """The counts with hits of guesses of which prompt lookup drafts one.

    Raises:
        InvalidInputError: guesses or prompts were not recorded, or fewer guesses than `k_max`.
    """
    found = []
    for one, guesses in parts:
        if guesses is None or one.context_ids is None:
            lacking = "guesses" if guesses is None else "prompts"
            raise InvalidInputError(
                "prompt lookup beside an exit needs what the model read and the exit's guesses; "
                f"got a measurement without {lacking}; measure again, with guesses"
            )
        found.append(joined_hits(one, guesses, positive_integer("ngrams", ngrams)))
    most = found[0].shape[2]
    if k_max is not None and k_max > most:
        raise InvalidInputError(
            f"k_max must be at most {most}, as many guesses as were recorded; got {k_max}; give "
            "less"
        )
    return replace(
        counts,
        hits=np.concatenate(found)[:, :, :k_max],
        provenance={**counts.provenance, "ngrams": ngrams},
    )


def _with_guesses(
    measurements: Sequence[Measurement], guesses: Guesses | Sequence[Guesses | None] | None
) -> list[tuple[Measurement, Guesses | None]]:
    """Each measurement with its guesses, if any."""
    if guesses is None:
        guesses = [None] * len(measurements)
    given = [guesses] if isinstance(guesses, Guesses) else list(guesses)
    if len(given) != len(measurements):
        raise InvalidInputError(
            f"guesses must be given for each measurement; got {len(given)} for "
            f"{len(measurements)}; give None for one without"
        )
    return list(zip(measurements, given, strict=True))


def fit_counts(
    counts: HitCounts,
    *,
    timing: Timing | None,
    family: str | None,
    on_progress: OnProgress = no_report,
) -> Calibration:
    """Rates with intervals and a fitted curve, from counts by prompt; see `fit`.

    Raises:
        InvalidInputError: too few prompts, layers or resamples, a negative seed, or no such family.
    """
    if positive_integer("resamples", counts.resamples, most=MOST_RESAMPLES) < MIN_RESAMPLES:
        raise InvalidInputError(
            f"resamples must be at least {MIN_RESAMPLES}, of which ten lie beyond each end of a "
            f"95% interval; got {counts.resamples}; 1000 are usual"
        )
    check_seed(counts.seed)
    families = list(FAMILIES.values()) if family is None else [family_of(family)]
    check_layers(counts.layers)
    weights = counts.weights()
    low, high = rate_ends(counts.hits, counts.tokens)
    about = {"measurement": dict(counts.provenance), "fit": provenance(("numpy", "scipy"))}
    return Calibration(
        **(vars(counts) | {"provenance": about}),
        p_correct=counts.hits.sum(axis=0) / counts.tokens.sum(),
        ci_low=low,
        ci_high=high,
        curve=fit_curve(counts, families, weights, on_progress),
        timing=timing,
    )


def check_layers(layers: int) -> None:
    """Refuse a model without a layer before the last.

    Raises:
        InvalidInputError: it has fewer than two layers.
    """
    if layers < 2:
        raise InvalidInputError(
            f"a fit needs at least 2 layers; got {layers}; there is no exit before the last layer"
        )


def check_recorded_k(measurement: Measurement, k: int) -> None:
    """Refuse more guesses than were recorded.

    Raises:
        InvalidInputError: k is beyond the vocabulary, or the ranks that the measurement holds.
    """
    most = measurement.recorded_k
    if most is not None and k > most:
        raise InvalidInputError(
            f"k must be at most {most}, as far as ranks were recorded; got {k}; give less"
        )
