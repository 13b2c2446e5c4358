"""`ppdmodel optimize`: what is refused, and what it says in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import DATA, document, refused, said


def test_a_budget_without_a_setting_that_pays_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = DATA / "smollm2-135m.calibration.json"
    command = ("optimize", source, "--max-compute", "1.000001")
    decision = document(capsys, *command)
    assert [choice["setting"] for choice in decision["choices"]] == [None]
    assert "PPD does not pay" in said(capsys, *command)


def test_units_and_prices_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    source = DATA / "smollm2-135m-trained.calibration.json"
    decision = document(capsys, "optimize", source, "--price", "3", "--max-units", "4")
    assert [choice["price"] for choice in decision["choices"] if choice["price"]] == [3]
    assert all(choice["setting"]["k"] < 4 for choice in decision["choices"])


BAD: list[tuple[list[str], str]] = [
    (["optimize", "{tmp}/none"], "the result must exist; got"),
    (["optimize", "{tmp}/text"], "a result must be whole JSON; got"),
    (["optimize", "{folder}"], "optimize must be given a calibration"),
    (["optimize", "{folder}", "--device", "L40S"], "--device must come with --roofline; got"),
    (["optimize", "{folder}", "--link-time-s", "0"], "--link-time-s must come with --roofline"),
    (["optimize", "{folder}", "--ideal", "--roofline", "x"], "ideal counts layers, and roofline"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    folder: Path,
    timed: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    (tmp_path / "text").write_text("not json")
    refused(capsys, command, message, tmp=tmp_path, folder=folder, timing=timed[1])
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
