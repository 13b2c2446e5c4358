"""Draft trees of speculative decoding: the tree with the most expected tokens per round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import positive_integer
from ..errors import InvalidInputError
from .contract import check, is_unknown, listed, require
from .registry import recursion

#: nodes beyond which the dynamic program would take minutes
MOST_NODES = 1000


@dataclass(frozen=True)
class DraftTree:
    """A tree of drafted tokens; node 0 is the last verified token, parents come first.

    `parents[i]` is the parent of node i (-1 for the root), and node i is its parent's guess number
    `ranks[i]`, counted from 1 (0 for the root).
    """

    tokens_per_round: float
    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def nodes(self) -> int:
        """Nodes of the tree, its root included: positions that the target verifies."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Drafted levels below the root: serial draft steps."""
        levels = [0]
        for parent in self.parents[1:]:
            levels.append(levels[parent] + 1)
        return max(levels)

    @property
    def drafted_from(self) -> int:
        """Nodes with children: positions on which the draft runs."""
        return len(set(self.parents[1:]))


@recursion(equation="8.14", page="08-other-methods")
def draft_tree(rank_acceptance: Sequence[float], nodes: int, depth: int | None = None) -> DraftTree:
    r"""The tree of at most so many nodes and levels whose round yields the most tokens.

    A node's guess of rank b is accepted with probability p_b, if the node itself is
    accepted. So a round yields $\tau = \sum_v \prod p_{\mathrm{rank}}$ along the path from the root
    to v, summed over all nodes, the root counting 1. A dynamic program over nodes and levels finds
    the best tree; a node's guesses are used in the order of their ranks, without gaps.

    The positional acceptance model and its dynamic program are those of Sequoia, arXiv 2402.12374.
    Time grows as depth x ranks x nodes squared.

    Args:
        rank_acceptance: p_1...p_b, acceptance probability of the guess of each rank; in [0, 1],
            adding up to 1 at most.
        nodes: most nodes of the tree, its root included; a positive integer.
        depth: most drafted levels below the root; a positive integer, or None.

    Returns:
        The tree and its tokens per round, for `tree_speculative_latency` and `..._compute`.

    Raises:
        InvalidInputError: an argument is outside its domain.

    >>> tree = draft_tree([0.6, 0.2, 0.1], nodes=4)
    >>> round(tree.tokens_per_round, 4), tree.parents, tree.ranks
    (2.176, (-1, 0, 1, 2), (0, 1, 1, 1))
    """
    rates = listed("rank_acceptance", rank_acceptance, "rank")
    for number, rate in enumerate(rates):
        check("p_correct", rate, f"rank_acceptance[{number}]")
        if getattr(rate, "shape", ()) or is_unknown(rate):
            raise InvalidInputError(
                f"rank_acceptance must hold numbers; got {rate!r} at index {number}; "
                "a tree is chosen for one acceptance vector"
            )
    rates = [float(rate) for rate in rates]
    fix = "give for each rank the probability that this guess is right"
    require(sum(rates), "rank_acceptance must add up to at most 1", fix, lambda q: q <= 1 + 1e-9)
    size = positive_integer("nodes", nodes)
    if size > MOST_NODES:
        raise InvalidInputError(
            f"nodes must not exceed {MOST_NODES}; got {size}; no target verifies that many at once"
        )
    levels = size if depth is None else positive_integer("depth", depth)
    return _TreeProgram(rates[:size], size, levels).tree()


class _TreeProgram:
    """Dynamic program: tables of the best value by nodes, levels and first rank."""

    def __init__(self, rates: list[float], size: int, levels: int) -> None:
        import numpy as np

        self.size = size
        #: value[l][n-1]: best tokens of a subtree of at most n nodes and l levels below its root
        value = [np.ones(size)]
        #: given[l][b][m]: nodes for the child of rank b, of m left for ranks b, b+1, ...
        self.given: list[list[Any]] = [[]]
        for _ in range(levels):
            rest, choices = np.zeros(size), []
            for rate in reversed(rates):
                rest, choice = self._best_split(rate * value[-1], rest)
                choices.append(choice)
            self.given.append(choices[::-1])
            value.append(1 + rest)
            if np.array_equal(value[-1], value[-2]):  # deeper trees are no better
                break
        self.best = float(value[-1][-1])
        self.levels = len(value) - 1

    def _best_split(self, child: Any, rest: Any) -> tuple[Any, Any]:
        """Best value and nodes x of this rank's child (0: no child), for m = 0...size-1 nodes."""
        import numpy as np

        best, choice = np.zeros(self.size), np.zeros(self.size, dtype=int)
        for m in range(1, self.size):
            values = child[:m] + rest[m - 1 :: -1]
            x = int(np.argmax(values))
            if values[x] > best[m]:
                best[m], choice[m] = values[x], x + 1
        return best, choice

    def tree(self) -> DraftTree:
        """Build the best tree by backtracking from the root."""
        parents, ranks = [-1], [0]
        pending = [(0, self.size - 1, self.levels)]
        for node, nodes, levels in pending:
            left = nodes
            for rank, choice in enumerate(self.given[levels], start=1):
                given = int(choice[left])
                if given == 0:
                    break
                pending.append((len(parents), given - 1, levels - 1))
                parents.append(node)
                ranks.append(rank)
                left -= given
        return DraftTree(self.best, tuple(parents), tuple(ranks))
