"""Differences of match rates where they are known to be there, and where they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppdmodel import differences, save
from ppdmodel.cli import run
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement


def noisy(seed: int, shift: float = 0.0, prompts: int = 20) -> Measurement:
    """Ranks of 1 or 9 at a rate that differs from prompt to prompt."""
    rng = np.random.default_rng(seed)
    base = make_measurement(prompts=prompts, tokens=60, layers=8)
    rate = np.clip(0.4 + shift + rng.normal(0, 0.05, prompts), 0, 1)[base.prompt_index]
    rank = np.where(rng.random(base.rank.shape) < rate[:, None], 1, 9)
    return replace(base, rank=rank)


def renamed(measurement: Measurement) -> Measurement:
    return replace(measurement, prompt_ids=tuple(f"q{n}" for n in range(20)))


def test_numbers_are_those_of_the_counts() -> None:
    one, other = noisy(0), noisy(1, 0.1)
    result = differences([one, other], relative_depths=(0.5, 0.8125), ks=(1, 9), names=["a", "b"])
    assert (result.first, result.groups, result.paired) == ("a", ("b",), (True,))
    assert len(result.rows) == 4
    middle = result.rows[0]
    assert middle.p_first == pytest.approx((one.rank[:, 3] <= 1).mean())
    assert middle.p_correct == pytest.approx((other.rank[:, 3] <= 1).mean())
    assert middle.difference.value == pytest.approx(middle.p_correct - middle.p_first)
    between = result.rows[2]  # layer 6.5 of 8
    assert between.p_first == pytest.approx((one.rank[:, 5:7] <= 1).mean())
    assert result.rows[1].difference.value == 0, "every token is among nine"
    assert not result.rows[1].differs


def test_what_differs_is_found_and_what_does_not_is_not() -> None:
    result = differences([noisy(0), renamed(noisy(1, 0.15))], names=["a", "b"])
    assert result.paired == (False,)
    assert all(row.differs for row in result.rows)
    false = sum(
        any(row.differs for row in differences([noisy(s), renamed(noisy(s + 500))]).rows)
        for s in range(60)
    )
    assert false <= 9, "5% of 60, and no more than chance allows"


def test_the_same_prompts_are_compared_with_themselves() -> None:
    """What is hard for both cancels out: the interval is narrower than that of other prompts."""
    base = noisy(3)
    easier = replace(base, rank=np.where(np.arange(base.n_tokens)[:, None] % 20 == 0, 1, base.rank))
    paired = differences([base, easier]).rows[0].difference
    apart = differences([base, renamed(easier)]).rows[0].difference
    assert paired.ci_high - paired.ci_low < 0.6 * (apart.ci_high - apart.ci_low)


def test_categories_are_beside_all() -> None:
    base = noisy(4)
    categories = tuple("ab"[n % 2] for n in range(20))
    odd = base.prompt_index % 2 == 1
    rank = np.where(odd[:, None], base.rank, 9)
    result = differences([replace(base, rank=rank, categories=categories)], by_category=True)
    assert result.first == "all"
    assert result.groups == ("a", "b")
    by_name = {row.name: row for row in result.rows if row.k == 1}
    assert by_name["a"].p_correct == 0
    assert by_name["a"].differs
    assert by_name["b"].differs


def test_categories_that_mean_nothing_hardly_ever_differ() -> None:
    """Even of three prompts each: the limit comes from shuffling, not from a normal tail."""
    false = 0
    for seed in range(40):
        base = noisy(seed, prompts=21)
        categories = tuple("abcdefg"[n % 7] for n in range(21))
        result = differences([replace(base, categories=categories)], by_category=True)
        false += any(row.differs for row in result.rows)
    assert false <= 6, "5% of 40, and no more than chance allows"


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = noisy(0)
    with pytest.raises(InvalidInputError, match="needs two groups; got 1"):
        differences([one])
    with pytest.raises(InvalidInputError, match="categories are those of one measurement; got 2"):
        differences([one, one], by_category=True)
    with pytest.raises(InvalidInputError, match=r"relative depths must lie in \(0, 1\]; got 1.5"):
        differences([one, one], relative_depths=(1.5,))
    with pytest.raises(InvalidInputError, match="k must be a positive integer; got 0"):
        differences([one, one], ks=(0,))
    save(one, tmp_path / "m")
    save(noisy(1, 0.2), tmp_path / "n")
    assert run(["differ", str(tmp_path / "m"), str(tmp_path / "n")]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "Different: n." in out
    assert run(["differ", str(tmp_path / "m")]) == 2
    assert run(["differ", str(tmp_path / "m"), str(tmp_path / "n"), "--json"]) == 0
