"""Intervals of simulated texts whose match rate and correlation are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import coverage
from ppdmodel.results.intervals import LARGEST_CORRELATION, rate_ends

COMMITTED = Path(__file__).parents[2] / "data" / "interval-coverage.json"


def test_texts_are_drawn_about_their_rate() -> None:
    tokens = np.array([20, 100] * 40)
    hits = coverage.drawn(0.3, 0.1, tokens, np.random.default_rng(0), 400)
    assert hits.shape == (80, 400)
    assert (hits <= tokens[:, None]).all()
    rates = hits / tokens[:, None]
    assert rates.mean() == pytest.approx(0.3, abs=0.005)
    # binomial variance, and a tenth of a match's between prompts
    for n in (20, 100):
        expected = 0.3 * 0.7 * (0.1 + 0.9 / n)
        assert rates[tokens == n].var() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("correlation", [0.02, 0.05, 0.15])
@pytest.mark.parametrize("lengths", ["equal", "lognormal"])
def test_the_correlation_that_texts_are_drawn_with_is_measured(
    correlation: float, lengths: str
) -> None:
    rng = np.random.default_rng(1)
    tokens = coverage.lengths_of(lengths, 300, rng)
    hits = coverage.drawn(0.6, correlation, tokens, rng, 50)
    found = coverage.intraclass_correlation(hits, tokens)
    assert found.shape == (50,)
    assert found.mean() == pytest.approx(correlation, rel=0.1, abs=0.002)


def test_the_correlation_by_hand() -> None:
    """Of all pairs of tokens of one prompt, for prompts of equal lengths; up to 1 / prompts."""
    texts = np.random.default_rng(2).random((200, 12)) < np.repeat([0.2, 0.8], 100)[:, None]
    p = texts.mean()
    pairs = [
        (text[i] - p) * (text[j] - p)
        for text in texts.astype(float) for i in range(12) for j in range(i)
    ]  # fmt: skip
    expected = np.mean(pairs) / (p * (1 - p))
    found = coverage.intraclass_correlation(texts.sum(1), np.full(200, 12))
    assert found == pytest.approx(expected, abs=0.01)
    assert np.isnan(coverage.intraclass_correlation(np.zeros(3), np.full(3, 12)))
    alike = coverage.intraclass_correlation(np.array([0, 12, 0, 12]), np.full(4, 12))
    assert alike == pytest.approx(1)


def test_the_simulated_correlations_are_the_measured_ones() -> None:
    document = json.loads(COMMITTED.read_text())
    measured = document["measured_correlations"]
    assert [row["measurement"] for row in measured] == list(coverage.MEASUREMENTS)
    again = coverage.measured_correlations(coverage.MEASUREMENTS[3])
    assert again == measured[3]
    simulated = {row["correlation"] for row in document["rows"]}
    assert all(min(simulated) - 0.006 < row["p5"] for row in measured)
    assert all(row["median"] < max(simulated) for row in measured)
    assert all(row["p95"] < max(simulated) + 0.006 for row in measured)
    assert max(simulated) == LARGEST_CORRELATION


def test_wilsons_interval() -> None:
    low, high = coverage.wilson(np.array([0, 19]), 20)
    assert low[0] == pytest.approx(0, abs=1e-12)
    assert high[0] == pytest.approx(0.1611, abs=1e-4)
    assert (low[1], high[1]) == pytest.approx((0.7639, 0.9911), abs=1e-4)


def test_the_coverage_of_a_few_draws() -> None:
    row = coverage.coverage(0.5, 24, 0.05, "equal", batches=2)
    committed = json.loads(COMMITTED.read_text())["rows"]
    assert set(row) == set(committed[0])
    assert (row["p_correct"], row["prompts"], row["n"]) == (0.5, 24, 200)
    assert 0.85 < row["bootstrap"] < 1
    share = row["coverage"]
    assert 0.89 < share <= 1
    assert row["standard_error"] == pytest.approx(np.sqrt(share * (1 - share) / 200), abs=1e-5)
    assert row["wilson"] < 0.8 < share, "tokens of one prompt are alike"
    its = next(
        one for one in committed
        if [one[n] for n in ("p_correct", "prompts", "correlation", "lengths")]
        == [0.5, 24, 0.05, "equal"]
    )  # fmt: skip
    assert row["width"] == pytest.approx(its["width"], rel=0.05)


def test_coverage_is_the_nominal_one_or_the_table_says_where_not() -> None:
    document = json.loads(COMMITTED.read_text())
    rows = [row for row in document["rows"] if row["prompts"] >= 12]
    assert {row["prompts"] for row in rows} == {12, 24, 60}
    assert len(rows) == 3 * 3 * 4 * 2
    for row in rows:
        least = coverage.LEAST if row["lengths"] == "equal" else 0.91
        assert least <= round(row["coverage"], 3) <= coverage.MOST
    shown = coverage.table(rows, (12, 24, 60))
    outside = sum(not 0.93 <= round(row["coverage"], 3) <= 0.97 for row in rows)
    assert shown.count("**") == 2 * outside > 0


def test_the_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (
        ("OUT", tmp_path / "c.json"), ("RATES", (0.5,)), ("PROMPTS", (24,)), ("FEW", (2,)),
        ("BATCHES", 1), ("CORRELATIONS", (0.05,)), ("MEASUREMENTS", ("gemma3-270m",)),
    ):  # fmt: skip
        monkeypatch.setattr(coverage, name, value)
    monkeypatch.setattr(coverage.coverage, "__kwdefaults__", {"batches": 1})
    coverage.main()
    found = json.loads((tmp_path / "c.json").read_text())
    assert set(found) == set(json.loads(COMMITTED.read_text()))
    assert [(row["p_correct"], row["n"]) for row in found["rows"]] == 4 * [(0.5, 100)]
    shown = capsys.readouterr().out
    assert "| p_correct | correlation | 24, equal | 24, lognormal |" in shown
    assert shown.count("| 0.5 | 0.05 |") == 2


def test_the_interval_is_that_of_the_package() -> None:
    """The table is about what `fit` writes."""
    hits, tokens = np.array([[3], [9], [5]]), np.array([10, 12, 9])
    low, high = rate_ends(hits, tokens)
    assert low.shape == high.shape == (1,)
