"""Intervals of simulated texts whose match rate is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import coverage

COMMITTED = Path(__file__).parents[2] / "data" / "interval-coverage.json"


def test_texts_are_drawn_about_their_rate() -> None:
    hits, tokens = coverage.drawn(0.3, 60, np.random.default_rng(0), 40)
    assert hits.shape == (60, 40)
    assert ((tokens >= 20) & (tokens <= 128)).all()
    assert (hits <= tokens[:, None]).all()
    rates = hits / tokens[:, None]
    assert rates.mean() == pytest.approx(0.3, abs=0.01)
    # binomial variance, that of a chain with lag-1 autocorrelation 0.1, and that between prompts
    binomial = 0.3 * 0.7 / tokens
    expected = (binomial * (1 - 0.02) * (1 + 0.1) / (1 - 0.1) + 0.02 * 0.3 * 0.7).mean()
    assert rates.var() == pytest.approx(expected, rel=0.1)


def test_wilsons_interval() -> None:
    low, high = coverage.wilson(np.array([0, 19]), 20)
    assert low[0] == pytest.approx(0, abs=1e-12)
    assert high[0] == pytest.approx(0.1611, abs=1e-4)
    assert (low[1], high[1]) == pytest.approx((0.7639, 0.9911), abs=1e-4)


def test_the_coverage_of_a_few_draws() -> None:
    row = coverage.coverage(0.5, 24, batches=2)
    assert set(row) == set(json.loads(COMMITTED.read_text())["rows"][0])
    assert (row["p_correct"], row["prompts"], row["n"]) == (0.5, 24, 200)
    assert 0.85 < row["coverage"] <= 1
    share = row["coverage"]
    assert row["standard_error"] == pytest.approx(np.sqrt(share * (1 - share) / 200))
    assert row["wilson_coverage"] < share, "tokens of one prompt are alike"
    assert row["wilson_width"] < row["width"]


def test_the_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (
        ("OUT", tmp_path / "c.json"), ("RATES", (0.5,)), ("PROMPTS", (24,)), ("BATCHES", 1),
        ("RESAMPLES", 100),
    ):  # fmt: skip
        monkeypatch.setattr(coverage, name, value)
    coverage.main()
    found = json.loads((tmp_path / "c.json").read_text())
    assert set(found) == set(json.loads(COMMITTED.read_text()))
    assert [row["p_correct"] for row in found["rows"]] == [0.5]
    assert "24 prompts, p = 0.50" in capsys.readouterr().out
