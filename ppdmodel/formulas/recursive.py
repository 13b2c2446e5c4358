"""What is a recursion and not an expression: several exits, and draft trees.

Several exits run on floats, NumPy arrays, torch tensors and SymPy symbols too, but are no closed
forms in the sense of `contract`. A draft tree is for numbers.
"""

from __future__ import annotations

import heapq
import itertools
import math
import operator
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from .. import ops
from ..checks import positive_integer
from ..errors import InvalidInputError
from ..ops import Operand
from .contract import as_real, check, check_kinds, check_order, is_unknown, require

#: one operand per exit: a list, or an array or tensor of shape [exits, ...]
Operands: TypeAlias = Any


def multi_exit_latency(first_match: Operands, layers: Operand, exit_layers: Operands) -> Operand:
    r"""Mean time between tokens with several exits and unlimited depth, in layer times.

    $\Lambda = d - \sum_{j=1}^{m} q_j\,(d - e_j)$.

    Args:
        first_match: q_1...q_m, probability that exit j is the first whose guesses hold the next
            token; each in [0, 1], of any shape, adding up to 1 at most.
        layers: d, decoder layers; positive.
        exit_layers: e_1 < ... < e_m, each in (0, d].

    Returns:
        Latency per token in layer times, broadcast over the elements.

    Raises:
        InvalidInputError: an argument is outside its domain, or not one value per exit.

    Source:
        theory/06-exits-and-gates.md, equation (6.1). For a depth D >= d/e_1 - 1.

    >>> round(multi_exit_latency([0.3, 0.4], 40, [10, 20]), 4)
    23.0
    """
    rates, exits = _checked_exits(first_match, layers, exit_layers)
    saved: Operand = 0
    for rate, exit_layer in zip(rates, exits, strict=True):
        saved = saved + rate * (layers - exit_layer)
    return layers - saved


def multi_exit_compute(
    first_match: Operands,
    layers: Operand,
    exit_layers: Operands,
    k: Operands,
    depth: int | None = None,
) -> Operand:
    r"""Mean layer executions per token with several exits and unlimited depth.

    $C = d + \sum_{j=1}^{m} (k_j - q_j)\,W(d - e_j)$ with $W(t) = t + \sum_j k_j\,W(t - e_j)$ for
    $t > 0$, else 0.

    Args:
        first_match: q_1...q_m, as in `multi_exit_latency`.
        layers: d, decoder layers; positive.
        exit_layers: e_1 < ... < e_m, each in (0, d].
        k: k_1...k_m, new guesses started at each exit, all distinct; each >= 0, and a mean where
            their number varies, if no sub-process starts any (2 e_1 >= d).
        depth: None for unlimited; for symbols, the generations D of sub-processes that fit, which
            means d <= (D+1) e_1.

    Returns:
        Layer executions per token; `inf` where they are too many for a float.

    Raises:
        InvalidInputError: an argument is outside its domain, not one value per exit, or a depth
            that would hold processes back, which no closed form here covers: `simulate` does.

    Source:
        theory/06-exits-and-gates.md, equations (6.2) and (6.3).

    >>> round(multi_exit_compute([0.3, 0.4], 40, [10, 20], [1, 2]), 4)
    144.0
    """
    rates, exits = _checked_exits(first_match, layers, exit_layers)
    guesses = _one_per_exit("k", k, len(exits))
    for number, value in enumerate(guesses):
        require(value, f"k[{number}] must be at least 0", "give new guesses", lambda x: x >= 0)
    generations = _generations(layers, exits[0], depth)
    compute = layers
    try:
        for number, rate in enumerate(rates):
            family = _family_work(layers, exits, guesses, number, generations)
            compute = compute + (guesses[number] - rate) * family
    except OverflowError:
        return math.inf
    return compute


def _family_work(
    layers: Operand,
    exits: list[Operand],
    k: list[Operand],
    first_exit: int,
    generations: float,
) -> Operand:
    """W(d - e_j): how many processes have how much time left, those with the most first.

    In numbers, processes with equal time left are one entry. Otherwise the exits that a line of
    processes has taken say how much is left, and the generations end it.
    """
    left = layers - exits[first_exit]
    if all(isinstance(x, (int, float)) for x in (left, *exits)):
        return _family_work_in_numbers(left, exits, k)
    executed: Operand = 0
    alive = {_one_more((0,) * len(exits), first_exit): (left, 1)}
    generation = 1
    while alive and generation <= generations:
        following: dict[tuple[int, ...], tuple[Operand, Operand]] = {}
        for starts, (left, processes) in alive.items():
            if _all_spent(left):
                continue
            executed = executed + processes * ops.maximum(left, 0)
            for number, (exit_layer, guesses) in enumerate(zip(exits, k, strict=True)):
                later = _one_more(starts, number)
                _, known = following.get(later, (None, 0))
                following[later] = (left - exit_layer, known + processes * guesses)
        alive = following
        generation += 1
    return executed


def _family_work_in_numbers(left: float, exits: list[float], k: list[Operand]) -> Operand:
    processes: dict[float, Operand] = {left: 1}
    waiting = [-left]
    executed: Operand = 0
    while waiting:
        left = -heapq.heappop(waiting)
        number = processes.pop(left)
        if left <= 0:
            continue
        executed = executed + number * left
        for exit_layer, guesses in zip(exits, k, strict=True):
            later = left - exit_layer
            if later > 0 and later not in processes:
                processes[later] = 0
                heapq.heappush(waiting, -later)
            if later > 0:
                processes[later] = processes[later] + number * guesses
    return executed


def _one_more(starts: tuple[int, ...], number: int) -> tuple[int, ...]:
    return tuple(times + (i == number) for i, times in enumerate(starts))


def _all_spent(left: Operand) -> bool:
    """Whether no element has time left; symbols always may."""
    if is_unknown(left):
        return False
    spent = left <= 0
    return bool(spent.all()) if hasattr(spent, "all") else bool(spent)


def _generations(layers: Operand, first_exit: Operand, depth: int | None) -> float:
    if depth is not None:
        positive_integer("depth", depth, "use None for unlimited")
        if not (is_unknown(layers) or is_unknown(first_exit)):
            require(
                depth,
                "depth must not hold processes back (at least layers/exit_layers[0] - 1)",
                "use None for unlimited, or simulate",
                lambda n: (n + 1) * first_exit >= layers,
            )
        return depth
    if is_unknown(layers) or is_unknown(first_exit):
        raise InvalidInputError(
            "depth must be given for symbolic layers or exits; got None; "
            "give the D for which layers <= (D+1) * exit_layers[0]"
        )
    return math.inf


def _checked_exits(
    first_match: Operands, layers: Operand, exit_layers: Operands
) -> tuple[list[Operand], list[Operand]]:
    """The rates and the exits as lists, in their domains and in order."""
    check("layers", layers)
    exits = _one_per_exit("exit_layers", exit_layers, None)
    for number, exit_layer in enumerate(exits):
        check("exit_layer", exit_layer, f"exit_layers[{number}]")
    for number, (before, after) in enumerate(itertools.pairwise(exits)):
        if not any(is_unknown(x) for x in (before, after)):
            must = f"exit_layers[{number + 1}] must be larger than exit_layers[{number}]"
            require(after, must, "give the exits in order", partial(operator.lt, before))
    check_order(exits[-1], layers)
    rates = _one_per_exit("first_match", first_match, len(exits))
    named = {f"first_match[{n}]": x for n, x in enumerate(rates)}
    check_kinds(named | {f"exit_layers[{n}]": x for n, x in enumerate(exits)} | {"layers": layers})
    for number, rate in enumerate(rates):
        check("p_correct", rate, f"first_match[{number}]")
    if not any(is_unknown(rate) for rate in rates):
        total: Operand = sum(rates)
        fix = "give the probabilities that exit j is the first to hold the next token"
        require(total, "first_match must add up to at most 1", fix, lambda q: q <= 1 + 1e-9)
    return rates, exits


def _one_per_exit(name: str, values: Any, exits: int | None) -> list[Operand]:
    """`values` as a list with one element per exit."""
    given = _listed(name, values, "exit")
    if exits is not None and len(given) != exits:
        raise InvalidInputError(
            f"{name} must have one value per exit; got {len(given)}; "
            f"give as many as exit_layers, {exits}"
        )
    return given


def _listed(name: str, values: Any, what: str) -> list[Operand]:
    """`values` as a list with an element for each exit or rank."""
    if isinstance(values, (str, bytes, Mapping, Set)) or not getattr(values, "shape", (1,)):
        given = None
    else:
        given = list(values) if hasattr(values, "__len__") else None
    if not given:
        raise InvalidInputError(
            f"{name} must have one value per {what}; got {values!r}; give a list, also of one"
        )
    return [as_real(x.to_numpy() if hasattr(x, "to_numpy") else x) for x in given]


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


def draft_tree(rank_acceptance: Sequence[float], nodes: int, depth: int | None = None) -> DraftTree:
    r"""The tree of at most so many nodes and levels whose round yields the most tokens.

    A node's guess of rank b is the true next token with probability p_b, if the node itself is
    right. So a round yields $\tau = \sum_v \prod p_{\mathrm{rank}}$ along the path from the root
    to v, summed over all nodes, the root counting 1. A dynamic program over nodes and levels finds
    the best tree; a node's guesses are taken in the order of their ranks, none left out.

    Args:
        rank_acceptance: p_1...p_b, for each rank the probability that this guess is right; each in
            [0, 1], adding up to 1 at most.
        nodes: most nodes of the tree, its root included; a positive integer.
        depth: most drafted levels below the root; a positive integer, or None.

    Returns:
        The tree and its tokens per round, for `tree_speculative_latency` and `..._compute`.

    Raises:
        InvalidInputError: an argument is outside its domain.

    Source:
        theory/08-other-methods.md, equation (8.14). The positional acceptance model and its dynamic
        program are those of Sequoia, arXiv 2402.12374. Time grows as depth x ranks x nodes squared.

    >>> tree = draft_tree([0.6, 0.2, 0.1], nodes=4)
    >>> round(tree.tokens_per_round, 4), tree.parents, tree.ranks
    (2.176, (-1, 0, 1, 2), (0, 1, 1, 1))
    """
    rates = _listed("rank_acceptance", rank_acceptance, "rank")
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
    levels = size - 1 if depth is None else min(positive_integer("depth", depth), size - 1)
    return _TreeProgram(rates[: max(size - 1, 1)], size, levels).tree()


class _TreeProgram:
    """Tables of the best value with at most n nodes, by levels and by the first rank in use."""

    def __init__(self, rates: list[float], size: int, levels: int) -> None:
        import numpy as np

        self.rates, self.size = rates, size
        #: value[l][n]: best tokens of a subtree of at most n nodes and l levels below its root
        value = [np.array([0.0] + [1.0] * size)]
        #: given[l][b][m]: nodes for the child of rank b, of m left for ranks b, b+1, ...
        self.given: list[list[Any]] = [[]]
        for _ in range(levels):
            rest, choices = np.zeros(size), []
            for rate in reversed(rates):
                rest, choice = self._best_split(rate * value[-1], rest)
                choices.append(choice)
            self.given.append(choices[::-1])
            value.append(np.concatenate([[0.0], 1 + rest]))
            if np.array_equal(value[-1], value[-2]):  # deeper trees are no better
                break
        self.best = float(value[-1][size])
        self.levels = len(value) - 1

    def _best_split(self, child: Any, rest: Any) -> tuple[Any, Any]:
        """For m = 0...size-1 nodes: the child of this rank gets x >= 1 of them, or all end here."""
        import numpy as np

        best, choice = np.zeros(self.size), np.zeros(self.size, dtype=int)
        for m in range(1, self.size):
            values = child[1 : m + 1] + rest[m - 1 :: -1]
            x = int(np.argmax(values))
            if values[x] > best[m]:
                best[m], choice[m] = values[x], x + 1
        return best, choice

    def tree(self) -> DraftTree:
        """Follow the choices from the root."""
        parents, ranks = [-1], [0]
        pending = [(0, self.size - 1, self.levels)]
        for node, nodes, levels in pending:
            left = nodes
            for rank in range(len(self.rates) if levels else 0):
                given = int(self.given[levels][rank][left])
                if given == 0:
                    break
                parents.append(node)
                ranks.append(rank + 1)
                pending.append((len(parents) - 1, given - 1, levels - 1))
                left -= given
        return DraftTree(self.best, tuple(parents), tuple(ranks))
