"""The list of formulas: names, equations, symbols."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy

from ppdmodel import formulas
from ppdmodel.formulas import symbolic
from ppdmodel.formulas.registry import FORMULAS
from tests.support.backends import check_refusal_begins

NAMES = symbolic.names()


def test_the_catalogue_holds_every_formula() -> None:
    entries = {entry.name for entry in symbolic.catalogue()}
    assert entries == set(FORMULAS)
    recursions = {entry.name for entry in symbolic.catalogue() if entry.is_recursion}
    assert recursions == {
        "calibrated_early_latency",
        "draft_tree",
        "multi_exit_compute",
        "multi_exit_latency",
    }
    assert set(NAMES) == entries - recursions
    for entry in symbolic.catalogue():
        assert entry.summary.isascii()
        assert not entry.summary.endswith((".", ",", ":")), entry
        assert entry.written, entry
        assert entry.summary
        assert "$" not in entry.summary
        text = " ".join((entry.function.__doc__ or "").split())
        assert text.startswith(entry.summary)
        assert all(f"${equation}$" in text.partition("Args")[0] for equation in entry.written)


def test_symbols_and_parameters_are_the_same_set() -> None:
    used = {x for n in NAMES for x in inspect.signature(getattr(formulas, n)).parameters}
    assert used == set(symbolic.SYMBOLS)
    assert np.all([symbolic.SYMBOLS[n].is_positive in (True, None) for n in used])
    assert symbolic.SYMBOLS["layers"] == sympy.Symbol("d", positive=True)
    assert symbolic.SYMBOLS["depth"] == sympy.Symbol("D", integer=True, positive=True)


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: symbolic.expr("latency"),
        "the formula must be a known one; got 'latency'; "
        "closest are gated_latency, pipelined_latency, latency_per_token; "
        "list them: ppdmodel formulas",
    ),
    (
        lambda: symbolic.expr("zzz"),
        "the formula must be a known one; got 'zzz'; list them: ppdmodel formulas",
    ),
    (
        lambda: symbolic.expr("exchange_rate", depth=2),
        "exchange_rate must be given its own parameters; got 'depth'; they are p_correct, k",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refusal_begins(call, message)
