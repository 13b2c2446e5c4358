"""Draft trees: published ones, brute force over all trees, values by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from ppdmodel import formulas
from ppdmodel.errors import InvalidInputError
from ppdmodel.formulas import DraftTree, draft_tree
from tests.support.backends import check_refused

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


def test_a_limit_of_depth_that_no_tree_reaches_is_none() -> None:
    """However large it is, the program ends."""
    for nodes in (1, 4):
        assert draft_tree(SEQUOIA, nodes, 10**9) == draft_tree(SEQUOIA, nodes)


def test_what_is_never_accepted_is_not_drafted() -> None:
    for p in ((0.0,), (0.0, 0.0)):
        assert draft_tree(p, 4) == DraftTree(1.0, (-1,), (0,))


def test_the_limits_may_be_reached() -> None:
    """Of nodes, and of the sum of the rates, which may be a rounding error above 1."""
    assert draft_tree([0.5], 1000, 1).nodes == 2
    assert draft_tree([1.0, 1e-9], 4).nodes == 4


def test_a_depth_limit_cuts_the_chain() -> None:
    for depth in (1, 2, 5):
        tree = draft_tree([0.8], 20, depth)
        expected = formulas.speculative_tokens_per_round(0.8, depth)
        assert tree.tokens_per_round == pytest.approx(expected, rel=1e-12)
        assert tree.nodes == depth + 1


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: draft_tree([0.6, 0.5], 4),
        "rank_acceptance must add up to at most 1; got 1.1; "
        "give for each rank the probability that this guess is right",
    ),
    (
        lambda: draft_tree([1.0, 3e-9], 4),
        "rank_acceptance must add up to at most 1; got 1.000000003; "
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
        lambda: draft_tree([0.6, np.array([0.1, 0.2])], 4),  # type: ignore[list-item]
        "rank_acceptance must hold numbers; got array([0.1, 0.2]) at index 1; "
        "a tree is chosen for one acceptance vector",
    ),
    (
        lambda: draft_tree([0.6], 1001),
        "nodes must not exceed 1000; got 1001; no target verifies that many at once",
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
    check_refused(call, message)


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
