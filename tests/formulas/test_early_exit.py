"""PPD at early exits in seconds: values by hand, random matches, bad input."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy

from ppdmodel import formulas
from ppdmodel.errors import InvalidInputError
from tests.support.backends import check_refused
from tests.support.calibrated_reference import Terms, run

#: d = 10, e = 6, tau = 1, tau_b = 1.5, tau_k = 2: R = 4 * 1.5 + 4 = 10, n = (10 - 1 - 3) / 2 = 3
TERMS = Terms(10, 6, 1.0, 1.5, 2.0, head_time=4, exit_time=3, token_time=0.5, start_delay=1,
              promotion_delay=0.25)  # fmt: skip


def test_an_early_exit_by_hand() -> None:
    """d = 10, e = 2, all layers 1, a whole layer left never: n is 8, 2, 8, 2, ..."""
    steps = [10, 2, 8, 2, 8, 2, 8]
    mean = sum(0.5 * 0.5**r * step for r, step in enumerate(steps * 1)) + 0.5**7 * (2 + 8 / 2) / 1.5
    found = formulas.calibrated_early_latency(0.5, 10, 2, 1, 1, 1, unfinished=0)
    assert found == pytest.approx(mean)


def test_an_exit_that_sub_processes_just_reach_has_the_closed_form() -> None:
    """n = e = 3: R = 7 * 1.5 + 4 - 1 - 3 = 10.5, in 3.5 a layer; the closed form holds to there."""
    terms = TERMS.with_(exit_layer=3, batch_layer_time=3.5)
    when = terms.named("layer_time", "token_time", "promotion_delay")
    assert formulas.calibrated_head_start(**when) == 3
    found = formulas.calibrated_early_latency(0.4, **terms.named())
    assert found == pytest.approx(formulas.calibrated_latency(0.4, **terms.named()), rel=1e-14)


@pytest.mark.parametrize("exit_layer", [1, 4, 6])
@pytest.mark.parametrize("unfinished", [0.25, None])
def test_times_are_in_any_unit(exit_layer: int, unfinished: float | None) -> None:
    counts: dict[str, Any] = {"layers": 10, "exit_layer": exit_layer, "unfinished": unfinished}
    times = TERMS.with_(layer_time=1.25, exit_time=2.5).named(*counts)
    one, three = (
        formulas.calibrated_early_latency(0.4, **counts, **{n: u * x for n, x in times.items()})
        for u in (1, 3)
    )
    assert three == pytest.approx(3 * one)


def test_steps_that_alternate_ever_less_are_followed_for_long() -> None:
    """After a run without end, half the steps lie above their limit, half below.

    The limit has n = (10 - n - phi) * 1 / 1.00002, and its step is phi * 1.00002 + 10 - n - phi.
    """
    times = {"layer_time": 1, "busy_layer_time": 1, "batch_layer_time": 1.00002}
    n = 9.5 / 2.00002
    found = formulas.calibrated_early_latency(1, 10, 1, **times)
    assert found == pytest.approx(0.5 * 1.00002 + 9.5 - n, rel=1e-4)


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


def early(**changes: Any) -> Callable[[], Any]:
    return lambda: formulas.calibrated_early_latency(
        **(TERMS.named() | {"p_correct": 0.5} | changes)
    )


BAD: list[tuple[Callable[[], Any], str]] = [
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
        early(layers=None),
        "layers must be a positive number; got None; give a layer count",
    ),
    (
        early(unfinished=1.5),
        "unfinished must lie in [0, 1]; got 1.5; "
        "give the share of a batch layer that is left at a verdict",
    ),
    (
        early(start_delay=-1),
        "start_delay must be a number of at least 0; got -1; give it in the unit of layer_time",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


def test_a_sub_process_that_starts_after_the_verification_has_run_no_layer() -> None:
    def latency(start_delay: float) -> float:
        terms = {"batch_layer_time": 1, "token_time": 2, "promotion_delay": 4}
        return float(
            formulas.calibrated_early_latency(0.5, 10, 2, 1, 1, start_delay=start_delay, **terms)
        )

    assert latency(8.5) == latency(9) == latency(30) == 12
