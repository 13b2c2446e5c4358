"""Figures of a measured model: what is drawn, and on whose axes."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from ppdmodel import Calibration, Measurement, fit
from ppdmodel.errors import InvalidInputError
from ppdmodel.show import plots


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


def test_draws_on_given_axes(calibration: Calibration) -> None:
    figure = Figure()
    ax = figure.subplots()
    assert plots.match_rate(calibration, k=(2,), ax=ax) is figure
    assert len(ax.lines) == 2


def test_a_k_that_was_not_recorded_is_refused(calibration: Calibration) -> None:
    with pytest.raises(InvalidInputError, match=r"k must lie in 1\.\.\.10"):
        plots.match_rate(calibration, k=(11,))
