"""Every closed form gives one value on floats, NumPy, torch and SymPy, and finite gradients."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from ppdmodel import formulas
from ppdmodel.formulas import symbolic
from tests.support.grids import arguments

NAMES = symbolic.names()


@pytest.mark.parametrize("name", NAMES)
def test_one_value_on_every_backend(name: str) -> None:
    rng = random.Random(name)
    function = getattr(formulas, name)
    points = [arguments(name, rng) for _ in range(12)]
    values = np.array([float(function(**point)) for point in points])
    columns = {p: np.array([point[p] for point in points]) for p in points[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays = function(**columns)
    assert arrays == pytest.approx(values, rel=1e-12)
    tensors = function(**{p: torch.tensor(x).double() for p, x in columns.items()})
    assert tensors.numpy() == pytest.approx(values, rel=1e-12)
    for point, value in list(zip(points, values, strict=True))[:3]:
        exact = {p: sympy.Rational(x) for p, x in point.items()}
        assert float(function(**exact)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_lambdified_symbols_agree_with_the_numeric_code(name: str) -> None:
    rng = random.Random(f"lambdify {name}")
    function, entry = getattr(formulas, name), symbolic.formula(name)
    along = [symbolic.SYMBOLS[p] for p in entry.parameters]
    step = {"Heaviside": lambda x, at: float(x > 0) if x else at}
    compiled = sympy.lambdify(along, symbolic.expr(name), modules=[step, "math"])
    for _ in range(50):
        point = arguments(name, rng)
        assert compiled(*point.values()) == pytest.approx(float(function(**point)), rel=1e-12)


OF_A_RATE = [
    n for n in NAMES if symbolic.formula(n).parameters[0] in ("p_correct", "acceptance_rate")
]


@pytest.mark.parametrize("name", OF_A_RATE)
def test_broadcasting_over_a_column_and_a_row(name: str) -> None:
    rng = random.Random(f"shape {name}")
    function = getattr(formulas, name)
    rate, *others = symbolic.formula(name).parameters
    point = arguments(name, rng)
    if "autocorrelation" in point:
        point["autocorrelation"] = 0.3
    rates = np.array([0.1, 0.5, 0.9])
    row: dict[str, Any] = {x: np.array([point[x]] * 2) for x in others[:1]}
    values = function(**{**point, rate: rates[:, None], **row})
    scalars = [function(**{**point, rate: float(x)}) for x in rates]
    assert values.shape == (3, 2 if row else 1)
    assert values[:, -1] == pytest.approx(np.array(scalars, dtype=float), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edge", [0.0, 0.4, 1.0])
def test_gradients_are_finite(name: str, edge: float) -> None:
    """Along every real parameter, at the edges of each probability too."""
    rng = random.Random(f"gradient {name}")
    entry = symbolic.formula(name)
    point = arguments(name, rng)
    if "autocorrelation" in point:
        point["autocorrelation"] = 0.3
    for probability in ("p_correct", "share", "acceptance_rate"):
        if probability in point:
            point[probability] = edge
    if name == "exchange_rate" and edge == 0:
        assert getattr(formulas, name)(torch.tensor(0.0), 2) == torch.inf
        return
    if name == "break_even":
        point["exit_layer"] = point["layers"] / 2
    real = {
        p: torch.tensor(float(x), dtype=torch.float64, requires_grad=True)
        for p, x in point.items()
        if p not in symbolic.WHOLE
    }
    value = getattr(formulas, name)(**(point | real))
    assert torch.isfinite(value)
    if value.requires_grad:
        grads = torch.autograd.grad(value, list(real.values()), allow_unused=True)
        assert all(bool(torch.isfinite(g)) for g in grads if g is not None), entry
