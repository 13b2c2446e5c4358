"""The figures can all be had from one module, as the notebooks do."""

from __future__ import annotations

from ppdmodel.show import plots


def test_every_figure_is_there_and_takes_axes() -> None:
    figures = set(plots.__all__) - {"FORMATS", "save", "style"}
    assert figures == {
        "comparison", "match_rate", "predicted", "regime", "theory", "thresholds", "trade_off",
    }  # fmt: skip
    for name in figures:
        draw = getattr(plots, name)
        assert draw.__kwdefaults__["ax"] is None
        assert draw.__doc__
