"""Predicted times of PPD against the formulas of theory page 10, term by term."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ppdmodel import calibrated_compute, calibrated_early_latency
from ppdmodel.decide.hardware import device, shape
from ppdmodel.decide.prediction import (
    SCHEDULE,
    predicted_compute,
    predicted_latency_s,
    predicted_match_rate,
    predicted_plain_compute,
    predicted_plain_latency_s,
    schedule_times,
    verification_times,
)
from ppdmodel.decide.roofline import roofline
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.timing import Timing
from tests.pipeline.test_prediction_error import a_calibration, a_timing


def two_exits() -> Timing:
    """Times at exits 10 and 20, those at the later one 3 times as long."""
    timing = a_timing()
    by_k = {
        k: {
            name: (each[0], replace(each[0], value=3 * each[0].value))
            for name, each in terms.items()
        }
        for k, terms in timing.by_k.items()
    }
    return replace(timing, exit_layers=(10, 20), by_k=by_k)


def test_times_are_interpolated_between_exits_and_held_beyond() -> None:
    timing = two_exits()
    for exit_layer, factor in ((1, 1), (10, 1), (15, 2), (18, 2.6), (20, 3), (29, 3)):
        found = schedule_times(timing, exit_layer, 3)
        assert list(found) == list(SCHEDULE)
        for name, value in found.items():
            assert value == pytest.approx(factor * timing.by_k[3][f"{name}_s"][0].value)
    with pytest.raises(InvalidInputError, match="got 2; timed: 1, 3; time more with"):
        schedule_times(timing, 10, 2)


def with_batches(batches: dict[int, float], alone: float = 2e-3) -> Timing:
    """Layers of so many guesses that take so long, as a mean over two exits."""
    timing = a_timing()
    terms = timing.by_k[3]
    by_k = {
        k: {
            **terms,
            "layer_time_s": tuple(replace(t, value=alone) for t in terms["layer_time_s"]),
            "batch_layer_time_s": tuple(
                replace(t, value=time * x)
                for t, x in zip(terms["layer_time_s"], (0.9, 1.1), strict=True)
            ),
        }
        for k, time in batches.items()
    }
    return replace(timing, by_k=by_k)


def test_a_verification_takes_longer_as_the_layers_of_a_batch_do() -> None:
    timing = with_batches({1: 2e-3, 3: 3e-3, 5: 5e-3})
    fixed, plain = timing.terms["token_time_s"].value, predicted_plain_latency_s(timing)
    found = verification_times(timing, 5)
    growth = [1, 1.25, 1.5, 2, 2.5]
    assert found == pytest.approx([(fixed + g * (plain - fixed)) / plain for g in growth])
    assert verification_times(timing, 2) == pytest.approx(found[:2])
    with pytest.raises(InvalidInputError, match="got 6; timed: 1, 3, 5; time more with: ppdmodel"):
        verification_times(timing, 6)
    # without a batch of one, a layer of the main process while the other unit works too
    same = verification_times(with_batches({3: 3e-3, 5: 5e-3}, alone=2e-3), 5)
    assert same == pytest.approx(found)


def test_plain_decoding_is_layers_head_and_the_rest() -> None:
    timing = a_timing()
    layer, head, rest = (timing.terms[f"{n}_time_s"].value for n in ("layer", "head", "token"))
    assert predicted_plain_latency_s(timing) == pytest.approx(30 * layer + head + rest)
    assert predicted_plain_compute(timing) == pytest.approx(30 + head / layer)


def test_ideal_times_by_hand() -> None:
    """One exit in the second half: d - p (d - e) layers and a head, the exit's head in the way."""
    timing = roofline(shape("SmolLM2 135M"), device("H100 SXM"), ks=(1,))
    layer, head = (timing.terms[f"{n}_time_s"].value for n in ("layer", "head"))
    for p, e in ((0.0, 20), (0.6, 20), (1.0, 25)):
        expected = (30 - p * (30 - e)) * layer + head
        assert float(predicted_latency_s(timing, p, e, 1)) == pytest.approx(expected)


def test_corrections_are_factors_of_the_times() -> None:
    timing = a_timing()
    terms = {k: {**named} for k, named in timing.by_k.items()}
    terms[1]["head_time_s"] = tuple(
        replace(term, value=1.5 * term.value) for term in terms[1]["head_time_s"]
    )
    slower = replace(timing, by_k=terms)
    plain, corrected = (
        float(predicted_latency_s(timing, 0.5, 20, 1, corrections))
        for corrections in (None, {"head_time": 1.5})
    )
    assert corrected == pytest.approx(float(predicted_latency_s(slower, 0.5, 20, 1)))
    assert corrected > plain


def test_measured_layers_vary_and_ideal_ones_do_not() -> None:
    """At an early exit, where unfinished layers count: half of one, or what the schedule leaves."""
    timing = a_timing()
    ideal = replace(timing, provenance={**timing.provenance, "basis": "ideal"})
    found = [float(f(t, 0.5, 4, 3)) for f in (predicted_latency_s, predicted_compute)
             for t in (timing, ideal)]  # fmt: skip
    assert found[0] != found[1]
    assert found[2] != found[3]
    times = schedule_times(timing, 4, 3)
    half = calibrated_early_latency(0.5, 30, 4, **times, unfinished=0.5)
    assert found[0] == pytest.approx(float(half))
    for name in ("layer_time", "token_time", "promotion_delay"):
        del times[name]
    assert found[2] == pytest.approx(calibrated_compute(0.5, 30, 4, 3, **times, unfinished=0.5))


def test_the_match_rate_of_a_setting() -> None:
    calibration = a_calibration(12)
    assert predicted_match_rate(calibration, 20, 3) == calibration.p_correct[19, 2]
    for exit_layer, k in ((0, 1), (31, 1), (20, 4)):
        with pytest.raises(InvalidInputError, match="the calibration must hold the setting"):
            predicted_match_rate(calibration, exit_layer, k)
