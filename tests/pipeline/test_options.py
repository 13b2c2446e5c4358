"""Settings that can be run, and those that cannot."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from ppdmodel.cli.decode import decode_command
from ppdmodel.cli.time import time_command
from ppdmodel.cli.validate import validate_command
from ppdmodel.errors import InvalidInputError
from ppdmodel.pipeline.options import Capacity, PpdSetting, RunOptions, Workers


def test_names_of_settings() -> None:
    assert PpdSetting(20, 3).name == "e20-k3"
    assert PpdSetting(4, row_by_row=True).name == "e4-k1-row-by-row"
    assert PpdSetting(4, row_by_row=True, ngrams=3).name == "e4-k1-n3-row-by-row"


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
    capacity = Capacity(prompt_tokens=7, new_tokens=5)
    assert (capacity.text_tokens, capacity.k) == (12, 1)


def test_a_text_ends_at_an_end_token_and_is_greedy_and_fast() -> None:
    assert RunOptions() == RunOptions(stops=True, sampling=None, prompt_id="", timed=False)


def test_what_is_not_given_is_what_the_commands_take() -> None:
    def default(command: Callable[..., Any], name: str) -> Any:
        return inspect.signature(command).parameters[name].default

    setting, workers = PpdSetting(3), Workers()
    assert (setting.k, setting.row_by_row) == (1, False)
    assert default(decode_command, "k") == setting.k
    assert default(decode_command, "row_by_row") is setting.row_by_row
    for command in (decode_command, time_command, validate_command):
        assert default(command, "units") == workers.units
        assert default(command, "device") == workers.device
