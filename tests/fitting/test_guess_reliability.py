"""What a calibration says of the guesses' probabilities."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from ppdmodel import fit, load, save, threshold_report
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.cross_validation import folds
from ppdmodel.fitting.guess_reliability import (
    BINS,
    STARTED,
    Guessed,
    _bin_errors,
    mean_error,
    reliability_of,
)
from ppdmodel.results.calibration import Calibration, Reliability
from ppdmodel.results.intervals import METHOD, RATE_METHOD
from ppdmodel.results.measurement import Guesses, Measurement
from tests.decide.test_threshold_rule import made_up


def quick(*args: object, **options: object) -> Calibration:
    return fit(*args, **options, family="rank tail", resamples=40)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def even() -> tuple[Measurement, Guesses]:
    """Probabilities of temperature 2, which are too even."""
    return made_up(2.0)


@pytest.fixture(scope="module")
def whole(even: tuple[Measurement, Guesses]) -> tuple[Reliability, ...]:
    return reliability_of([even])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_temperature_is_found(temperature: float) -> None:
    """Probabilities that were made too even or too sharp are made true again, exit by exit."""
    found = reliability_of([made_up(temperature)])
    assert [one.exit_layer for one in found] == [3, 4, 5]
    for one in found:
        assert one.scale == pytest.approx(temperature, rel=0.1)
        assert one.shift == pytest.approx(0, abs=0.1)
        assert one.first is not None
        assert one.started is not None
        assert max(one.first, one.started) < 0.03


def test_it_is_what_the_threshold_rule_uses(
    even: tuple[Measurement, Guesses], whole: tuple[Reliability, ...]
) -> None:
    assert threshold_report(*even, [2.0]).reliability == whole


def some(measurement: Measurement, guesses: Guesses, prompts: range) -> tuple[Measurement, Guesses]:
    """A measurement of some of the prompts, with its guesses."""
    rows = np.isin(measurement.prompt_index, prompts)
    names = [measurement.prompt_ids[n] for n in prompts]
    mine: dict[str, Any] = {
        n: getattr(measurement, n)[rows] for n in ("token_id", "rank", "top_prob")
    }
    both: dict[str, Any] = {
        "prompt_ids": tuple(names),
        "prompt_index": measurement.prompt_index[rows] - prompts.start,
        "turn": measurement.turn[rows],
        "position": measurement.position[rows],
    }
    categories = tuple(measurement.categories[n] for n in prompts)
    theirs = replace(guesses, **both, ids=guesses.ids[rows], probs=guesses.probs[rows])
    return replace(measurement, **both, **mine, categories=categories), theirs


def test_several_measurements_are_taken_together(
    even: tuple[Measurement, Guesses], whole: tuple[Reliability, ...]
) -> None:
    measurement, guesses = even
    middle, end = 15, len(measurement.prompt_ids)
    halves = [some(measurement, guesses, r) for r in (range(middle), range(middle, end))]
    parts, theirs = ([half[n] for half in halves] for n in (0, 1))
    assert quick(parts, guesses=theirs).reliability == whole
    assert quick(parts, guesses=[theirs[0], None]).reliability == ()
    assert quick(measurement).reliability == ()


def test_too_few_prompts_hold_none_out(even: tuple[Measurement, Guesses]) -> None:
    measurement, guesses = even
    assert reliability_of([some(measurement, guesses, range(9))]) == ()
    assert reliability_of([some(measurement, guesses, range(10))]) != ()


def test_it_is_kept_in_the_file(even: tuple[Measurement, Guesses], tmp_path: Path) -> None:
    calibration = quick(even[0], guesses=even[1])
    path = tmp_path / "calibration.json"
    save(calibration, path)
    again = load(path)
    assert isinstance(again, Calibration)
    assert again.reliability == calibration.reliability
    document = json.loads(path.read_text())
    for damage in ({"scale": -1.0}, {"first": 2}, {"shift": "x"}, {"more": 1}):
        broken = [document["reliability"][0] | damage]
        path.write_text(json.dumps(document | {"reliability": broken}))
        with pytest.raises(InvalidInputError, match="reliability"):
            load(path)
    row = {"exit_layer": 3, "scale": 0.5, "shift": 0.1, "error_raw": 0.01, "error": 0.004}
    del document["interval"]  # older files
    path.write_text(json.dumps(document | {"reliability": [row]}))
    averaged = load(path)
    assert isinstance(averaged, Calibration)
    assert averaged.reliability == (Reliability(3, 0.5, 0.1),), "averages over all guesses flatter"
    assert averaged.interval == METHOD
    assert calibration.interval == RATE_METHOD
    del document["reliability"]  # still older ones
    path.write_text(json.dumps(document))
    older = load(path)
    assert isinstance(older, Calibration)
    assert older.reliability == ()
    assert np.array_equal(older.hits, calibration.hits)


# ---------------------------------------------------------------- the pieces alone


def test_logits_and_ranks_are_those_of_the_recorded(even: tuple[Measurement, Guesses]) -> None:
    """Probabilities of 0 and 1, as two bytes may round them, have finite logits."""
    measurement, guesses = even
    probs = guesses.probs.copy()
    probs[0, 2, :2] = 1, 0
    table = Guessed([(measurement, replace(guesses, probs=probs))], [3, 5])
    p = probs[:, 2, :].astype(float)
    assert table.logits[3][1:] == pytest.approx(np.log(p[1:] / (1 - p[1:])), abs=1e-5)
    assert table.logits[3][0, :2] == pytest.approx([13.8155, -13.8155], abs=1e-3)
    assert np.array_equal(table.rank[5], measurement.rank[:, 4])
    assert table.tokens.tolist() == [150] * 20


def test_two_parts_number_their_prompts_on(even: tuple[Measurement, Guesses]) -> None:
    measurement, guesses = even
    parts = [some(measurement, guesses, r) for r in (range(3), range(3, 20))]
    table = Guessed(parts, [4])
    assert np.array_equal(table.owner, measurement.prompt_index)
    fewer = replace(parts[1][1], ids=parts[1][1].ids[..., :5], probs=parts[1][1].probs[..., :5])
    assert Guessed([parts[0], (parts[1][0], fewer)], [4]).logits[4].shape == (3000, 5)


def test_scaling_is_of_the_greatest_likelihood_on_the_given_prompts(
    even: tuple[Measurement, Guesses],
) -> None:
    """Against a search without gradients over the Bernoulli likelihood."""
    table = Guessed([even], [3, 4])
    prompts = np.arange(20) < 7
    rows = prompts[even[0].prompt_index]
    for e, (scale, shift) in table.calibrated(prompts).items():
        x = table.logits[e][rows]
        true = np.arange(1, 9) == even[0].rank[rows, e - 1][:, None]

        def loss(theta: np.ndarray, x: np.ndarray = x, true: np.ndarray = true) -> float:
            q = 1 / (1 + np.exp(-(theta[0] * x + theta[1])))
            return float(-np.where(true, np.log(q), np.log1p(-q)).mean())

        best = minimize(loss, [1.5, 0.5], method="Nelder-Mead", options={"xatol": 1e-6})
        assert (scale, shift) == pytest.approx(best.x.tolist(), abs=2e-3)


@pytest.mark.parametrize(
    ("right", "wrong", "parameter", "bound"),
    [(0.02, -0.02, 0, 20), (-0.02, 0.02, 0, 1e-3), (-4.5, -5.5, 1, 20), (5.5, 4.5, 1, -20)],
)
def test_scaling_stays_within_bounds(
    even: tuple[Measurement, Guesses], right: float, wrong: float, parameter: int, bound: float
) -> None:
    """Where the first guess is always right, at one logit, and the others are wrong, at another."""
    measurement, guesses = even
    probs = np.broadcast_to(expit(np.where(np.arange(8) == 0, right, wrong)), guesses.ids.shape)
    first = replace(measurement, rank=np.ones_like(measurement.rank))
    table = Guessed([(first, replace(guesses, probs=probs))], [4])
    assert table.calibrated(np.ones(20, dtype=bool))[4][parameter] == bound


def test_each_fold_is_scaled_by_the_others(even: tuple[Measurement, Guesses]) -> None:
    """The error is that of what the other folds made of the fold's logits."""
    table = Guessed([even], [4])
    fold = folds(20, 0)
    fits = {n: {4: (1.0 + n, 0.1 * n)} for n in range(5)}
    (found,) = table.reliability(fold, fits, {4: (9.0, 8.0)})
    assert (found.exit_layer, found.scale, found.shift) == (4, 9.0, 8.0)
    rows = fold[even[0].prompt_index]
    q = expit((1.0 + rows)[:, None] * table.logits[4] + 0.1 * rows[:, None])
    q /= np.maximum(q.sum(axis=1), 1)[:, None]
    true = np.arange(1, 9) == even[0].rank[:, 3][:, None]
    raw = expit(table.logits[4])
    assert table.held_out(4, fold, fits) == pytest.approx(q)
    assert (found.first_raw, found.first) == pytest.approx(
        (np.mean(calibration_errors(raw[:, 0], true[:, 0])),
         np.mean(calibration_errors(q[:, 0], true[:, 0])))
    )  # fmt: skip
    assert found.first_worst == pytest.approx(max(calibration_errors(q[:, 0], true[:, 0])))
    assert found.threshold == STARTED
    for values, error in ((raw, found.started_raw), (q, found.started)):
        some = values >= STARTED
        assert error == pytest.approx(np.mean(calibration_errors(values[some], true[some])))


def calibration_errors(q: np.ndarray, true: np.ndarray) -> list[float]:
    """Calibration errors of equal-mass bins, by sorting pairs; the first bins are the larger."""
    pairs = sorted(zip(q.tolist(), true.tolist(), strict=True), key=lambda p: p[0])
    sizes = [len(pairs) // BINS + (n < len(pairs) % BINS) for n in range(BINS)]
    ends = np.cumsum(sizes)
    bins = [pairs[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return [abs(sum(q - t for q, t in part)) / len(part) for part in bins]


def test_the_errors_of_probabilities_that_are_right_or_wrong_by_so_much() -> None:
    q = np.repeat([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95], 100)
    true = np.concatenate([np.arange(100) < 100 * p - 0.5 for p in q[::100]])
    assert _bin_errors(q, true) == pytest.approx(np.zeros(10), abs=1e-9)
    assert mean_error(_bin_errors(q[::-1] * 0 + 0.5, true)) == pytest.approx(0.25)
    assert mean_error(_bin_errors(np.clip(q + 0.02, 0, 1), true)) == pytest.approx(0.02)


def test_few_guesses_have_a_bin_each_and_none_have_no_error() -> None:
    found = _bin_errors(np.array([0.9, 0.2]), np.array([True, True]))
    assert found == pytest.approx(np.array([0.8, 0.1]))
    assert mean_error(_bin_errors(np.empty(0), np.empty(0, dtype=bool))) is None


def test_probabilities_of_one_token_add_up_to_at_most_one(
    even: tuple[Measurement, Guesses],
) -> None:
    """Where they would not, they are divided by their sum, and keep their order."""
    table = Guessed([even], [3, 4, 5])
    for scale, shift in ((1.0, 0.0), (0.2, 1.0), (1e-3, 20.0)):
        for e in table.exits:
            q, free = table.probabilities(e, scale, shift), expit(scale * table.logits[e] + shift)
            total = free.sum(axis=1)
            assert q.sum(axis=1).max() <= 1 + 1e-12
            assert q[total <= 1] == pytest.approx(free[total <= 1])
            assert (q * total[:, None])[total > 1] == pytest.approx(free[total > 1])
    assert (total > 1).all(), "shifted so far, every token's would"


def test_the_first_guess_shows_what_an_average_over_all_hides() -> None:
    """Seven guesses of eight have hardly a chance: their small errors would dilute the first's."""
    measurement, guesses = made_up()
    probs = guesses.probs.copy()
    probs[:, :, 0] = np.clip(probs[:, :, 0] + 0.1 * (probs[:, :, 0] < 0.5), 0, 1)
    table = Guessed([(measurement, replace(guesses, probs=probs))], [4])
    fits = {n: {4: (1.0, 0.0)} for n in range(5)}
    (found,) = table.reliability(folds(20, 0), fits, {4: (1.0, 0.0)})
    true, raw = table.true(4), expit(table.logits[4])
    everything = mean_error(_bin_errors(raw.ravel(), true.ravel()))
    assert everything is not None
    assert found.first_raw is not None
    assert found.first_worst is not None
    assert found.first_worst > found.first_raw > 2 * everything
