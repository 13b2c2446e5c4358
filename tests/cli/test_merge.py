"""`ppdmodel merge`: what is refused; shards are joined in tests/measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import DATA, refused

BAD: list[tuple[str, str]] = [
    ("merge", "Missing argument 'DIR...'"),
    ("merge {tmp} --out {tmp}/m", "each shard must be a measurement folder with summary.json"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    refused(capsys, command.split(), message, tmp=tmp_path, data=DATA)
    assert list(tmp_path.iterdir()) == []
