"""Figures of methods and policies: a point, a name and a curve for each."""

from __future__ import annotations

from ppdmodel import compare, threshold_report
from ppdmodel.show import plots
from tests.conftest import make_measurement
from tests.decide.test_threshold_rule import made_up


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
