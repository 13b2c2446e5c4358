"""Figures of the closed forms: their curves, names and ticks."""

from __future__ import annotations

import numpy as np
import pytest

from ppdmodel.show import plots


def test_theory_has_a_curve_per_match_rate() -> None:
    (ax,) = plots.theory(layers=12, k=2, depth=None).axes
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [f"0.{n}" for n in range(1, 10)]


def test_regime_draws_a_curve_a_name_and_where_nothing_is_saved() -> None:
    p = np.linspace(0, 1, 5)
    starts = {"short": 1e-5 * (1 - p), "long": 2e-4 * (1 - p)}
    (ax,) = plots.regime(p, starts, {"short": 1e-4, "long": 1.0}, title="two units").axes
    short, end, long = ax.lines
    assert short.get_xdata() == pytest.approx(np.maximum(starts["short"], 1e-7))
    assert long.get_xdata() == pytest.approx(np.maximum(starts["long"], 1e-7))
    assert list(end.get_xdata()) == [1e-4, 1e-4]  # type: ignore[arg-type]
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        "0.1 µs",
        "1 µs",
        "10 µs",
        "0.1 ms",
        "1 ms",
    ]
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["short", "long"]
