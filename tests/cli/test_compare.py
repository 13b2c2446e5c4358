"""`ppdmodel compare`: the methods side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import document, refused, said


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "compare", folder, "--max-units", "4", "--acceptance-rate", "0.7")
    for name in ("plain decoding", "PPD, gated", "self-speculation", "speculative", "split layers"):
        assert name in shown
    assert "is the fastest" in shown
    found = document(capsys, "compare", folder)
    assert found["methods"][0]["name"] == "plain decoding"


BAD: list[tuple[list[str], str]] = [
    (["compare", "{folder}", "--max-compute", "0.5"], "max_compute must be at least 1"),
    (["compare", "{folder}", "--max-compute", "nan"], "max_compute must be at least 1"),
    (["compare", "nowhere"], "the result must exist"),
    (
        ["compare", "{folder}", "--draft-time", "0.2"],
        "--draft-time must come with --acceptance-rate; got 0.2",
    ),
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
