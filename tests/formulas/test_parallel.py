"""Parallel drafting, pipelines, tensor parallelism: step-by-step simulators, values by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ppdmodel import formulas
from tests.support import rivals
from tests.support.backends import (
    BACKENDS,
    check_all_have_values,
    check_golden,
    check_gradients,
    check_refused,
)


@pytest.mark.parametrize(("n", "alpha", "speedup"), [(4, 0.8, 2.5), (8, 0.8, 10 / 3)])
def test_speedup_of_pipelined_speculation(n: int, alpha: float, speedup: float) -> None:
    """arXiv 2605.30852: n / (alpha + n (1 - alpha))."""
    assert 40 / formulas.pipelined_latency(alpha, 40, n) == pytest.approx(speedup, rel=1e-12)
    assert n / (alpha + n * (1 - alpha)) == pytest.approx(speedup, rel=1e-12)


@pytest.mark.parametrize(
    ("d", "n"), [(d, n) for d in (1, 12, 40) for n in range(1, d + 1) if d % n == 0]
)
def test_a_pipeline_without_draft_costs_is_ppd(d: int, n: int) -> None:
    alpha = np.linspace(0, 1, 9)
    latency = formulas.latency_per_token(alpha, d, d / n, None)
    compute = formulas.compute_per_token(alpha, d, d / n, 1, None)
    assert formulas.pipelined_latency(alpha, d, n) == pytest.approx(latency, rel=1e-12)
    assert formulas.pipelined_compute(alpha, d, n) == pytest.approx(compute, rel=1e-12)


#: alpha, layers, block, draft_time, draft_compute
PARALLEL = [
    (0.0, 40, 1, 0.2, 0.2),
    (0.0, 40, 4, 0.5, 0.1),
    (0.2, 40, 3, 0.1, 0.05),
    (0.4, 12, 1, 2.0, 0.3),
    (0.5, 40, 2, 0.5, 0.5),
    (0.6, 40, 5, 0.2, 0.1),
    (0.6, 40, 5, 0.4, 0.0),
    (0.7, 7, 8, 0.0, 0.2),
    (0.8, 40, 5, 0.2, 0.2),
    (0.8, 40, 2, 0.7, 0.02),
    (0.9, 32, 6, 0.15, 0.1),
    (0.95, 40, 12, 0.1, 0.03),
    (1.0, 40, 1, 0.5, 0.4),
    (1.0, 40, 4, 0.25, 0.25),
    (1.0, 40, 4, 0.5, 0.1),
]


@pytest.mark.parametrize(("seed", "setting"), list(enumerate(PARALLEL)))
def test_parallel_drafting(seed: int, setting: tuple[float, int, int, float, float]) -> None:
    alpha, d, gamma, time, compute = setting
    ledger = rivals.parallel_drafting(*setting, tokens=100_000, seed=seed)
    rivals.check_costs(
        ledger,
        formulas.parallel_draft_latency(alpha, d, gamma, time),
        formulas.parallel_draft_compute(alpha, d, gamma, compute),
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_tokens_between_rejections(alpha: float, gamma: int) -> None:
    """As many as without blocks: each token is a drafted one or corrects a rejected one."""
    ledger = rivals.parallel_drafting(alpha, 40, gamma, 0.2, 0.1, tokens=120_000, seed=gamma)
    mean, error = ledger.ratio("tokens", per="rejections")
    assert error < 0.01 * mean
    assert abs(mean - 1 / (1 - alpha)) <= 4 * error + 1e-9


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_the_best_block_is_drafted_in_one_target_step(steps: int) -> None:
    gamma = np.arange(1, 5 * steps + 1)
    for alpha in np.linspace(0.02, 0.98, 25):
        latency = formulas.parallel_draft_latency(float(alpha), 40, gamma, 1 / steps)
        others = np.delete(latency, steps - 1)
        assert (latency[steps - 1] < others).all(), alpha


def test_the_best_block_by_simulation() -> None:
    latency = [
        rivals.parallel_drafting(0.8, 40, gamma, 1 / 4, 0.1, tokens=20_000, seed=1).ratio("time")[0]
        for gamma in range(1, 9)
    ]
    assert int(np.argmin(latency)) + 1 == 4


#: alpha, layers, stages, draft_layers
PIPELINED = [
    (0.0, 40, 1, 2.0),
    (0.0, 40, 5, 1.0),
    (0.2, 12, 3, 0.0),
    (0.4, 40, 4, 0.5),
    (0.5, 40, 1, 0.0),
    (0.5, 40, 2, 3.0),
    (0.5, 24, 8, 0.25),
    (0.7, 32, 4, 0.0),
    (0.8, 40, 8, 1.5),
    (0.8, 7, 3, 0.1),
    (0.9, 40, 10, 1.0),
    (0.95, 12, 12, 0.5),
    (1.0, 40, 1, 1.0),
    (1.0, 40, 4, 0.0),
    (1.0, 40, 8, 2.0),
]


@pytest.mark.parametrize(("seed", "setting"), list(enumerate(PIPELINED)))
def test_pipelined_speculation(seed: int, setting: tuple[float, int, int, float]) -> None:
    ledger = rivals.pipelined_speculation(*setting, tokens=80_000, seed=seed)
    rivals.check_costs(
        ledger, formulas.pipelined_latency(*setting), formulas.pipelined_compute(*setting)
    )


#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    ("parallel_draft_latency", (0.5, 40, 2, 0.25), 50 / 1.5),
    ("parallel_draft_latency", (0.5, 40, 2, 0.75), 50.0),
    ("parallel_draft_latency", (0, 40, 4, 0.25), 40.0),
    ("parallel_draft_latency", (1, 40, 4, 0.25), 10.0),
    ("parallel_draft_latency", (0.5, 40, 1, 0.3), 40.0),
    ("parallel_draft_latency", (0.5, 40, 1, 3), 120.0),
    ("parallel_draft_compute", (0.5, 40, 2, 0.25), 95 / 1.5),
    ("parallel_draft_compute", (0, 40, 4, 0.25), 80.0),
    ("parallel_draft_compute", (1, 40, 4, 0.25), 50.0),
    ("parallel_draft_compute", (0.7, 40, 1, 0.25), 50.0),
    ("pipelined_latency", (0.5, 40, 4, 2), 30.0),
    ("pipelined_latency", (0, 40, 4, 2), 48.0),
    ("pipelined_latency", (1, 40, 4, 2), 12.0),
    ("pipelined_latency", (0.5, 40, 1, 2), 42.0),
    ("pipelined_latency", (0.5, 40, 4), 25.0),
    ("pipelined_compute", (0.5, 40, 4, 2), 75.0),
    ("pipelined_compute", (0, 40, 4, 2), 108.0),
    ("pipelined_compute", (1, 40, 4, 2), 42.0),
    ("pipelined_compute", (0.5, 40, 1, 2), 42.0),
    ("tensor_parallel_latency", (40, 2, 0.8), 25.0),
    ("tensor_parallel_latency", (40, 4), 10.0),
    ("tensor_parallel_latency", (40, 1), 40.0),
    ("tensor_parallel_compute", (40, 4), 40.0),
    ("tensor_parallel_compute", (40, 3), 40.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


#: the arguments after acceptance_rate
AFTER_THE_RATE: list[tuple[str, tuple[float, ...]]] = [
    ("parallel_draft_latency", (40, 1, 0.2)),
    ("parallel_draft_latency", (40, 4, 0.4)),
    ("parallel_draft_compute", (40, 1, 0.2)),
    ("parallel_draft_compute", (40, 4, 0.2)),
    ("pipelined_latency", (40, 1, 2)),
    ("pipelined_latency", (40, 4, 2)),
    ("pipelined_compute", (40, 4, 2)),
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
        lambda: formulas.parallel_draft_compute(math.nan, 40, 5),
        f"acceptance_rate must lie in [0, 1]; got nan; {RATE}",
    ),
    (
        lambda: formulas.pipelined_latency("half", 40, 5),
        f"acceptance_rate must lie in [0, 1]; got 'half'; {RATE}",
    ),
    (
        lambda: formulas.pipelined_compute(np.array([[0.5, 1.0], [math.nan, 2.0]]), 40, 5),
        f"acceptance_rate must lie in [0, 1]; got nan at index (1, 0); {RATE}",
    ),
    (
        lambda: formulas.parallel_draft_latency(torch.tensor([0.5, -1.0]), 40, 5),
        f"acceptance_rate must lie in [0, 1]; got -1.0 at index 1; {RATE}",
    ),
    (
        lambda: formulas.parallel_draft_latency(0.5, 40, 0),
        "block_tokens must be a whole number of at least 1; got 0; "
        "give the tokens drafted during a target step",
    ),
    (
        lambda: formulas.parallel_draft_compute(0.5, 40, 2.5),
        "block_tokens must be a whole number of at least 1; got 2.5; "
        "give the tokens drafted during a target step",
    ),
    (
        lambda: formulas.pipelined_latency(0.5, 40, 0),
        "stages must be a whole number of at least 1; got 0; give the pipeline's stages",
    ),
    (
        lambda: formulas.pipelined_compute(0.5, 40, 2, -1),
        "draft_layers must be a number of at least 0; got -1; "
        "give the draft's time per cycle in layer times",
    ),
    (
        lambda: formulas.tensor_parallel_latency(40, 2, 0),
        "efficiency must be a positive number; got 0; 1 is perfect splitting",
    ),
    (
        lambda: formulas.tensor_parallel_compute(40, 0),
        "units must be a whole number of at least 1; got 0; give the devices",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("parallel", GOLDEN)
