"""The methods PPD is compared with: published numbers, step-by-step simulators, brute force."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from ppdmodel import formulas
from ppdmodel.errors import InvalidInputError
from ppdmodel.formulas import DraftTree, draft_tree
from tests.support import rivals

# ------------------------------------------------------------------------------ published numbers


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


#: the first ranks of acceptance-rate-vector.pt in Infini-AI-Lab/Sequoia
SEQUOIA = (0.63418293, 0.10794602, 0.05697151, 0.02248876, 0.01949026)


def test_the_published_tree_of_sequoia() -> None:
    """Their demo_tree.pt: the best tree of 4 nodes and 3 levels is a chain."""
    tree = draft_tree(SEQUOIA, 4, 3)
    assert tree.parents == (-1, 0, 1, 2)
    assert tree.ranks == (0, 1, 1, 1)
    assert tree.tokens_per_round == pytest.approx(2.29143, abs=5e-6)


@pytest.mark.parametrize(
    ("nodes", "depth", "value"),
    [
        (4, 1, 1.7991),
        (4, 2, 2.144317),
        (8, 2, 2.374334),
        (8, 5, 2.732173),
        (16, 2, 2.51734),
        (16, 5, 3.087639),
        (32, 5, 3.411854),
    ],
)
def test_values_of_sequoias_program(nodes: int, depth: int, value: float) -> None:
    """What tree_search.py of that repository gives for these five ranks (its depth is ours + 1)."""
    assert draft_tree(SEQUOIA, nodes, depth).tokens_per_round == pytest.approx(value, abs=1e-6)


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


# -------------------------------------------------------------------- simulators, step by step


def check_costs(ledger: rivals.Ledger, latency: float, compute: float) -> None:
    """The simulated costs per token lie within 4 standard errors, of below 1 %."""
    for name, value in (("time", latency), ("work", compute)):
        mean, error = ledger.ratio(name)
        assert error < 0.01 * mean, name
        assert abs(mean - value) <= 4 * error + 1e-9 * value, (name, mean, value, error)


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
    check_costs(
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
    check_costs(
        ledger,
        formulas.self_speculative_latency(*setting),
        formulas.self_speculative_compute(*setting, int(reuse)),
    )


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
    check_costs(
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
    check_costs(ledger, formulas.pipelined_latency(*setting), formulas.pipelined_compute(*setting))


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
    check_costs(
        ledger,
        formulas.tree_speculative_latency(tau, d, tree.depth, time),
        formulas.tree_speculative_compute(tau, d, tree.nodes, tree.drafted_from, compute),
    )


# ------------------------------------------------------------------------------------ draft trees


@cache
def shapes(nodes: int) -> tuple[tuple[tuple[int, ...], int], ...]:
    """All trees of so many nodes, as the parents of their nodes, and their depths."""
    found = []
    for later in itertools.product(*(range(node) for node in range(1, nodes))):
        levels = [0]
        for parent in later:
            levels.append(levels[parent] + 1)
        found.append(((-1, *later), max(levels)))
    return tuple(found)


def ranks_in_order(parents: Sequence[int]) -> tuple[int, ...]:
    """Each node's guesses are those of rank 1, 2, ..., none left out."""
    children: Counter[int] = Counter()
    ranks = [0]
    for parent in parents[1:]:
        children[parent] += 1
        ranks.append(children[parent])
    return tuple(ranks)


def ranks_in_any_choice(parents: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    for later in itertools.product(range(1, most + 1), repeat=len(parents) - 1):
        if len(set(zip(parents[1:], later, strict=True))) == len(later):
            yield (0, *later)


def tokens(parents: Sequence[int], ranks: Sequence[int], p: Sequence[float]) -> float:
    """The path products, summed over the nodes."""
    right = [1.0]
    for parent, rank in zip(parents[1:], ranks[1:], strict=True):
        right.append(right[parent] * p[rank - 1])
    return sum(right)


def best_of_all(p: Sequence[float], nodes: int, depth: int | None) -> float:
    best = 0.0
    for size in range(1, nodes + 1):
        for parents, levels in shapes(size):
            ranks = ranks_in_order(parents)
            if levels <= (nodes if depth is None else depth) and max(ranks) <= len(p):
                best = max(best, tokens(parents, ranks, p))
    return best


def check_tree(tree: DraftTree, p: Sequence[float], nodes: int, depth: int | None) -> None:
    """It is a tree within its bounds, and worth what it says."""
    assert tree.parents[0] == -1
    assert all(0 <= parent < node for node, parent in enumerate(tree.parents) if node)
    for parent in range(len(tree.parents)):
        ranks = [r for r, q in zip(tree.ranks, tree.parents, strict=True) if q == parent]
        assert sorted(ranks) == list(range(1, len(ranks) + 1))
    assert tree.ranks[0] == 0
    assert max(tree.ranks) <= len(p)
    paths = []
    for node in range(len(tree.parents)):
        paths.append(0)
        while node:
            node = tree.parents[node]  # noqa: PLW2901
            paths[-1] += 1
    assert tree.nodes == len(tree.parents) == len(tree.ranks) <= nodes
    assert tree.depth == max(paths)
    assert depth is None or tree.depth <= depth
    assert tree.drafted_from == sum(q in tree.parents for q in range(len(tree.parents)))
    assert tokens(tree.parents, tree.ranks, p) == pytest.approx(tree.tokens_per_round, rel=1e-12)


def rank_vectors() -> list[tuple[float, ...]]:
    """Random ones, in no order, and some at the edges."""
    rng = np.random.default_rng(11)
    random_ones = [
        tuple(float(p) for p in rng.dirichlet(np.ones(ranks + 1))[:ranks])
        for ranks in (1, 2, 3)
        for _ in range(8)
    ]
    edges = [(0.0,), (1.0,), (0.0, 0.7), (0.1, 0.2, 0.6), (0.5, 0.0, 0.5), (1 / 3, 1 / 3, 1 / 3)]
    return random_ones + edges


@pytest.mark.parametrize("p", rank_vectors(), ids=lambda p: "-".join(f"{x:.2g}" for x in p))
def test_draft_tree_is_the_best_of_all_trees(p: tuple[float, ...]) -> None:
    for nodes, depth in itertools.product(range(1, 7), (1, 2, 3, 4, None)):
        tree = draft_tree(p, nodes, depth)
        best = best_of_all(p, nodes, depth)
        assert tree.tokens_per_round == pytest.approx(best, rel=1e-12), (nodes, depth)
        check_tree(tree, p, nodes, depth)


def test_brute_force_sees_all_trees() -> None:
    assert [len(shapes(nodes)) for nodes in range(1, 7)] == [1, 1, 2, 6, 24, 120]


def test_leaving_ranks_out_gains_nothing_where_they_fall() -> None:
    for p in [(0.6, 0.2, 0.1), (0.4, 0.35, 0.2), (0.5, 0.25, 0.25)]:
        for nodes in (2, 3, 4, 5):
            free = max(
                tokens(parents, ranks, p)
                for parents, _ in shapes(nodes)
                for ranks in ranks_in_any_choice(parents, 3)
            )
            assert draft_tree(p, nodes).tokens_per_round == pytest.approx(free, rel=1e-12)


@pytest.mark.parametrize(
    ("nodes", "value"),
    [(1, 1.0), (2, 1.6), (3, 1.96), (4, 2.176), (5, 2.376), (8, 2.7456), (16, 3.306016)],
)
def test_draft_trees_by_hand(nodes: int, value: float) -> None:
    p = (0.6, 0.2, 0.1)
    tree = draft_tree(p, nodes)
    assert tree.tokens_per_round == pytest.approx(value, rel=1e-12)
    check_tree(tree, p, nodes, None)


@pytest.mark.parametrize(("nodes", "depth"), [(60, None), (60, 4), (40, 1), (30, 29), (30, 99)])
def test_large_draft_trees_are_worth_what_they_say(nodes: int, depth: int | None) -> None:
    for p in (SEQUOIA, (0.1, 0.2, 0.6), (0.25,) * 4):
        check_tree(draft_tree(p, nodes, depth), p, nodes, depth)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("gamma", [0, 1, 2, 7])
def test_a_tree_of_one_rank_is_speculative_decoding(alpha: float, gamma: int) -> None:
    tree = draft_tree([alpha], gamma + 1)
    tau = tree.tokens_per_round
    assert (tree.nodes, tree.depth, tree.drafted_from) == (gamma + 1, gamma, gamma)
    assert tau == pytest.approx(formulas.speculative_tokens_per_round(alpha, gamma), rel=1e-12)
    assert formulas.tree_speculative_latency(tau, 40, tree.depth, 0.2) == pytest.approx(
        formulas.speculative_latency(alpha, 40, gamma, 0.2), rel=1e-12
    )
    assert formulas.tree_speculative_compute(
        tau, 40, tree.nodes, tree.drafted_from, 0.3
    ) == pytest.approx(formulas.speculative_compute(alpha, 40, gamma, 0.3), rel=1e-12)


def test_a_depth_limit_cuts_the_chain() -> None:
    for depth in (1, 2, 5):
        tree = draft_tree([0.8], 20, depth)
        expected = formulas.speculative_tokens_per_round(0.8, depth)
        assert tree.tokens_per_round == pytest.approx(expected, rel=1e-12)
        assert tree.nodes == depth + 1


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


# --------------------------------------------------------------------------------- every backend

#: (function, arguments, value); values worked out by hand, the edges among them
GOLDEN: list[tuple[str, tuple[float, ...], float]] = [
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
@pytest.mark.parametrize("backend", ["float", "numpy", "torch", "sympy"])
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[float, ...], value: float, backend: str
) -> None:
    convert: Callable[[Any], Any] = {
        "float": float,
        "numpy": lambda x: np.array([x, x], dtype=float),
        "torch": lambda x: torch.tensor([x, x], dtype=torch.float64),
        "sympy": sympy.nsimplify,
    }[backend]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = getattr(formulas, name)(*map(convert, arguments))
    kind, shape = {
        "float": (float, ()),
        "numpy": (np.ndarray, (2,)),
        "torch": (torch.Tensor, (2,)),
        "sympy": (sympy.Rational, ()),
    }[backend]
    assert isinstance(result, kind)
    assert np.shape(result) == shape
    assert np.asarray(result, dtype=float) == pytest.approx(value, rel=1e-13)


def test_every_formula_has_golden_values() -> None:
    modules = ("ppdmodel.formulas.speculative", "ppdmodel.formulas.parallel")
    names = {n for n in formulas.__all__ if getattr(formulas, n).__module__ in modules}
    assert names == {name for name, _, _ in GOLDEN}


#: the arguments after acceptance_rate
AFTER_THE_RATE: list[tuple[str, tuple[float, ...]]] = [
    ("speculative_tokens_per_round", (3,)),
    ("speculative_tokens_per_round", (0,)),
    ("speculative_latency", (40, 3, 0.1)),
    ("speculative_compute", (40, 3, 0.1)),
    ("self_speculative_latency", (40, 10, 3)),
    ("self_speculative_compute", (40, 10, 3, 0)),
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


# ------------------------------------------------------------------------------------- bad input

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
        lambda: formulas.parallel_draft_compute(math.nan, 40, 5),
        f"acceptance_rate must lie in [0, 1]; got nan; {RATE}",
    ),
    (
        lambda: formulas.pipelined_latency("half", 40, 5),
        f"acceptance_rate must lie in [0, 1]; got 'half'; {RATE}",
    ),
    (
        lambda: formulas.speculative_compute(np.array([0.5, 1.0, 1.5]), 40, 5),
        f"acceptance_rate must lie in [0, 1]; got 1.5 at index 2; {RATE}",
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
    (
        lambda: draft_tree([0.6, 0.5], 4),
        "rank_acceptance must add up to at most 1; got 1.1; "
        "give for each rank the probability that this guess is right",
    ),
    (
        lambda: draft_tree([0.6, math.nan], 4),
        "rank_acceptance[1] must lie in [0, 1]; got nan; give a probability",
    ),
    (
        lambda: draft_tree([-0.5, 0.1], 4),
        "rank_acceptance[0] must lie in [0, 1]; got -0.5; give a probability",
    ),
    (
        lambda: draft_tree([0.6, 0.2], 0),
        "nodes must be a positive integer; got 0; give 1 or more",
    ),
    (
        lambda: draft_tree([0.6, 0.2], 2.5),  # type: ignore[arg-type]
        "nodes must be a positive integer; got 2.5; give 1 or more",
    ),
    (
        lambda: draft_tree([0.6, 0.2], 4, 0),
        "depth must be a positive integer; got 0; give 1 or more",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    assert len(message.split("; ")) == 3
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [0.6, "ab", np.array(0.6), None])
def test_ranks_are_a_list(value: Any) -> None:
    with pytest.raises(
        InvalidInputError,
        match=r"^rank_acceptance must have one value per rank; got .+; give a list, also of one$",
    ):
        draft_tree(value, 4)


def test_at_least_one_rank() -> None:
    with pytest.raises(
        InvalidInputError,
        match=r"^rank_acceptance must have one value per rank; got \[\]; give a list, also of one$",
    ):
        draft_tree([], 4)
