"""`ppdmodel train-exits`: what is refused before a model is loaded; runs are in tests/measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import DATA, refused

BAD: list[tuple[str, str]] = [
    ("train-exits", "Missing option '--out'"),
    (
        "train-exits --out {tmp}/e --exit-layers 3,x",
        "exit_layers must be a positive integer; got x",
    ),
    ("train-exits --out {tmp}/e --vocabulary 0", "vocabulary must be a positive integer; got 0"),
    (
        "train-exits --out {tmp}/e --exit-layers none",
        "training needs layers or a shortlist; got neither; give exit_layers or vocabulary",
    ),
    ("train-exits --out {tmp}/e --epochs 0", "epochs must be a positive integer; got 0"),
    ("train-exits --out {tmp}/e --limit 1000", "limit must not exceed the prompts; got 1000"),
    ("train-exits --out {tmp}/e --model gpt-5", "model must be a known name"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    refused(capsys, command.split(), message, tmp=tmp_path, data=DATA)
    assert list(tmp_path.iterdir()) == []
