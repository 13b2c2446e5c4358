"""Differences of match rates where they are known to be there, and where they are not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from ppdmodel import differences, save
from ppdmodel.cli import run
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.group_differences import (
    _bootstrap_critical_value,
    _categories,
    _group,
    _permutation_critical_value,
    _rates,
    _ratio_standard_error,
    _small_sample_factor,
)
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
    depths = (0.5, 0.8125, 1)
    result = differences([one, other], relative_depths=depths, ks=(1, 9), names=["a", "b"])
    assert (result.first, result.groups, result.paired) == ("a", ("b",), (True,))
    assert len(result.rows) == 6
    middle = result.rows[0]
    assert middle.p_first == pytest.approx((one.rank[:, 3] <= 1).mean())
    assert middle.p_correct == pytest.approx((other.rank[:, 3] <= 1).mean())
    assert middle.difference.value == pytest.approx(middle.p_correct - middle.p_first)
    between = result.rows[2]  # layer 6.5 of 8
    assert between.p_first == pytest.approx((one.rank[:, 5:7] <= 1).mean())
    assert result.rows[4].p_first == pytest.approx((one.rank[:, 7] <= 1).mean())
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
    with pytest.raises(InvalidInputError, match=r"relative_depth must lie in \(0, 1\]; got 1.5"):
        differences([one, one], relative_depths=(1.5,))
    for depth in (0, -0.5):
        with pytest.raises(InvalidInputError, match=rf"must lie in \(0, 1\]; got {depth}; 0.5 is"):
            differences([one, one], relative_depths=(depth,))
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


# ---------------------------------------------------------------- the statistics alone


@pytest.mark.parametrize(("prompts", "t"), [(2, 12.7062), (3, 4.30265), (20, 2.09302)])
def test_few_prompts_widen_as_students_t_and_bessels_correction(prompts: int, t: float) -> None:
    """Quantiles of tables; the bootstrap's deviation has n where that of a sample has n - 1."""
    expected = t / 1.959964 * (prompts / (prompts - 1)) ** 0.5
    assert _small_sample_factor(prompts) == pytest.approx(expected, rel=1e-4)


def test_many_prompts_need_no_widening() -> None:
    factors = [_small_sample_factor(n) for n in (2, 3, 5, 20, 100, 10_000)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(1, abs=1e-3)
    assert min(factors) > 1


def test_groups_of_few_prompts_need_a_larger_difference() -> None:
    """A difference of some three standard errors: enough for 40 prompts, too little for three."""

    def pair(prompts: int, off: float) -> list[Measurement]:
        base = make_measurement(prompts=prompts, tokens=40, layers=4)
        found = []
        for shift in (0.0, off):
            share = 0.5 + shift + 0.1 * (np.arange(prompts) % 3 - 1)
            place = base.position / 40 < share[base.prompt_index]
            found.append(replace(base, rank=np.where(place[:, None], 1, 9) + np.zeros(4, int)))
        names = tuple(f"q{n}" for n in range(prompts))
        return [found[0], replace(found[1], prompt_ids=names)]

    def standard_errors(off: float, prompts: int) -> float:
        return float(off / (2 * 2 / 3 * 0.1**2 / prompts) ** 0.5)

    many, few = 0.075, 0.275
    assert standard_errors(many, 39) == pytest.approx(4.06, abs=0.1)
    assert standard_errors(few, 3) == pytest.approx(4.13, abs=0.1)
    kwargs = {"relative_depths": (0.5,), "ks": (1,), "names": ["a", "b"]}
    assert differences(pair(39, many), **kwargs).rows[0].differs  # type: ignore[arg-type]
    assert not differences(pair(3, few), **kwargs).rows[0].differs  # type: ignore[arg-type]


def test_the_standard_error_of_a_rate() -> None:
    """Of prompts of equal length that of a mean; of others that of the linearized ratio."""
    rng = np.random.default_rng(0)
    rates = rng.random(9)
    equal = _ratio_standard_error((20 * rates)[:, None, None], np.full(9, 20.0))
    assert equal[0, 0] == pytest.approx(rates.std(ddof=1) / 3)
    tokens = rng.integers(5, 50, 9).astype(float)
    hits = np.floor(rates * tokens)
    ratio = hits.sum() / tokens.sum()
    linear = (hits - ratio * tokens) / tokens.mean()
    found = _ratio_standard_error(hits[:, None, None], tokens)[0, 0]
    assert found == pytest.approx(linear.std(ddof=1) / 3)
    assert _ratio_standard_error(np.full((4, 1, 1), 3.0), np.full(4, 3.0))[0, 0] == 1e-12
    stacked = _ratio_standard_error(
        np.stack([hits, hits[::-1]])[..., None, None], np.stack([tokens, tokens[::-1]])
    )
    assert stacked[:, 0, 0] == pytest.approx([found, found])


@pytest.mark.parametrize("tests", [1, 2, 12])
def test_the_critical_value_of_independent_tests_is_sidaks(tests: int) -> None:
    """Deviations of any size, around any value: only their number counts."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(1, tests, 1))
    scale = rng.uniform(0.1, 9, (1, tests, 1))
    draws = (values + scale * rng.normal(size=(100_000, tests, 1)))[None]
    expected = NormalDist().inv_cdf((1 + 0.95 ** (1 / tests)) / 2)
    assert _bootstrap_critical_value(values, draws) == pytest.approx(expected, rel=0.01)


def test_what_never_varies_is_no_test() -> None:
    rng = np.random.default_rng(2)
    draws = rng.normal(size=(1, 50_000, 2, 1))
    draws[:, :, 1] = 0.5
    values = np.array([[[0.0], [0.5]]])
    assert _bootstrap_critical_value(values, draws) == pytest.approx(1.96, rel=0.02)


def test_permutations_are_all_assignments_of_prompts_to_categories() -> None:
    """Of six prompts in two categories there are 20: so many that every one is drawn."""
    base = replace(noisy(5, prompts=6), categories=("a", "b") * 3)
    everyone, *groups = _categories([base], (0.25, 0.5), (1, 3))
    found = _permutation_critical_value(everyone, groups, np.random.default_rng(0))
    mean = everyone.hits.sum(0) / everyone.tokens.sum()
    largest = []
    for chosen in itertools.combinations(range(6), 3):
        parts = (list(chosen), [n for n in range(6) if n not in chosen])
        largest.append(
            max(
                float(
                    (
                        np.abs(everyone.hits[part].sum(0) / everyone.tokens[part].sum() - mean)
                        / _ratio_standard_error(everyone.hits[part], everyone.tokens[part])
                    ).max()
                )
                for part in parts
            )
        )
    # each unordered split has probability 1/10, so the largest alone lies above the 95th percentile
    assert found == pytest.approx(max(largest))


def test_categories_of_one_prompt_are_left_out() -> None:
    base = replace(noisy(5, prompts=6), categories=("a", "a", "b", "c", "c", "c"))
    assert [g.name for g in _categories([base], (0.5,), (1,))] == ["all", "a", "c"]


def test_resamples_draw_prompts_with_replacement() -> None:
    """Their spread is the standard error, but for Bessel's correction; all together as each."""
    group = _group("g", noisy(6), (0.5,), (1,), np.ones(20, dtype=bool))
    rate, draws = _rates(group, group.prompt_ids, np.random.default_rng(0))
    assert rate[0, 0] == pytest.approx(draws.mean(), abs=0.003)
    wanted = _ratio_standard_error(group.hits, group.tokens)[0, 0] * (19 / 20) ** 0.5
    assert draws.std() == pytest.approx(wanted, rel=0.05)
    some = _group("g", noisy(6), (0.5,), (1,), np.arange(20) < 2)
    value, drawn = _rates(some, group.prompt_ids, np.random.default_rng(0))
    assert np.isfinite(drawn).all()
    counts = some.hits[:, 0, 0]
    possible = {counts[0] / 60, counts[1] / 60}
    assert drawn.min() == pytest.approx(min(possible))
    assert drawn.max() == pytest.approx(max(possible))
    assert value[0, 0] == pytest.approx(counts.sum() / 120)


def test_seeds_repeat_and_differ() -> None:
    pair = [noisy(0), noisy(1)]
    assert differences(pair) == differences(pair, seed=0)
    assert differences(pair) != differences(pair, seed=1)


def test_the_table_has_a_row_per_difference() -> None:
    result = differences([noisy(0), noisy(1)], names=["a", "b"])
    assert result.to_frame()["p_first"].tolist() == [row.p_first for row in result.rows]
