"""The values that the columns of a measurement's tables may have.

What fields of a JSON file may hold stands in `ppdmodel/results/schemas`; how the fields of one
file must fit together, beside the reader of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .measurement import NO_RANK, Guesses, Measurement

if TYPE_CHECKING:
    from .._types import Bools

#: rounding of a sum of probabilities in single precision, and of stored ones in half precision
SUM_ROUNDING, HALF_ROUNDING = 1e-4, 2e-3


@dataclass(frozen=True)
class Fault:
    """The first value of a table that is not allowed.

    Attributes:
        rule: what must hold.
        got: what the table holds.
        column: the column; of several exit layers or guesses, which one.
        row: its row, from 0.
    """

    rule: str
    got: str
    column: str
    row: int


def measurement_fault(table: Measurement) -> Fault | None:
    """The first value of a measurement that no run can have made; None if there is none."""
    return next(_of_measurement(table), None)


def guesses_fault(table: Guesses) -> Fault | None:
    """The first value of a table of guesses that no run can have made; None if there is none."""
    return next(_of_guesses(table), None)


def _of_measurement(table: Measurement) -> Iterator[Fault]:
    size = table.vocabulary
    yield from _keys(table)
    most = None if size is None else size - 1
    yield from _between("token_id", table.token_id, 0, most)
    for text, ids in enumerate(table.context_ids or ()):
        for fault in _between("context_ids", ids, 0, most):
            yield replace(fault, row=int(table.starts()[text]))
    yield from _ranks("rank", table.rank, table)
    yield from _between("prob", table.top_prob, 0, 1 + SUM_ROUNDING)
    if table.coupled_rank is not None:
        yield from _ranks("coupled", table.coupled_rank, table)


def _ranks(column: str, ranks: Any, table: Measurement) -> Iterator[Fault]:
    """Ranks beyond the vocabulary, or at an exit beyond its shortlist; tokens in part ranked."""
    if not table.has_shortlist or not ranks.size:
        yield from _between(column, ranks, 1, table.vocabulary)
        return
    own, exits = np.ones_like(ranks), ranks[:, :-1]
    own[:, -1] = ranks[:, -1]
    yield from _between(column, own, 1, table.vocabulary)
    unscored = exits == NO_RANK
    yield from _between(column, np.where(unscored, 1, exits), 1, table.recorded_k)
    wrong = unscored != (table.rank[:, :1] == NO_RANK)
    rule = "a token must be ranked by every exit, or by none (0)"
    yield from _first(rule, column, wrong, np.where(unscored, 0, exits))


def _of_guesses(table: Guesses) -> Iterator[Fault]:
    yield from _keys(table)
    yield from _between("ids", table.ids, -1, table.vocabulary - 1)
    yield from _between("probs", table.probs, 0, 1)
    if table.ids.shape[2] < 2:
        return
    rising = np.asarray((np.diff(table.probs, axis=2) > 0).any(2))
    yield from _first("probabilities must fall from guess to guess", "probs", rising, table.probs)
    total = table.probs.astype(np.float64).sum(2)
    above = np.asarray(total > 1 + HALF_ROUNDING)
    yield from _first("probabilities of one token must add up to at most 1", "probs", above, total)
    ids = np.sort(table.ids, axis=2)
    twice = ((ids[:, :, 1:] == ids[:, :, :-1]) & (ids[:, :, 1:] >= 0)).any(2)
    yield from _first("the guesses of one token must differ", "ids", twice, table.ids)


def _keys(table: Measurement | Guesses) -> Iterator[Fault]:
    """Rows are in the order of prompts, turns and positions, and none is missing or there twice."""
    prompt, turn, position = table.prompt_index, table.turn, table.position
    yield from _between("turn", turn, 0, None)
    yield from _between("position", position, 0, None)
    if not len(prompt):
        return
    same_prompt = prompt[1:] == prompt[:-1]
    names = np.array(table.prompt_ids, dtype=object)[prompt]
    rule = "the rows of a prompt must be together"
    yield from _first(rule, "prompt_id", _later(prompt[1:] < prompt[:-1]), names)
    rule = "turns of a prompt must follow each other"
    yield from _first(rule, "turn", _later(same_prompt & (turn[1:] < turn[:-1])), turn)
    same_text = same_prompt & (turn[1:] == turn[:-1])
    expected = np.zeros(len(position), dtype=np.int64)
    expected[1:] = np.where(same_text, position[:-1] + 1, 0)
    rule = "positions of a text must count from 0"
    yield from _first(rule, "position", position != expected, position)


def _later(flags: Bools) -> Bools:
    """Flags of rows 1 and on, as flags of all."""
    return np.concatenate([[False], flags])


def _between(column: str, values: Any, low: float, high: float | None) -> Iterator[Fault]:
    """A value outside [low, high], or NaN; whole arrays are looked at in two passes."""
    if not values.size:
        return
    least, most = values.min(), values.max()
    if least >= low and (high is None or most <= high):  # false of NaN
        return
    wrong = ~(values >= low) if high is None else ~((values >= low) & (values <= high))
    limits = f"at least {low}" if high is None else f"from {low} to {high:.0f}"
    yield from _first(f"{column} must be {limits}", column, wrong, values)


def _first(rule: str, column: str, wrong: Bools, values: Any) -> Iterator[Fault]:
    """The first flagged value; the second axis of several is the exit layer."""
    places = np.argwhere(wrong)
    if len(places):
        row, *inner = (int(index) for index in places[0])
        got = values[(row, *inner)]
        shown = ", ".join(_shown(one) for one in np.atleast_1d(got).tolist())
        where = f"{column} of exit layer {inner[0] + 1}" if inner else column
        yield Fault(rule, shown, where, row)


def _shown(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
