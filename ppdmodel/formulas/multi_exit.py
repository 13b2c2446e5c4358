"""PPD with several exits and unlimited depth: recursions over the exits.

They run on floats, NumPy arrays, torch tensors and SymPy symbols. They are not registered
as closed forms and check their own arguments.
"""

from __future__ import annotations

import heapq
import itertools
import math
import operator
import sys
from functools import partial
from typing import Any, TypeAlias

from ..checks import positive_integer
from ..errors import InvalidInputError
from . import ops
from .contract import check, check_kinds, check_order, is_unknown, listed, quiet, require
from .ops import Operand
from .registry import recursion

#: one operand per exit: a list, or an array or tensor of shape [exits, ...]
Operands: TypeAlias = Any


@recursion(equation="6.1", page="06-exits-and-gates")
def multi_exit_latency(first_match: Operands, layers: Operand, exit_layers: Operands) -> Operand:
    r"""Mean time between tokens with several exits and unlimited depth, in layer times.

    $\Lambda = d - \sum_{j=1}^{m} q_j\,(d - e_j)$.

    For a depth D >= d/e_1 - 1.

    Args:
        first_match: q_1...q_m, probability that exit j is the first whose guesses contain the next
            token; each in [0, 1], of any shape, adding up to 1 at most.
        layers: d, decoder layers; positive.
        exit_layers: e_1 < ... < e_m, each in (0, d].

    Returns:
        Latency per token in layer times, broadcast over the elements.

    Raises:
        InvalidInputError: an argument is outside its domain, or not one value per exit.

    >>> round(multi_exit_latency([0.3, 0.4], 40, [10, 20]), 4)
    23.0
    """
    rates, exits = _checked_exits(first_match, layers, exit_layers)
    saved: Operand = 0
    for rate, exit_layer in zip(rates, exits, strict=True):
        saved = saved + rate * (layers - exit_layer)
    return layers - saved


@recursion(equation="6.2", page="06-exits-and-gates")
def multi_exit_compute(
    first_match: Operands,
    layers: Operand,
    exit_layers: Operands,
    k: Operands,
    depth: int | None = None,
) -> Operand:
    r"""Mean layer executions per token with several exits and unlimited depth.

    $C = d + \sum_{j=1}^{m} (k_j - q_j)\,W(d - e_j)$ with $W(t) = t + \sum_j k_j\,W(t - e_j)$ for
    $t > 0$, else 0: (6.3).

    Args:
        first_match: q_1...q_m, as in `multi_exit_latency`.
        layers: d, decoder layers; positive.
        exit_layers: e_1 < ... < e_m, each in (0, d].
        k: k_1...k_m, new guesses started at each exit, all distinct; each >= 0. A mean is exact
            where sub-processes start no guesses (2 e_1 >= d).
        depth: None for unlimited; for symbols, a D with d <= (D+1) e_1, the most generations of
            sub-processes.

    Returns:
        Layer executions per token; `inf` where the number overflows a float.

    Raises:
        InvalidInputError: an argument is outside its domain, not one value per exit, or a depth
            that delays processes, which only `simulate` covers.

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
        with quiet([layers, *exits, *rates, *guesses]):
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
    """W(d - e_j), summed over processes grouped by their remaining layers.

    For arrays and symbols, processes are grouped by how often their line of ancestors started at
    each exit, one generation after another.
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
            executed = executed + processes * ops.maximum(left, 0)
            for number, (exit_layer, guesses) in enumerate(zip(exits, k, strict=True)):
                later = _one_more(starts, number)
                _, known = following.get(later, (None, 0))
                rest, count = left - exit_layer, known + processes * guesses
                following[later] = (rest, _finite(count, rest))
        alive = {starts: (x, n) for starts, (x, n) in following.items() if not _all_spent(x)}
        generation += 1
    return executed


def _family_work_in_numbers(left: float, exits: list[float], k: list[Operand]) -> Operand:
    processes: dict[float, Operand] = {left: 1}
    waiting = [-left]
    executed: Operand = 0
    while waiting:
        left = -heapq.heappop(waiting)
        number = processes.pop(left)
        executed = executed + number * left
        for exit_layer, guesses in zip(exits, k, strict=True):
            later = left - exit_layer
            if later > 0:
                if later not in processes:
                    heapq.heappush(waiting, -later)
                processes[later] = processes.get(later, 0) + number * guesses
    return executed


def _one_more(starts: tuple[int, ...], number: int) -> tuple[int, ...]:
    return tuple(times + (i == number) for i, times in enumerate(starts))


def _finite(count: Operand, left: Operand) -> Operand:
    """At most the largest float, which times no layers is 0; beside symbols as it is."""
    if ops.is_symbolic(count) or ops.is_symbolic(left):
        return count
    return 1.0 * ops.minimum(count, sys.float_info.max)


def _all_spent(left: Operand) -> bool:
    """Whether no element has time left; False for symbols."""
    spent = False if is_unknown(left) else left <= 0
    return bool(spent.all() if hasattr(spent, "all") else spent)


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
    given = listed(name, values, "exit")
    if exits is not None and len(given) != exits:
        raise InvalidInputError(
            f"{name} must have one value per exit; got {len(given)}; "
            f"give as many as exit_layers, {exits}"
        )
    return given
