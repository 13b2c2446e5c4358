"""PPD in seconds: values by hand, random matches, the package's own simulator, bad input."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ppdmodel import formulas, simulate
from ppdmodel.formulas import symbolic
from ppdmodel.formulas.registry import FORMULAS
from tests.support.backends import check_defaults, check_refused
from tests.support.calibrated_reference import Terms, run

#: d = 10, e = 6, tau = 1, tau_b = 1.5, tau_k = 2: R = 4 * 1.5 + 4 = 10, n = (10 - 1 - 3) / 2 = 3
TERMS = Terms(10, 6, 1.0, 1.5, 2.0, head_time=4, exit_time=3, token_time=0.5, start_delay=1,
              promotion_delay=0.25)  # fmt: skip


MISS = 0.5 + 6 + 10


SAVED = 0.5 - 0.25 + 3 * 1 - 0.5 * (2 - 1)


def test_by_hand() -> None:
    latency = formulas.calibrated_latency(0.4, **TERMS.named())
    assert latency == pytest.approx(MISS - 0.4 * SAVED, rel=1e-14)
    assert formulas.calibrated_plain_latency(10, 1.0, 3.5, 0.5) == 0.5 + 10 + 3.5
    ratio = formulas.calibrated_speedup(0.4, **TERMS.named(), plain_head_time=3.5)
    assert ratio == pytest.approx(14 / (MISS - 0.4 * SAVED))
    least = formulas.calibrated_break_even(**TERMS.named(), plain_head_time=3.5)
    assert least == pytest.approx((4 * 0.5 + 0.5) / SAVED)
    work = TERMS.named("layer_time", "token_time", "promotion_delay")
    compute = formulas.calibrated_compute(0.4, **work, k=3)
    assert compute == pytest.approx(10 + 7 / 1.5 + 2.6 * 3.5)
    busy = formulas.calibrated_busy_time(0.4, **TERMS.named("promotion_delay"))
    assert busy == pytest.approx(MISS + 3 + 3.5 * 2 - 0.4 * (0.5 + 3.5))
    early = formulas.calibrated_early_latency(0.4, **TERMS.named())
    assert early == pytest.approx(latency)


def test_the_rest_by_hand() -> None:
    work = TERMS.named("layer_time", "token_time", "promotion_delay")
    assert formulas.calibrated_head_start(**work) == 3
    assert formulas.calibrated_unfinished(**work) == 0
    later = work | {"exit_time": 2.5}
    assert formulas.calibrated_head_start(**later) == 3.25
    assert formulas.calibrated_unfinished(**later) == 0.75
    late = work | {"exit_time": 50}
    assert formulas.calibrated_head_start(**late) == formulas.calibrated_unfinished(**late) == 0
    assert formulas.calibrated_plain_compute(10, 2.0, 7) == 13.5
    assert formulas.calibrated_plain_compute(10, 2.0) == 10
    assert formulas.calibrated_plain_latency(10, 2.0) == 20


@pytest.mark.parametrize("name", [n for n in FORMULAS if n.startswith("calibrated")])
def test_times_are_in_any_unit(name: str) -> None:
    """Ratios, layers and match rates do not depend on it."""
    counts = {"p_correct": 0.4, "k": 3, "layers": 10, "exit_layer": 6, "unfinished": 0.25}
    times = TERMS.with_(exit_time=2.5, layer_time=1.25).named(*counts) | {"plain_head_time": 3.5}
    one, three = (
        FORMULAS[name].function(
            **{
                parameter: (counts | {n: unit * x for n, x in times.items()})[parameter]
                for parameter in symbolic.formula(name).parameters
            }
        )
        for unit in (1, 3)
    )
    is_time = "latency" in name or name == "calibrated_busy_time"
    assert three == pytest.approx(3 * one if is_time else one)


def test_guesses_just_in_time_and_too_late_by_hand() -> None:
    """Reading takes 8.4 of the 9 that are left, n = 0.3; then 50, n = 0."""
    for reading, layers, is_in_time in ((8.4, 0.3, 1), (50, 0, 0)):
        terms = TERMS.named() | {"exit_time": reading}
        saved = is_in_time * (0.5 - 0.25 + layers - 0.5)
        latency = formulas.calibrated_latency(0.4, **terms)
        assert latency == pytest.approx(MISS - 0.4 * saved, rel=1e-14)
        work = TERMS.named("layer_time", "token_time", "promotion_delay") | {"exit_time": reading}
        started = is_in_time * 2.6 * (layers + 0.5)
        compute = formulas.calibrated_compute(0.4, **work, k=3)
        assert compute == pytest.approx(10 + (4 + reading) / 1.5 + started)
        busy = formulas.calibrated_busy_time(
            0.4, **(TERMS.named("promotion_delay") | {"exit_time": reading})
        )
        both = is_in_time * ((layers + 0.5) * 2 - 0.4 * (0.5 + layers + 0.5))
        assert busy == pytest.approx(MISS + reading + both)
        least = formulas.calibrated_break_even(**terms, plain_head_time=3.5)
        assert least == (pytest.approx(2.5 / saved) if is_in_time else math.inf)


def test_no_match_rate_is_enough_where_a_match_takes_longer() -> None:
    for delay in (3.5, 50):
        terms = TERMS.named() | {"promotion_delay": delay}
        assert formulas.calibrated_break_even(**terms, plain_head_time=3.5) == math.inf


def test_what_is_not_given_takes_no_time_and_half_a_layer_is_left() -> None:
    check_defaults("seconds")
    times = {"layer_time": 1, "busy_layer_time": 1.5, "batch_layer_time": 2}
    assert formulas.calibrated_latency(0.4, 10, 6, **times) == pytest.approx(12 - 0.4 * 2.5)
    work = {"busy_layer_time": 1.5, "batch_layer_time": 2}
    assert formulas.calibrated_compute(0.4, 10, 6, 3, **work) == pytest.approx(10 + 2.6 * 3.5)
    busy = formulas.calibrated_busy_time(0.4, 10, 6, **times)
    assert busy == pytest.approx(12 + 7 - 0.4 * 3.5)
    heads = {"plain_head_time": 1, "head_time": 2}
    ratio = formulas.calibrated_speedup(0.4, 10, 6, **times, **heads)
    assert ratio == pytest.approx(11 / (14 - 0.4 * 3.5))
    least = formulas.calibrated_break_even(10, 6, **times, **heads)
    assert least == pytest.approx(3 / 3.5)


def test_layers_that_vary_leave_half_of_one() -> None:
    """Times that vary spread the verdicts over the layer in flight, and phi = 1/2 holds."""
    rng, found, closed = random.Random(3), [], []
    for _ in range(4000):
        terms = TERMS.with_(head_time=rng.uniform(3, 7), busy_layer_time=rng.uniform(1.3, 1.7))
        found.append(run(terms, [True] * 3).steps[-1])
        closed.append(formulas.calibrated_latency(1, **terms.named()))
    gap = np.array(found) - np.array(closed)
    assert gap.mean() == pytest.approx(0, abs=4 * gap.std() / len(gap) ** 0.5)
    assert abs(gap.mean()) < 0.02 < gap.std()


def test_delays_and_unequal_layers_as_the_packages_simulator_has_them() -> None:
    """tau = tau_b = tau_k and no head: `simulate` with the exit's time in its start delay."""
    costs: dict[str, Any] = {"token_time": 0, "start_delay": 1.5, "promotion_delay": 0.75}
    for exit_layer in (12, 15, 20):
        run_ = simulate(
            0.6, 20, exit_layer, 2, tokens=20_000, seed=1, layer_times=[0.5] * 20,
            start_delay=1.5 + 0.25, promotion_delay=0.75,
        )  # fmt: skip
        rate = (run_.first_hit > 0).mean()
        closed = formulas.calibrated_latency(
            float(rate), 20, exit_layer, 0.5, 0.5, 0.5, exit_time=0.25, **costs
        )
        if exit_layer < 16:  # after layer 16 the guesses come too late
            assert np.diff(run_.finish_times).mean() == pytest.approx(closed, rel=1e-9)
        else:
            assert closed == 10


def test_late_guesses_have_finite_gradients() -> None:
    reading = torch.tensor([1.0, 10.0, 50.0], dtype=torch.float64, requires_grad=True)
    rest = TERMS.named("exit_time")
    formulas.calibrated_latency(0.4, **rest, exit_time=reading).sum().backward()
    assert reading.grad is not None
    assert reading.grad.tolist() == pytest.approx([0.4 / 2, 0, 0])


def closed(**changes: Any) -> Callable[[], Any]:
    return lambda: formulas.calibrated_latency(**(TERMS.named() | {"p_correct": 0.5} | changes))


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        closed(batch_layer_time=0),
        "batch_layer_time must be a positive number; got 0; "
        "give the time of a layer of all k sub-processes",
    ),
    (
        closed(head_time=-1),
        "head_time must be a number of at least 0; got -1; give it in the unit of layer_time",
    ),
    (
        closed(unfinished=np.array([0.5, 1.5])),
        "unfinished must lie in [0, 1]; got 1.5 at index 1; "
        "give the share of a batch layer that is left at a verdict",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)
