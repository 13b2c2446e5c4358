"""Checks of a closed form that the test of each module makes: values, gradients, refused input."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from ppdmodel import formulas
from ppdmodel.errors import InvalidInputError
from ppdmodel.formulas.registry import FORMULAS

#: name -> how a number becomes an argument, and the type and shape of the result
BACKENDS: dict[str, tuple[Callable[[Any], Any], type, tuple[int, ...]]] = {
    "float": (float, float, ()),
    "numpy": (lambda x: np.array([x, x], dtype=float), np.ndarray, (2,)),
    "torch": (lambda x: torch.tensor([x, x], dtype=torch.float64), torch.Tensor, (2,)),
    "sympy": (sympy.nsimplify, sympy.Rational, ()),
}
#: what an argument is where it is left out, in every formula that allows it
DEFAULTS = {
    "depth": 1, "k": 1, "autocorrelation": 0, "draft_time": 0, "draft_compute": 0, "reuse": 1,
    "draft_layers": 0, "efficiency": 1, "head_time": 0, "exit_time": 0, "all_reduce_messages": 1,
    "messages_per_match": 1, "token_time": 0, "start_delay": 0, "promotion_delay": 0,
    "unfinished": 0.5, "plain_head_time": 0, "found_rate": 1, "verification_time": 1,
}  # fmt: skip
#: what is rounded or cut at 0 may be a Python integer
ROUNDED = ("best_exit", "link_break_even")


def check_golden(name: str, arguments: tuple[Any, ...], value: float, backend: str) -> None:
    """A formula has this value on a backend, without a warning, and gives back its type."""
    convert, kind, shape = BACKENDS[backend]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = getattr(formulas, name)(*(x if x is None else convert(x) for x in arguments))
    assert np.shape(result) == shape
    assert np.asarray(result, dtype=float) == pytest.approx(value, rel=1e-13)
    assert isinstance(result, (float, int) if kind is float and name in ROUNDED else kind)


def check_gradients(name: str, others: tuple[float, ...], tensors: bool) -> None:
    """By the rate, against one-sided differences of second order."""
    function = getattr(formulas, name)
    rates = [0.0, 1.0, 0.4]
    alpha = torch.tensor(rates, dtype=torch.float64, requires_grad=True)
    given = [torch.tensor([x] * 3, dtype=torch.float64) if tensors else x for x in others]
    result = function(alpha, *given)
    (gradient,) = torch.autograd.grad(result.sum(), alpha)
    assert torch.isfinite(gradient).all()
    for rate, slope in zip(rates, gradient.tolist(), strict=True):
        step = -1e-5 if rate == 1 else 1e-5
        at = [function(rate + n * step, *others) for n in (0, 1, 2)]
        difference = (-3 * at[0] + 4 * at[1] - at[2]) / (2 * step)
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-5)


def check_refused(call: Callable[[], Any], message: str) -> None:
    """The call raises this message, which says what must hold, what came, and what to do."""
    assert len(message.split("; ")) == 3
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert str(caught.value) == message


def check_refusal_begins(call: Callable[[], Any], beginning: str) -> None:
    """The call raises a message that begins like this."""
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert str(caught.value).startswith(beginning)


def check_all_have_values(module: str, golden: list[tuple[str, tuple[Any, ...], float]]) -> None:
    """Every public formula of a module has a golden value, and the usual defaults."""
    home = f"ppdmodel.formulas.{module}"
    own = {name for name, found in FORMULAS.items() if found.function.__module__ == home}
    assert own == {name for name, _, _ in golden}
    check_defaults(module)


def check_defaults(module: str) -> None:
    """What is not given is the same in every public formula of a module as in all others."""
    for name, found in FORMULAS.items():
        if found.function.__module__ != f"ppdmodel.formulas.{module}":
            continue
        for parameter in inspect.signature(found.function).parameters.values():
            if parameter.default is not parameter.empty:
                assert parameter.default == DEFAULTS[parameter.name], (name, parameter)
