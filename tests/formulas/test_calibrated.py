"""PPD in seconds: values by hand, random matches, the package's own simulator, bad input."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from ppdmodel import formulas, simulate
from ppdmodel.errors import InvalidInputError
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


def test_an_early_exit_by_hand() -> None:
    """d = 10, e = 2, all layers 1, a whole layer left never: n is 8, 2, 8, 2, ..."""
    steps = [10, 2, 8, 2, 8, 2, 8]
    mean = sum(0.5 * 0.5**r * step for r, step in enumerate(steps * 1)) + 0.5**7 * (2 + 8 / 2) / 1.5
    found = formulas.calibrated_early_latency(0.5, 10, 2, 1, 1, 1, unfinished=0)
    assert found == pytest.approx(mean)


@pytest.mark.parametrize("exit_layer", [2, 6])
def test_many_match_rates_at_once(exit_layer: int) -> None:
    terms = TERMS.named() | {"exit_layer": exit_layer}
    rates = np.array([[0, 0.3], [0.9, 1]])
    found = formulas.calibrated_early_latency(rates, **terms)
    one_by_one = [formulas.calibrated_early_latency(float(p), **terms) for p in rates.flat]
    assert found.flatten().tolist() == pytest.approx(one_by_one, rel=1e-14)
    with pytest.raises(InvalidInputError, match="p_correct must"):
        formulas.calibrated_early_latency(rates + 0.5, **terms)


@pytest.mark.parametrize("exit_layer", [3, 6, 9])
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_random_matches_within_four_standard_errors(exit_layer: int, p: float) -> None:
    rng = random.Random(f"{exit_layer} {p}")
    terms = TERMS.with_(exit_layer=exit_layer, batch_layer_time=1.2, exit_time=1)
    steps = np.array(run(terms, [rng.random() < p for _ in range(20_000)]).steps, dtype=float)
    batches = steps[: len(steps) // 50 * 50].reshape(50, -1).mean(axis=1)
    error = batches.std(ddof=1) / 50**0.5
    exact = formulas.calibrated_early_latency(p, **terms.named(), unfinished=None)
    assert steps.mean() == pytest.approx(exact, abs=4 * error)
    assert error < 0.01 * exact


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


def early(**changes: Any) -> Callable[[], Any]:
    return lambda: formulas.calibrated_early_latency(
        **(TERMS.named() | {"p_correct": 0.5} | changes)
    )


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
    (
        early(exit_layer=11),
        "exit_layer must not exceed layers; got 11; exit layers run from 1 to 10",
    ),
    (
        early(p_correct=sympy.Symbol("p")),
        "p_correct must be numbers; got p; a run of matches is followed for numbers",
    ),
    (
        early(layer_time=np.array([1.0])),
        "layer_time must be a number; got array([1.]); a run of matches is followed for numbers",
    ),
    (
        early(start_delay=-1),
        "start_delay must be a number of at least 0; got -1; give it in the unit of layer_time",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert str(caught.value) == message
