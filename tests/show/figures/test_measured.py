"""Figures of a measured model: what is drawn, and on whose axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from ppdmodel import Calibration, Measurement, fit, fit_table
from ppdmodel.errors import InvalidInputError
from ppdmodel.show import plots


@pytest.fixture(scope="module")
def calibration(measurement: Measurement) -> Calibration:
    return fit(measurement, k_max=10, resamples=400)


def test_match_rate_draws_points_bands_and_curves(calibration: Calibration) -> None:
    (ax,) = plots.match_rate(calibration).axes
    assert len(ax.collections) == 4
    assert len(ax.lines) == 8
    assert ax.lines[0].get_ydata() == pytest.approx(calibration.p_correct[:, 0])
    assert "240 tokens of 12 prompts" in [t.get_text() for t in ax.texts][-1]


def test_trade_off_draws_every_setting(calibration: Calibration) -> None:
    ax = plots.trade_off(calibration).axes[0]
    assert len(ax.collections[0].get_offsets()) == 5 * 10  # type: ignore[arg-type]


def test_draws_on_given_axes(calibration: Calibration) -> None:
    figure = Figure()
    ax = figure.subplots()
    assert plots.match_rate(calibration, k=(2,), ax=ax) is figure
    assert len(ax.lines) == 2


def test_a_k_that_was_not_recorded_is_refused(calibration: Calibration) -> None:
    with pytest.raises(InvalidInputError, match=r"k must lie in 1\.\.\.10"):
        plots.match_rate(calibration, k=(11,))


@pytest.mark.parametrize(("k_max", "drawn"), [(1, [1]), (2, [1]), (3, [1, 3]), (7, [1, 3, 5])])
def test_the_k_that_are_drawn_are_those_that_were_counted(
    measurement: Measurement, k_max: int, drawn: list[int]
) -> None:
    few = fit(measurement, k_max=k_max, family="rank tail", resamples=400)
    (ax,) = plots.match_rate(few).axes
    assert ax.get_legend_handles_labels()[1] == [f"k = {k}" for k in drawn]


def test_layers_and_k_of_ones_own_counts_are_drawn_and_no_others(tmp_path: Path) -> None:
    rows = [(2, 2, 3), (2, 4, 5), (3, 2, 4), (3, 4, 6)]
    lines = [f"{e},{k},{hits},9,{prompt}" for prompt in "ab" for e, k, hits in rows]
    path = tmp_path / "counts.csv"
    path.write_text("\n".join(["exit_layer,k,hits,n,prompt_id", *lines]), encoding="utf-8")
    own = fit_table(path, 5, family="rank tail", resamples=400)
    (ax,) = plots.match_rate(own).axes
    assert ax.get_legend_handles_labels()[1] == ["k = 2", "k = 4"]
    assert ax.lines[0].get_xdata() == pytest.approx([2, 3, 5])
    points = plots.trade_off(own).axes[0].collections[0].get_offsets()
    assert len(points) == len(rows)  # type: ignore[arg-type]


def test_a_name_is_shown_as_text(calibration: Calibration, tmp_path: Path) -> None:
    """On axes of one's own too, which are made outside of the package's style."""
    name = "a$b$ \x1b[31m\u202e<x> \\frac{"
    named = replace(calibration, model=name)
    for draw in (plots.match_rate, plots.trade_off):
        ax = Figure().subplots()
        figure = draw(named, ax=ax)
        plots.save(figure, tmp_path / "plot.svg")
        shown = "".join(ElementTree.parse(tmp_path / "plot.svg").getroot().itertext())
        assert "a$b$ \\u001b[31m\\u202e<x> \\frac{" in shown
