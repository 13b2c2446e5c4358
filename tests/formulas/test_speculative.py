"""Speculative decoding: published numbers, step-by-step simulators, values by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy

from ppdmodel import formulas
from ppdmodel.formulas import draft_tree
from tests.support import rivals
from tests.support.backends import (
    BACKENDS,
    check_all_have_values,
    check_golden,
    check_gradients,
    check_refused,
)


@pytest.mark.parametrize(
    ("alpha", "gamma", "operations", "speedup"),
    [
        (0.6, 2, 1.53, 1.96),
        (0.7, 3, 1.58, 2.53),
        (0.8, 2, 1.23, 2.44),
        (0.8, 5, 1.63, 3.69),
        (0.9, 2, 1.11, 2.71),
        (0.9, 10, 1.60, 6.86),
    ],
)
def test_table_1_of_leviathan(alpha: float, gamma: int, operations: float, speedup: float) -> None:
    """Table 1 of arXiv 2211.17192, where the draft costs nothing."""
    assert round(40 / formulas.speculative_latency(alpha, 40, gamma), 2) == speedup
    assert round(formulas.speculative_compute(alpha, 40, gamma) / 40, 2) == operations
    assert round(formulas.speculative_tokens_per_round(alpha, gamma), 2) == speedup


def test_a_bigram_draft_of_leviathan() -> None:
    """Their example of a draft that costs nothing: alpha = 0.2, gamma = 3 gives 1.248."""
    assert 40 / formulas.speculative_latency(0.2, 40, 3) == pytest.approx(1.248, rel=1e-12)


#: alpha, layers, gamma, draft_time, draft_compute
SPECULATION = [
    (0.0, 40, 3, 0.1, 0.05),
    (0.0, 40, 1, 0.0, 0.0),
    (0.3, 40, 1, 0.2, 0.1),
    (0.3, 12, 4, 0.05, 0.3),
    (0.5, 40, 0, 0.3, 0.2),
    (0.5, 7, 2, 0.0, 0.0),
    (0.6, 40, 3, 0.25, 0.02),
    (0.7, 32, 5, 0.1, 0.1),
    (0.8, 40, 1, 1.0, 1.0),
    (0.8, 40, 8, 0.04, 0.01),
    (0.9, 80, 10, 0.02, 0.01),
    (0.95, 40, 4, 0.5, 0.7),
    (1.0, 40, 0, 0.1, 0.1),
    (1.0, 40, 1, 0.1, 0.2),
    (1.0, 40, 6, 0.1, 0.05),
]


@pytest.mark.parametrize(("seed", "setting"), list(enumerate(SPECULATION)))
def test_speculation(seed: int, setting: tuple[float, int, int, float, float]) -> None:
    alpha, d, gamma, time, compute = setting
    ledger = rivals.speculation(*setting, tokens=100_000, seed=seed)
    tokens, error = ledger.ratio("tokens", per="steps")
    expected = formulas.speculative_tokens_per_round(alpha, gamma)
    assert abs(tokens - expected) <= 4 * error + 1e-9
    rivals.check_costs(
        ledger,
        formulas.speculative_latency(alpha, d, gamma, time),
        formulas.speculative_compute(alpha, d, gamma, compute),
    )


#: alpha, layers, exit_layer, gamma
SELF_SPECULATION = [
    (0.0, 12, 3, 2),
    (0.0, 6, 6, 1),
    (0.2, 12, 1, 3),
    (0.4, 12, 5, 1),
    (0.5, 8, 2, 0),
    (0.5, 8, 8, 2),
    (0.6, 12, 11, 3),
    (0.7, 9, 3, 4),
    (0.8, 12, 6, 2),
    (0.8, 5, 1, 6),
    (0.9, 16, 4, 5),
    (0.95, 7, 2, 8),
    (1.0, 12, 3, 4),
    (1.0, 12, 12, 1),
    (1.0, 1, 1, 3),
]


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize(("seed", "setting"), list(enumerate(SELF_SPECULATION)))
def test_self_speculation(seed: int, setting: tuple[float, int, int, int], reuse: bool) -> None:
    ledger = rivals.self_speculation(*setting, reuse=reuse, tokens=25_000, seed=seed)
    rivals.check_costs(
        ledger,
        formulas.self_speculative_latency(*setting),
        formulas.self_speculative_compute(*setting, int(reuse)),
    )


def test_self_speculation_is_speculation_by_a_part_of_the_model() -> None:
    alpha = np.linspace(0, 1, 5)
    for e, gamma in itertools.product((1, 10, 40), (0, 1, 4)):
        share = e / 40
        assert formulas.self_speculative_latency(alpha, 40, e, gamma) == pytest.approx(
            formulas.speculative_latency(alpha, 40, gamma, share), rel=1e-12
        )
        assert formulas.self_speculative_compute(alpha, 40, e, gamma, 0) == pytest.approx(
            formulas.speculative_compute(alpha, 40, gamma, share), rel=1e-12
        )
        assert formulas.self_speculative_compute(alpha, 40, e, gamma) == pytest.approx(
            formulas.speculative_compute(alpha, 40, gamma, 0), rel=1e-12
        )


#: the first ranks of acceptance-rate-vector.pt in Infini-AI-Lab/Sequoia
SEQUOIA = (0.63418293, 0.10794602, 0.05697151, 0.02248876, 0.01949026)


#: rank_acceptance, nodes, depth, layers, draft_time, draft_compute
TREES = [
    ((0.6, 0.2, 0.1), 1, None, 40, 0.1, 0.1),
    ((0.6, 0.2, 0.1), 4, 1, 40, 0.1, 0.05),
    ((0.6, 0.2, 0.1), 8, None, 40, 0.1, 0.05),
    ((0.6, 0.2, 0.1), 16, 3, 12, 0.0, 0.0),
    ((0.2, 0.5), 9, 3, 40, 0.25, 0.5),
    ((0.4, 0.3, 0.2, 0.1), 20, 2, 40, 0.5, 0.02),
    ((0.9,), 6, None, 40, 0.1, 0.1),
    ((1.0,), 5, None, 40, 0.1, 0.2),
    (SEQUOIA, 32, 6, 32, 0.05, 0.03),
]


@pytest.mark.parametrize(("seed", "setting"), list(enumerate(TREES)))
def test_tree_speculation(
    seed: int, setting: tuple[tuple[float, ...], int, int | None, int, float, float]
) -> None:
    ranks, nodes, depth, d, time, compute = setting
    tree = draft_tree(ranks, nodes, depth)
    ledger = rivals.tree_speculation(
        tree.parents, tree.ranks, ranks, d, time, compute, tokens=30_000, seed=seed
    )
    tau = tree.tokens_per_round
    rivals.check_costs(
        ledger,
        formulas.tree_speculative_latency(tau, d, tree.depth, time),
        formulas.tree_speculative_compute(tau, d, tree.nodes, tree.drafted_from, compute),
    )


#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    ("speculative_tokens_per_round", (0.5, 3), 1.875),
    ("speculative_tokens_per_round", (0, 4), 1.0),
    ("speculative_tokens_per_round", (1, 4), 5.0),
    ("speculative_tokens_per_round", (0.7, 0), 1.0),
    ("speculative_latency", (0.5, 40, 3, 0.1), 52 / 1.875),
    ("speculative_latency", (0.5, 40, 3), 40 / 1.875),
    ("speculative_latency", (0, 40, 3, 0.1), 52.0),
    ("speculative_latency", (1, 40, 3, 0.1), 13.0),
    ("speculative_latency", (0.5, 40, 0, 0.3), 40.0),
    ("speculative_latency", (0.5, 40, 1, 1), 80 / 1.5),
    ("speculative_compute", (0.5, 40, 3, 0.1), 172 / 1.875),
    ("speculative_compute", (0.5, 40, 3), 160 / 1.875),
    ("speculative_compute", (0, 40, 3, 0.1), 172.0),
    ("speculative_compute", (1, 40, 3, 0.1), 43.0),
    ("speculative_compute", (0.5, 40, 0, 0.3), 40.0),
    ("self_speculative_latency", (0.5, 40, 10, 3), 70 / 1.875),
    ("self_speculative_latency", (0.5, 40, 40, 1), 80 / 1.5),
    ("self_speculative_latency", (1, 40, 10, 4), 16.0),
    ("self_speculative_latency", (0.3, 40, 10, 0), 40.0),
    ("self_speculative_compute", (0.5, 40, 10, 3), 160 / 1.875),
    ("self_speculative_compute", (0.5, 40, 10, 3, 0), 190 / 1.875),
    ("self_speculative_compute", (0.5, 40, 10, 3, 0.5), 175 / 1.875),
    ("self_speculative_compute", (0, 40, 40, 1, 0), 120.0),
    ("self_speculative_compute", (1, 40, 10, 4, 1), 40.0),
    ("tree_speculative_latency", (2.5, 40, 5, 0.05), 20.0),
    ("tree_speculative_latency", (1, 40, 0, 0.3), 40.0),
    ("tree_speculative_compute", (2.5, 40, 10, 4, 0.05), 163.2),
    ("tree_speculative_compute", (1, 40, 1, 0, 0.3), 40.0),
    ("prompt_lookup_latency", (0.5, 30, 2), 30 / 1.75),
    ("prompt_lookup_latency", (0.5, 30, 2, 0.8), 18.75),
    ("prompt_lookup_latency", (0.5, 30, 2, 0.8, 1.5), 42 / 1.6),
    ("prompt_lookup_latency", (0.5, 30, 2, 0, 9), 30.0),
    ("prompt_lookup_latency", (0, 30, 4, 1, 2), 60.0),
    ("prompt_lookup_latency", (1, 30, 4, 0.5), 10.0),
    ("prompt_lookup_latency", (0.7, 30, 0, 0.5), 30.0),
    ("prompt_lookup_compute", (0.5, 30, 2), 90 / 1.75),
    ("prompt_lookup_compute", (0.5, 30, 2, 0.8), 48.75),
    ("prompt_lookup_compute", (0, 30, 4, 0.5), 90.0),
    ("prompt_lookup_compute", (1, 30, 4, 1), 30.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


#: the arguments after acceptance_rate
AFTER_THE_RATE: list[tuple[str, tuple[float, ...]]] = [
    ("speculative_tokens_per_round", (3,)),
    ("speculative_tokens_per_round", (0,)),
    ("speculative_latency", (40, 3, 0.1)),
    ("speculative_compute", (40, 3, 0.1)),
    ("self_speculative_latency", (40, 10, 3)),
    ("self_speculative_compute", (40, 10, 3, 0)),
    ("prompt_lookup_latency", (30, 3, 0.6, 1.4)),
    ("prompt_lookup_compute", (30, 3, 0.6)),
]


@pytest.mark.parametrize(("name", "others"), AFTER_THE_RATE)
@pytest.mark.parametrize("tensors", [False, True], ids=["numbers", "tensors"])
def test_gradients_are_right_inside_and_at_the_edges(
    name: str, others: tuple[float, ...], tensors: bool
) -> None:
    check_gradients(name, others, tensors)


RATE = "give the rate at which drafted tokens are accepted"


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: formulas.speculative_latency(1.2, 40, 5),
        f"acceptance_rate must lie in [0, 1]; got 1.2; {RATE}",
    ),
    (
        lambda: formulas.speculative_tokens_per_round(-0.1, 5),
        f"acceptance_rate must lie in [0, 1]; got -0.1; {RATE}",
    ),
    (
        lambda: formulas.speculative_compute(np.array([0.5, 1.0, 1.5]), 40, 5),
        f"acceptance_rate must lie in [0, 1]; got 1.5 at index 2; {RATE}",
    ),
    (
        lambda: formulas.speculative_latency(sympy.Rational(6, 5), 40, 5),
        f"acceptance_rate must lie in [0, 1]; got 6/5; {RATE}",
    ),
    (
        lambda: formulas.speculative_latency(0.5, 40, -1),
        "draft_tokens must be a whole number of at least 0; got -1; 0 means plain decoding",
    ),
    (
        lambda: formulas.self_speculative_latency(0.5, 40, 10, 1.5),
        "draft_tokens must be a whole number of at least 0; got 1.5; 0 means plain decoding",
    ),
    (
        lambda: formulas.speculative_compute(0.5, 40, np.array([2, -3])),
        "draft_tokens must be a whole number of at least 0; got -3 at index 1; "
        "0 means plain decoding",
    ),
    (
        lambda: formulas.speculative_latency(0.5, 40, 3, -0.1),
        "draft_time must be a number of at least 0; got -0.1; "
        "give a draft step's time over a target step's",
    ),
    (
        lambda: formulas.speculative_compute(0.5, 40, 3, math.inf),
        "draft_compute must be a number of at least 0; got inf; "
        "give a draft step's operations over a target step's",
    ),
    (
        lambda: formulas.speculative_latency(0.5, 0, 3),
        "layers must be a positive number; got 0; give a layer count",
    ),
    (
        lambda: formulas.self_speculative_compute(0.5, 40, 41, 2),
        "exit_layer must not exceed layers; got 41; exit layers run from 1 to 40",
    ),
    (
        lambda: formulas.self_speculative_compute(0.5, 40, 10, 2, 2),
        "reuse must lie in [0, 1]; got 2; "
        "1: verification reuses the drafted tokens' layers, 0: it does not",
    ),
    (
        lambda: formulas.prompt_lookup_latency(0.5, 30, 2, 1.5),
        "found_rate must lie in [0, 1]; got 1.5; give the share of rounds with a draft",
    ),
    (
        lambda: formulas.prompt_lookup_latency(0.5, 30, 2, 1, -1),
        "verification_time must be a number of at least 0; got -1; "
        "give a pass over a draft's tokens over one of one token",
    ),
    (
        lambda: formulas.tree_speculative_latency(0.5, 40, 3),
        "tokens_per_round must be a number of at least 1; got 0.5; a round always yields one token",
    ),
    (
        lambda: formulas.tree_speculative_latency(2, 40, 1.5),
        "tree_depth must be a whole number of at least 0; got 1.5; "
        "give the drafted levels below the root",
    ),
    (
        lambda: formulas.tree_speculative_compute(2, 40, 0, 0),
        "tree_nodes must be a whole number of at least 1; got 0; count the root",
    ),
    (
        lambda: formulas.tree_speculative_compute(2, 40, 4, -1),
        "drafted_from must be a whole number of at least 0; got -1; "
        "count the nodes that have children",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("speculative", GOLDEN)
