"""Figures: what is drawn, on whose axes, and in which files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from ppdmodel import Calibration, Measurement, compare, fit, threshold_report
from ppdmodel.errors import InvalidInputError
from ppdmodel.show import plots
from tests.conftest import make_measurement
from tests.decide.test_threshold_rule import made_up


@pytest.fixture(scope="module")
def calibration(measurement: Measurement) -> Calibration:
    return fit(measurement, k_max=10, resamples=40)


def test_match_rate_draws_points_bands_and_curves(calibration: Calibration) -> None:
    (ax,) = plots.match_rate(calibration).axes
    assert len(ax.collections) == 4
    assert len(ax.lines) == 8
    assert ax.lines[0].get_ydata() == pytest.approx(calibration.p_correct[:, 0])
    assert "240 tokens of 12 prompts" in [t.get_text() for t in ax.texts][-1]


def test_trade_off_draws_every_setting(calibration: Calibration) -> None:
    ax = plots.trade_off(calibration).axes[0]
    assert len(ax.collections[0].get_offsets()) == 5 * 10  # type: ignore[arg-type]


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


def test_comparison_has_a_point_and_a_name_for_each_method() -> None:
    result = compare(make_measurement(), acceptance_rate=0.7)
    figure = plots.comparison(result)
    (ax,) = figure.axes
    texts = " ".join(text.get_text() for text in ax.texts)
    for method in result.methods:
        assert method.name in texts
    bases = {method.basis for method in result.methods}
    legend = ax.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == bases


def test_thresholds_have_a_curve_per_policy_and_a_name_per_price() -> None:
    report = threshold_report(*made_up(), prices=(1.0, 4.0))
    (ax,) = plots.thresholds(report).axes
    legend = ax.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 4
    assert {"price 1", "price 4"} <= {text.get_text() for text in ax.texts}


def test_draws_on_given_axes(calibration: Calibration) -> None:
    figure = Figure()
    ax = figure.subplots()
    assert plots.match_rate(calibration, k=(2,), ax=ax) is figure
    assert len(ax.lines) == 2


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_files_are_the_same_each_time(tmp_path: Path, ending: str) -> None:
    contents = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.{ending}"
        plots.save(plots.theory(layers=8), out)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]
    assert len(contents[0]) > 5000


def test_bad_input_is_named(calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"a plot must end in one of \.png, \.svg, \.pdf"):
        plots.save(plots.theory(), tmp_path / "figure.gif")
    with pytest.raises(InvalidInputError, match=r"k must lie in 1\.\.\.10"):
        plots.match_rate(calibration, k=(11,))
