"""Settings that can be run, and those that cannot."""

from __future__ import annotations

import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.pipeline.options import Capacity, PpdSetting


def test_names_of_settings() -> None:
    assert PpdSetting(20, 3).name == "e20-k3"
    assert PpdSetting(4, row_by_row=True).name == "e4-k1-row-by-row"


def test_settings_that_fit_a_model() -> None:
    PpdSetting(11, 5).check(12)
    for setting, words in (
        (PpdSetting(12), "exit_layer must be below the last layer; got 12 of 12: that is plain"),
        (PpdSetting(13), "exit_layer must not exceed layers"),
        (PpdSetting(0), "exit_layer must be"),
        (PpdSetting(3, 0), "k must be a positive integer"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            setting.check(12)


def test_the_tokens_of_a_text() -> None:
    assert Capacity(prompt_tokens=7, new_tokens=5).text_tokens == 12
