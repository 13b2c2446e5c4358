"""Page 4: the total of a number of tokens, from all sequences through the recursion (1.1)."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import sympy

from ppdmodel import formulas
from ppdmodel.formulas import symbolic
from tests.theory.test_01_setting import recursion

p = symbolic.SYMBOLS["p_correct"]
CASES = [(8, 1, 1), (9, 2, 2), (11, 2, 3), (8, 5, 1), (9, 3, 2), (5, 5, 1)]


def polynomial(d: int, e: int, depth: int, tokens: int) -> dict[int, sympy.Expr]:
    """Total -> its probability as a polynomial in p, over all match sequences."""
    found: dict[int, sympy.Expr] = {}
    for matches in itertools.product([True, False], repeat=tokens - 1):
        total = recursion(list(matches), d, e, depth)[-1]
        hits = sum(matches)
        found[total] = found.get(total, 0) + p**hits * (1 - p) ** (tokens - 1 - hits)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [1, 2, 5, 8])
def test_the_mean_is_that_of_all_sequences(case: tuple[int, int, int], tokens: int) -> None:
    """(4.1), as polynomials in p."""
    d, e, depth = case
    mean = sum(t * weight for t, weight in polynomial(d, e, depth, tokens).items())
    formula = symbolic.expr(
        "expected_total_latency", layers=d, exit_layer=e, tokens=tokens, depth=depth
    )
    assert sympy.expand(mean - formula.doit()) == 0


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_counts_runs_and_rests(case: tuple[int, int, int]) -> None:
    """(4.2) and (4.3): the number of sequences with h hits and w whole groups."""
    d, e, depth = case
    size, trials = depth + 1, 8
    counted: Counter[tuple[int, int]] = Counter()
    for matches in itertools.product([True, False], repeat=trials):
        runs = [len(list(g)) for hit, g in itertools.groupby(matches) if hit]
        groups = sum(n // size for n in runs)
        counted[sum(matches), groups] += 1
        total = formulas.generation_time(d, e, trials + 1, sum(matches), groups, depth)
        assert recursion(list(matches), d, e, depth)[-1] == total
    x = sympy.Symbol("x")
    for (hits, groups), number in counted.items():
        misses = trials - hits
        rests = sympy.Poly(sum(x**r for r in range(size)) ** (misses + 1), x)
        ways = sympy.binomial(groups + misses, misses)
        assert number == ways * rests.coeff_monomial(x ** (hits - size * groups))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_mean_per_token_goes_to_the_latency(depth: int) -> None:
    size = depth + 1
    rate = (1 - p) * p**size / (1 - p**size)  # the geometric series of the page
    assert sympy.cancel(rate - p**size / sum(p**j for j in range(size))) == 0
    for d, e in ((20, 1), (20, 4), (7, 4)):
        total = formulas.expected_total_latency(0.6, d, e, 401, depth)
        steady = formulas.latency_per_token(0.6, d, e, depth)
        assert total / 401 == pytest.approx(steady, rel=0.01)
