"""JavaScript of the closed forms, run beside Python."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from py_mini_racer import MiniRacer

from ppdmodel import formulas
from ppdmodel.formulas import symbolic
from tests.support.backends import check_refusal_begins
from tests.support.grids import arguments

NAMES = symbolic.names()


@pytest.mark.parametrize("name", NAMES)
def test_javascript_gives_the_numbers_of_python(name: str) -> None:
    rng = random.Random(f"js {name}")
    context = MiniRacer()
    context.eval(symbolic.javascript(name))
    function = getattr(formulas, name)
    for number in range(40):
        point = arguments(name, rng)
        if "depth" in point and number % 4 == 0:
            point["depth"] = None
        if number == 1:
            point |= {n: 0.0 for n in ("p_correct", "acceptance_rate") if n in point}
            point |= {"autocorrelation": 0.0} if "autocorrelation" in point else {}
        found = context.eval(f"{name}({', '.join(map(json.dumps, point.values()))})")
        expected = function(**point)
        if expected == float("inf"):
            assert found is None or found == expected
        else:
            assert found == pytest.approx(float(expected), rel=1e-9), point


def test_javascript_has_pythons_defaults() -> None:
    context = MiniRacer()
    context.eval(symbolic.javascript("compute_per_token", "exchange_rate"))
    assert context.eval("compute_per_token(0.7, 40, 20)") == pytest.approx(46)
    assert context.eval("exchange_rate(0.5)") == 1
    source = symbolic.javascript(*NAMES)
    for name in NAMES:
        assert f"function {name}({symbolic.formula(name).parameters[0]}" in source
    assert source.count("const sum") == 1


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: symbolic.javascript("multi_exit_latency"),
        "the formula must be a closed form; got 'multi_exit_latency', a recursion; ",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refusal_begins(call, message)
