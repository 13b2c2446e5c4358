"""The Markov chain that the recursion (1.1) defines, solved exactly: nothing else is used.

Its state is what (1.1) remembers: the last D differences of start times, and whether the last token
matched. Layers and exits are numbers; the match rate, k and the autocorrelation are symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy
from sympy.polys.matrices import DomainMatrix

State = tuple[tuple[int, ...], bool]

p, k, rho = sympy.symbols("p k rho", positive=True)
POLYNOMIALS = sympy.QQ[p, rho]


@dataclass(frozen=True)
class Schedule:
    """A schedule in numbers."""

    d: int
    e: int
    depth: int

    def next_lag(self, lags: tuple[int, ...], match: bool) -> int:
        """S_{i+1} - S_i by (1.1); F_{i-D} = S_i - (the last D lags) + d."""
        return max(self.e, self.d - sum(lags)) if match else self.d

    def dropped_family(self, lags: tuple[int, ...]) -> Any:
        """What a wrong sub-process of token i and its descendants execute until F_i.

        Generation g starts at max(tau_{g-1} + e, F_{i-j}), j = D+1-g, counted from S_i.
        """
        total, start = sympy.Integer(0), 0
        for g in range(1, self.depth + 1):
            verified = self.d - sum(lags[: self.depth + 1 - g])
            start = max(start + self.e, verified)
            total += k ** (g - 1) * max(self.d - start, 0)
        return total


def follow(schedule: Schedule, state: State, match: bool) -> State:
    """The state after the next token."""
    lags, _ = state
    return (schedule.next_lag(lags, match), *lags[:-1]), match


@cache
def steady_state(schedule: Schedule, autocorrelation: Any = 0) -> dict[State, Any]:
    """The long-run probability of each state."""
    start: State = ((schedule.d,) * schedule.depth, False)
    states, pending = [start], [start]
    while pending:
        state = pending.pop()
        for match in (True, False):
            after = follow(schedule, state, match)
            if after not in states:
                states.append(after)
                pending.append(after)
    number = {state: i for i, state in enumerate(states)}
    balance = -sympy.eye(len(states))
    for state in states:
        rate = match_rate(state, autocorrelation)
        for match, probability in ((True, rate), (False, 1 - rate)):
            balance[number[follow(schedule, state, match)], number[state]] += probability
    balance[0, :] = sympy.ones(1, len(states))  # the probabilities add up to 1
    right = sympy.Matrix([1] + [0] * (len(states) - 1))
    matrix, column = (DomainMatrix.from_Matrix(x).convert_to(POLYNOMIALS) for x in (balance, right))
    above, below = matrix.solve_den(column, method="rref")
    solution = above.to_Matrix() / POLYNOMIALS.to_sympy(below)
    return {state: solution[i] for state, i in number.items()}


def equal(one: Any, other: Any) -> bool:
    """Whether two fractions of polynomials are the same, exactly."""
    symbols = {p, k, rho} | one.free_symbols | other.free_symbols
    field = sympy.QQ.frac_field(*sorted(symbols, key=str))
    return not field.from_sympy(one) - field.from_sympy(other)


def match_rate(state: State, autocorrelation: Any) -> Any:
    """Probability that the next token matches."""
    return p + autocorrelation * (1 - p) if state[1] else p * (1 - autocorrelation)


def latency(schedule: Schedule, autocorrelation: Any = 0) -> Any:
    """The long-run mean of S_{i+1} - S_i."""
    total = 0
    for state, weight in steady_state(schedule, autocorrelation).items():
        rate = match_rate(state, autocorrelation)
        steps = (schedule.next_lag(state[0], match) for match in (True, False))
        hit, miss = steps
        total += weight * (rate * hit + (1 - rate) * miss)
    return total


def compute(schedule: Schedule, autocorrelation: Any = 0) -> Any:
    """d and the long-run mean of (k - match) dropped families."""
    total = sympy.Integer(schedule.d)
    for state, weight in steady_state(schedule, autocorrelation).items():
        rate = match_rate(state, autocorrelation)
        total += weight * (k - rate) * schedule.dropped_family(state[0])
    return total


#: limited depth that binds, limited depth that does not, the edge between, e = d
SCHEDULES = [
    Schedule(8, 1, 1), Schedule(8, 3, 1), Schedule(8, 4, 1), Schedule(9, 5, 1), Schedule(6, 6, 1),
    Schedule(10, 1, 2), Schedule(9, 3, 2), Schedule(10, 2, 2), Schedule(11, 1, 3),
    Schedule(9, 2, 3),
]  # fmt: skip
