"""Derivatives as numbers, against central differences and torch's autograd."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ppdmodel import formulas, sensitivity
from ppdmodel.errors import InvalidInputError
from ppdmodel.formulas import symbolic
from tests.support.grids import arguments

CASES = [
    (name, parameter)
    for name in symbolic.names()
    for parameter in symbolic.formula(name).parameters
    if parameter not in symbolic.WHOLE and name not in ("best_exit", "peak_units")
]


def smooth(name: str, rng: random.Random) -> dict[str, Any]:
    """A point away from the kinks, where exits and layers are no multiples of each other."""
    point = arguments(name, rng)
    if "exit_layer" in point:
        point["layers"] = point["layers"] + 1.37
        point["exit_layer"] = point["exit_layer"] * 0.9 + 0.05
    if "draft_time" in point:
        point["draft_time"] = 0.05 + 0.9 * point["draft_time"]
    for rate in ("p_correct", "acceptance_rate", "share"):
        if rate in point:
            point[rate] = 0.2 + 0.6 * point[rate]
    if "autocorrelation" in point:
        point["autocorrelation"] = 0.3
    return point


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_equals_autograd_and_a_central_difference(name: str, parameter: str) -> None:
    rng = random.Random(f"{name} {parameter}")
    function = getattr(formulas, name)
    for _ in range(4):
        point = smooth(name, rng)
        found = sensitivity(name, parameter, **point)
        x = torch.tensor(float(point[parameter]), dtype=torch.float64, requires_grad=True)
        value = function(**{**point, parameter: x})
        if isinstance(value, torch.Tensor) and value.requires_grad:  # an empty sum is a plain 0
            value.backward()  # type: ignore[no-untyped-call]
        expected = 0.0 if x.grad is None else float(x.grad)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9), point
        step = 1e-6 * max(abs(point[parameter]), 1)
        if parameter not in ("k", "tokens_per_round", "reuse"):  # their domains end near here
            sides = [function(**{**point, parameter: point[parameter] + s}) for s in (step, -step)]
            assert found == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4, abs=1e-4)


def test_arrays_broadcast_and_depth_may_differ_by_element() -> None:
    p, e = np.array([0.0, 0.5, 1.0]), np.array([[1], [8], [20]])
    found = sensitivity("latency_per_token", "exit_layer", p_correct=p, layers=40, exit_layer=e)
    assert found.shape == (3, 3)
    for row in range(3):
        for column in range(3):
            at = {"p_correct": float(p[column]), "layers": 40, "exit_layer": int(e[row, 0])}
            assert found[row, column] == sensitivity("latency_per_token", "exit_layer", **at)
    depths = sensitivity(
        "compute_per_token", "p_correct", p_correct=0.5, layers=40, exit_layer=8, k=2,
        depth=np.array([1, 2, 9]),
    )  # fmt: skip
    assert len(set(depths.tolist())) == 3


def test_unlimited_depth_and_the_edges() -> None:
    at = {"layers": 40, "exit_layer": 7, "k": 3, "depth": None}
    slope = sensitivity("compute_per_token", "exit_layer", p_correct=0.3, **at)
    sides = [formulas.compute_per_token(0.3, 40, 7 + s, 3, None) for s in (1e-6, -1e-6)]
    assert slope == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6)
    assert sensitivity("latency_per_token", "p_correct", p_correct=0, layers=40, exit_layer=10) == (
        -30.0
    )


def test_where_the_slope_jumps_it_lies_between_the_sides() -> None:
    """(D+1)e = d."""
    found = sensitivity("latency_per_token", "exit_layer", p_correct=0.3, layers=40, exit_layer=20)
    left, right = (
        sensitivity("latency_per_token", "exit_layer", p_correct=0.3, layers=40, exit_layer=e)
        for e in (20 - 1e-9, 20 + 1e-9)
    )
    assert left < found < right


def test_many_generations_and_tokens() -> None:
    """Their sums are not written out: p = 0 has a slope all the same."""
    deep = {"layers": 40, "exit_layer": 1, "depth": 30}
    for p in (0.0, 0.4, 1.0):
        found = sensitivity("latency_per_token", "p_correct", p_correct=p, **deep)
        x = torch.tensor(p, dtype=torch.float64, requires_grad=True)
        formulas.latency_per_token(x, **deep).backward()
        assert found == pytest.approx(float(x.grad or 0), rel=1e-9)
    long = {"p_correct": 0.7, "layers": 40, "exit_layer": 5}
    total = sensitivity("expected_total_latency", "p_correct", tokens=1000, **long)
    each = sensitivity("latency_per_token", "p_correct", **long)
    assert total / 1000 == pytest.approx(each, rel=0.01)


def test_steps_have_no_slope() -> None:
    assert sensitivity("best_exit", "exponent", exponent=2.0, layers=30) == 0


def test_no_slope_is_not_a_number() -> None:
    assert np.isnan(sensitivity("exchange_rate", "p_correct", p_correct=0.0, k=1))


def test_bad_input_is_named() -> None:
    at = {"p_correct": 0.5, "layers": 40, "exit_layer": 20}
    cases: tuple[tuple[Callable[[], object], str], ...] = (
        (
            lambda: sensitivity("latency_per_token", "depth", **at),
            "a derivative must be along a real parameter; got depth; "
            "choose from p_correct, layers, exit_layer",
        ),
        (
            lambda: sensitivity("latency_per_token", "p_correct", **(at | {"p_correct": 1.5})),
            "p_correct must lie in [0, 1]; got 1.5; give a probability",
        ),
        (
            lambda: sensitivity("latency_per_token", "p_correct", exit_layer=20),
            "latency_per_token must be given p_correct; got none; give a number or an array",
        ),
        (
            lambda: sensitivity(
                "latency_per_token", "p_correct", **(at | {"p_correct": torch.tensor(0.5)})
            ),
            "p_correct must be numbers; got tensor(0.5000); "
            "symbols: ppdmodel.symbolic.derivative, tensors: autograd",
        ),
        (
            lambda: sensitivity("latency_per_token", "p_correct", **at, tokens=3),
            "latency_per_token must be given its own parameters; got 'tokens'; "
            "they are p_correct, layers, exit_layer, depth",
        ),
    )
    for call, message in cases:
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert str(caught.value) == message
