"""Event simulator of PPD: processes as objects, one layer a tick, no formula.

It follows the schedule of theory/01-setting.md word for word and knows none of the closed forms, so
that it can contradict them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .checks import check_schedule, positive_integer
from .errors import InvalidInputError
from .formulas.contract import check
from .results import Simulation


class _Process:
    """One run of the decoder on one token: true, or a guess that will be dropped."""

    __slots__ = ("children", "is_true", "layer", "parent", "token")

    def __init__(self, token: int, parent: _Process | None, is_true: bool) -> None:
        self.token = token
        self.parent = parent
        self.is_true = is_true
        self.layer = 0
        self.children: list[_Process] = []

    def unverified_ancestors(self) -> int:
        count, ancestor = 0, self.parent
        while ancestor is not None:
            count, ancestor = count + 1, ancestor.parent
        return count

    def family(self) -> list[_Process]:
        """This process and its descendants, parents first."""
        found = [self]
        for process in found:
            found.extend(process.children)
        return found


def simulate(
    p_correct: float,
    layers: int,
    exit_layer: int,
    k: int = 1,
    depth: int | None = 1,
    *,
    tokens: int = 1000,
    seed: int = 0,
) -> Simulation:
    """Generate `tokens` tokens by PPD, tick by tick, with independent matches.

    Args:
        p_correct: probability that a true process's guesses hold the next token; in [0, 1].
        layers: decoder layers d; a positive integer.
        exit_layer: exit layer e; an integer, 1 <= e <= d.
        k: guesses per exit; a positive integer.
        depth: tokens in flight beyond the one being verified; a positive integer or None.
        tokens: tokens to generate; a positive integer.
        seed: seed of the matches.

    Returns:
        When each token was verified and what had been executed by then, in layer times and layer
        executions, and the most processes that ran at once.

    Raises:
        InvalidInputError: an argument is outside its domain.

    Source:
        theory/01-setting.md.

    >>> simulate(1.0, layers=4, exit_layer=2, tokens=3).finish_times
    (4, 6, 8)
    """
    check("p_correct", p_correct)
    rng = random.Random(seed)
    positive_integer("tokens", tokens)
    matches = [rng.random() < p_correct for _ in range(tokens - 1)]
    return simulate_matches(matches, layers, exit_layer, k, depth)


def simulate_matches(
    matches: Sequence[bool], layers: int, exit_layer: int, k: int = 1, depth: int | None = 1
) -> Simulation:
    """Run the schedule on a given sequence of matches, one per token after the first.

    Args:
        matches: whether the guesses read while token i was made held token i+1, for i = 0, 1, ...
        layers: as `simulate`.
        exit_layer: as `simulate`.
        k: as `simulate`.
        depth: as `simulate`.

    Returns:
        The run, `len(matches) + 1` tokens long.

    Raises:
        InvalidInputError: an argument is outside its domain.

    >>> simulate_matches([True, False], layers=4, exit_layer=1).finish_times
    (4, 5, 9)
    """
    check_schedule(layers, exit_layer, k, depth)
    if any(match not in (True, False) for match in matches):
        raise InvalidInputError("matches must be true or false; got another value; give booleans")
    most_ancestors = len(matches) if depth is None else depth - 1
    root = _Process(0, None, is_true=True)
    live = [root]
    time = executed = peak = 0
    finish_times: list[int] = []
    work_done: list[int] = []
    while True:
        if root.layer == layers:
            finish_times.append(time)
            work_done.append(executed)
            if root.token == len(matches):
                break
            root = _promoted(root)
            live = root.family()
        for process in live:
            if (
                process.layer >= exit_layer
                and not process.children
                and process.token < len(matches)
                and process.unverified_ancestors() <= most_ancestors
            ):
                hit = process.is_true and matches[process.token]
                process.children = [
                    _Process(process.token + 1, process, is_true=hit and guess == 0)
                    for guess in range(k)
                ]
                live.extend(process.children)
        peak = max(peak, len(live))
        for process in live:
            if process.layer < layers:
                process.layer += 1
                executed += 1
        time += 1
    return Simulation(
        matches=tuple(bool(match) for match in matches),
        finish_times=tuple(finish_times),
        work_done=tuple(work_done),
        peak_units=peak,
    )


def _promoted(root: _Process) -> _Process:
    """The process that carries on after `root` is verified: its true child, or a fresh one."""
    for child in root.children:
        if child.is_true:
            child.parent = None
            return child
    return _Process(root.token + 1, None, is_true=True)
