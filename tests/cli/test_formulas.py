"""`ppdmodel formulas` as a user types it."""

from __future__ import annotations

import json

import pytest

from ppdmodel.cli import run
from ppdmodel.formulas import symbolic


def printed(capsys: pytest.CaptureFixture[str], command: str) -> str:
    assert run(["formulas", *command.split()]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_list_names_every_formula_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "")
    assert max(map(len, out.splitlines())) <= 80
    for entry in symbolic.catalogue():
        assert f"({entry.equation})".ljust(7) + entry.name in out


@pytest.mark.parametrize("name", [entry.name for entry in symbolic.catalogue()])
def test_one_formula_says_where_it_is_proved(capsys: pytest.CaptureFixture[str], name: str) -> None:
    entry = symbolic.formula(name)
    out = printed(capsys, name)
    head, _, rest = out.partition("\n\n")
    assert " ".join(head.split()) == f"{name}({', '.join(entry.parameters)}) {entry.summary}."
    *_, derived, proved = rest.splitlines()
    assert derived == f"derived in  {entry.page}, equation ({entry.equation})"
    assert proved == f"proved by   {entry.test}"
    assert max(map(len, out.splitlines())) <= 80


def test_latency_as_one_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "latency_per_token --depth 1")
    assert "d + ───── - p⋅(d - e)" in out
    assert "g = Max(0, d - 2*e)" in out
    assert "where p p_correct, d layers, e exit_layer\n" in out
    assert "ℓ tokens" in printed(capsys, "expected_total_latency")


def test_latex_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "exchange_rate --latex") == "\\frac{k}{p} - 1\n"
    assert printed(capsys, "latency_per_token --latex --depth inf") == (
        "d - p \\left(d - e\\right)\n"
    )
    assert printed(capsys, "latency_per_token --derivative p_correct --depth inf --latex") == (
        "- d + e\n"
    )
    assert "W(t) = t + " in printed(capsys, "multi_exit_compute --latex")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    entries = json.loads(printed(capsys, "--json"))
    assert [entry["name"] for entry in entries] == [e.name for e in symbolic.catalogue()]
    one = json.loads(printed(capsys, "speedup --json"))
    assert one["expression"] == "d/Lambda"
    assert one["where"] == {"Lambda": "latency_per_token"}
    assert one["page"] == "theory/02-latency.md"
    assert json.loads(printed(capsys, "draft_tree --json"))["expression"] is None


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("latncy", "the formula must be a known one; got 'latncy'; closest are gated_latency,"),
        (
            "--latex",
            "--latex, --depth and --derivative must come with a formula; got none; give a NAME",
        ),
        (
            "threshold --depth 1",
            "threshold must be given its own parameters; got 'depth'; they are",
        ),
        (
            "threshold --derivative depth",
            "derivative must be with respect to a parameter of threshold; got 'depth'; give price",
        ),
        ("latency_per_token --depth 0", "depth must be a positive integer; got 0; give 1 or more"),
        (
            "latency_per_token --derivative depth",
            "a derivative must be along a real parameter; got depth; choose from p_correct,",
        ),
        (
            "draft_tree --derivative nodes",
            "--depth and --derivative must come with a closed form; got draft_tree, a recursion;",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    assert run(["formulas", *command.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {words}")
    assert captured.err.count("\n") == 1
