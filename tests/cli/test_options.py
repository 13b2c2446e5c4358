"""How values that several commands share are read and checked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ppdmodel import save
from ppdmodel.cli import options
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import Sampling
from tests.conftest import make_measurement
from tests.support.commands import DATA


def test_whole_numbers_and_lists() -> None:
    assert [options.whole("k", text) for text in ("3", " 4 ")] == [3, 4]
    assert options.whole_list("k", "1, 5,8") == (1, 5, 8)
    for text in ("0", "-1", "1.5", "x", ""):
        with pytest.raises(InvalidInputError, match=f"^k must be a positive integer; got {text}"):
            options.whole("k", text)


def test_depths() -> None:
    assert [options.depth_value(text) for text in ("2", "inf", " Unlimited")] == [2, None, None]


def test_a_seed_is_not_negative() -> None:
    assert options.checked_seed(0) == 0
    with pytest.raises(InvalidInputError, match="seed must be 0 or more; got -1"):
        options.checked_seed(-1)


def test_sampling_needs_a_temperature() -> None:
    assert options.sampled(None, None, None) is None
    assert options.sampled(0.7, None, 3) == Sampling(temperature=0.7, seed=3)
    with pytest.raises(InvalidInputError, match="seed needs a temperature"):
        options.sampled(None, None, 0)


def test_an_option_without_its_partner_is_refused() -> None:
    options.refuse("--price", exit_cost=None)
    with pytest.raises(InvalidInputError, match=r"--exit-cost must come with --price; got 0\.0"):
        options.refuse("--price", exit_cost=0.0)


def test_an_unfinished_measurement_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_measurement()
    for complete in (True, False):
        part = replace(made, complete=complete, provenance={**made.provenance, "n_prompts": 20})
        save(part, tmp_path / str(complete))
        found = options.measurement_in(tmp_path / str(complete), "fit")
        assert found.rank.tolist() == made.rank.tolist()
        noted = capsys.readouterr().err
        unfinished = f"{tmp_path / 'False'} is unfinished: 12 prompts of it are used\n"
        assert noted == ("" if complete else unfinished)


def test_a_calibration_is_no_measurement() -> None:
    path = DATA / "smollm2-135m.calibration.json"
    with pytest.raises(InvalidInputError, match="differ must be given a measurement folder; got"):
        options.measurement_in(path, "differ")


def test_guesses_are_found_where_they_are() -> None:
    for name, there in (("smollm2-135m", True), ("smollm2-135m-sampled", False)):
        measured = options.measurement_in(DATA / name, "fit")
        assert (options.guesses_beside(DATA / name, measured) is not None) is there


def test_threads_are_as_many_as_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.thread_count(3) == 3
    assert options.thread_count(None) == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert options.thread_count(None) == 1
