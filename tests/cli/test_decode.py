"""`ppdmodel decode`: what is refused before a model is loaded; runs are in tests/pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import DATA, refused

BAD: list[tuple[str, str]] = [
    ("decode --prompt hi", "Missing option '--exit-layer'"),
    ("decode --prompt hi --exit-layer 0", "exit_layer must be a positive integer; got 0"),
    ("decode --prompt hi --exit-layer 5 --k none", "k must be a positive integer; got none"),
    ("decode --prompt hi --exit-layer 5 --top-p 0.9", "top_p needs a temperature; got none"),
    ("decode --prompt hi --exit-layer 5 --model gpt-5", "model must be a known name"),
    ("decode --prompt hi --exit-layer 5 --calibration {tmp}/none", "the result must exist"),
    ("decode --prompt= --exit-layer 5", "the prompt must have text; got none; give --prompt TEXT"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    refused(capsys, command.split(), message, tmp=tmp_path, data=DATA)
    assert list(tmp_path.iterdir()) == []
