"""A user's own table: what it gives, and what is wrong with it."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdmodel import estimate_from, fit, fit_table, load, optimize, save
from ppdmodel.cli import run
from ppdmodel.decide.prediction import predicted_match_rate
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.counts_file import _read
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.measurement import Measurement
from tests.pipeline.test_prediction_error import a_timing

HEADER = "exit_layer,k,hits,n,prompt_id\n"


def table_of(measurement: Measurement, path: Path, exit_layers: list[int], ks: list[int]) -> Path:
    """Some cells of a measurement, as a user might have counted them."""
    hits, tokens = measurement.hits_by_prompt(max(ks)), measurement.tokens_by_prompt()
    rows = [
        f"{e},{k},{hits[n, e - 1, k - 1]},{tokens[n]},{prompt}"
        for e in exit_layers
        for k in ks
        for n, prompt in enumerate(measurement.prompt_ids)
    ]
    path.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_a_whole_table_is_the_measurement(measurement: Measurement, tmp_path: Path) -> None:
    path = table_of(measurement, tmp_path / "t.csv", [1, 2, 3, 4, 5], [1, 2, 3])
    mine, its = fit_table(path, 6, resamples=50), fit(measurement, k_max=3, resamples=50)
    assert np.array_equal(mine.hits, its.hits)
    assert mine.curve == its.curve
    assert np.array_equal(mine.ci_low, its.ci_low)


def test_decisions_are_among_what_was_counted(measurement: Measurement, tmp_path: Path) -> None:
    path = table_of(measurement, tmp_path / "t.csv", [3, 5], [1, 4])
    calibration = fit_table(path, 6, model="mine", family="rank tail", resamples=50)
    assert (calibration.exit_layers, calibration.ks) == ((3, 5), (1, 4))
    save(calibration, tmp_path / "cal.json")
    again = load(tmp_path / "cal.json")
    assert isinstance(again, Calibration)
    assert (again.exit_layers, again.ks) == ((3, 5), (1, 4))
    decision = optimize(again, max_compute=9)
    assert decision.settings == 4
    assert {(s.exit_layer, s.k) for s in decision.frontier} <= {(3, 1), (3, 4), (5, 1), (5, 4)}
    whole = fit(measurement, k_max=4, family="rank tail", resamples=40)
    assert predicted_match_rate(again, 5, 4) == whole.p_correct[4, 3]
    for e, k in ((4, 1), (5, 2)):
        with pytest.raises(InvalidInputError, match="the calibration must hold the setting"):
            predicted_match_rate(again, e, k)
        with pytest.raises(InvalidInputError, match="the calibration must hold the setting"):
            estimate_from(again, e, k)


@pytest.mark.parametrize("hits", [0, 9])
@pytest.mark.parametrize("ks", [(1,), (1, 4)])
def test_all_misses_or_all_hits_can_be_fitted(
    tmp_path: Path, hits: int, ks: tuple[int, ...]
) -> None:
    rows = [f"{e},{k},{hits},9,{p}" for e in (2, 4) for k in ks for p in "abc"]
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    calibration = fit_table(path, 6, resamples=40)
    assert (calibration.p_correct[1, 0], calibration.p_correct[3, 0]) == (hits / 9, hits / 9)


ROW = "3,1,2,9,a\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit_layer,k,hits,n\n3,1,2,9\n", "must have the columns .*; got none named prompt_id"),
        ("k,hits,n\n1,2,9\n", "got none named exit_layer"),
        (HEADER + "3,1,x,9,a\n", "hits must be a whole number of at least 0; got 'x' in line 2"),
        (HEADER + "3,1,2.5,9,a\n", "hits must be a whole number"),
        (HEADER + "3,1,10,9,a\n", "hits <= n; got 3, 1, 9, 10"),
        (HEADER + "7,1,2,9,a\n", "1 <= exit_layer <= 6"),
        (HEADER + ROW + ROW, "one row for each exit layer, k and prompt; got a second in line 3"),
        (HEADER + ROW + "3,2,2,8,a\n", "the same in all its rows; got 8 and 9 for 'a'"),
        (HEADER + ROW + "4,1,2,9,b\n", "got none for exit layer 3, k = 1, prompt 'b'"),
        (HEADER + ROW + "3,2,1,9,a\n", "hits must not fall with k"),
        (HEADER + "6,1,9,9,a\n", "must have exits below layer 6"),
        (HEADER, "must have exits below layer 6"),
        (HEADER + ROW, "an interval needs at least 2 prompts; got 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        fit_table(path, 6)


def test_the_command_takes_a_table(
    measurement: Measurement, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table_of(measurement, tmp_path / "t.csv", [2, 4], [1, 2])
    command = ["fit", "--table", str(path), "--out", str(tmp_path / "cal.json")]
    assert run([*command, "--layers", "6", "--resamples", "40"]) == 0
    assert run(["optimize", str(tmp_path / "cal.json")]) == 0
    capsys.readouterr()
    for wrong, message in (
        (command, "a table needs the model's layers"),
        ([*command, "somewhere", "--layers", "6"], "fit needs counts; got two kinds"),
        (["fit", "--out", "x.json"], "fit needs counts; got none"),
        (["fit", "somewhere", "--layers", "6", "--out", "x.json"], "layers must be left out"),
    ):
        assert run(wrong) == 2
        assert message in capsys.readouterr().err


def test_cells_between_those_of_the_table_are_filled(tmp_path: Path) -> None:
    """A k between two of the table has the hits of the smaller; the last layer is always right."""
    path = tmp_path / "t.csv"
    rows = [
        f"{e},{k},{k + e + n},{20 + n},p{n}" for e in (2, 3, 4) for k in (2, 4) for n in range(3)
    ]
    path.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    found = fit_table(path, 4, model="mine", family="rank tail", resamples=40)
    assert found.tokens.tolist() == [20, 21, 22]
    assert found.hits.shape == (3, 4, 4)
    assert found.hits[1].tolist() == [[0] * 4, [0, 5, 5, 7], [0, 6, 6, 8], [21] * 4]
    assert (found.exit_layers, found.ks, found.model) == ((2, 3), (2, 4), "mine")
    about = found.provenance["measurement"]
    assert about["table"] == "t.csv"
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("row", "taken"),
    [
        ("3,1,0,1,a", True),
        ("3,1,9,9,a", True),
        ("5,1,2,9,a", True),
        ("6,1,9,9,a", True),
        ("1,1000,2,9,a", True),
        ("0,1,2,9,a", False),
        ("3,0,2,9,a", False),
        ("3,1001,2,9,a", False),
        ("3,1,0,0,a", False),
        (f"3,1,2,{2**53 - 1},a", True),
        (f"3,1,2,{2**53},a", False),
        ("3,1,-1,9,a", False),
    ],
)
def test_numbers_at_the_ends_of_what_a_table_may_hold(
    tmp_path: Path, row: str, taken: bool
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "1,1,1,9,z\n" + row + "\n", encoding="utf-8")
    if taken:
        cells, totals = _read(path, path.read_bytes(), 6)
        e, k, hits, n, prompt = row.split(",")
        assert cells[int(e), int(k)][prompt] == int(hits)
        assert totals[prompt] == int(n)
        return
    with pytest.raises(InvalidInputError, match="line 3 of"):
        _read(path, path.read_bytes(), 6)


def test_a_timing_of_other_layers_is_refused(measurement: Measurement, tmp_path: Path) -> None:
    path = table_of(measurement, tmp_path / "t.csv", [2, 4], [1])
    with pytest.raises(InvalidInputError, match="a timing with layers 30 instead of 6; time this"):
        fit_table(path, 6, timing=a_timing())
    random = replace(a_timing(), provenance={"random_weights": {"seed": 0}, "model": "r"})
    words = "random weights must not be mixed with those of a model; got a timing of r for match"
    with pytest.raises(InvalidInputError, match=words):
        fit_table(path, 6, timing=random)
    timing = replace(a_timing(), layers=6)
    options: dict[str, Any] = {"family": "rank tail", "resamples": 40}
    assert fit_table(path, 6, timing=timing, **options).timing is timing


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="a table must be readable CSV; got"):
        fit_table(tmp_path / "nothing.csv", 6)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="a table must be readable CSV; got"):
        fit_table(tmp_path / "bytes.csv", 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("," * 4_000_000, r"at most 100000 delimiters; got more in line 1 of .*t\.csv"),
        (HEADER + "," * 4_000_000, r"at most 100000 delimiters; got more in line 2 of .*t\.csv"),
        (HEADER + "\n" * 10_000_000, r"at most 10000000 lines; got .*t\.csv with more"),
        ('"' * 4_000_000, r"readable CSV; got .*t\.csv \(field larger than"),
    ],
    ids=["columns", "cells", "lines", "quotes"],
)
def test_a_large_table_of_nothing_takes_little_memory(
    tmp_path: Path, text: str, message: str
) -> None:
    """Less than four times the file."""
    path = tmp_path / "t.csv"
    path.write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError, match=message):
            _read(path, path.read_bytes(), 6)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()
