"""Numbers, intervals, paragraphs and tables as every command prints them."""

from __future__ import annotations

import math

import pytest

from ppdmodel.cli.format import interval, number, print_table, say
from ppdmodel.results.intervals import Interval


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def between(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high, n_tokens=9, n_prompts=3, method="by hand")


def test_an_interval_stands_behind_its_number() -> None:
    assert interval(between(0.1234, 0.1, 0.15)) == "0.123 [0.100, 0.150]"
    assert interval(between(0.1234, -0.1, 0.15), 1, signed=True) == "+0.1 [-0.1, +0.1]"


@pytest.mark.parametrize("ends", [(math.nan, math.nan), (2.0, 2.0)])
def test_no_interval_or_one_without_width_is_left_out(ends: tuple[float, float]) -> None:
    assert interval(between(2.0, *ends), 2) == "2.00"


def test_an_absent_number_is_a_dash() -> None:
    assert number(None, 3) == "–"


def test_columns_are_as_wide_as_their_cells(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("", "k", "long\nhead"), [("a name", 10, ""), ("b", 5, "x")], left=(0,))
    assert capsys.readouterr().out.splitlines() == [
        "            long",
        "         k  head",
        "a name  10",
        "b        5     x",
    ]


def test_a_remark_stands_under_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((), [("a", 1), ("b", 2)], below=("", "why"))
    assert capsys.readouterr().out == "a  1\nb  2\n  why\n"


def test_a_wide_table_has_narrow_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((), [("a" * 40, "b" * 38)])
    assert capsys.readouterr().out.rstrip() == "a" * 40 + "  " + "b" * 38
    print_table((), [("a" * 40, "b" * 39)])
    assert capsys.readouterr().out.rstrip() == "a" * 40 + " " + "b" * 39


def test_text_is_wrapped_between_words_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("\nself-speculation " * 2 + "x" * 90)
    assert capsys.readouterr().out.split("\n") == [
        "", "self-speculation", "self-speculation", "x" * 90, "",
    ]  # fmt: skip
    monkeypatch.setenv("COLUMNS", "20")
    say("one two three four five six")
    assert capsys.readouterr().out == "one two three four\nfive six\n"
    monkeypatch.setenv("COLUMNS", "200")
    say("word " * 30)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
