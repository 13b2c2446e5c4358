"""`ppdmodel explore`: what is refused; the page is in tests/show/explorer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import DATA, document, refused


def test_the_page_is_written_where_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    found = document(capsys, "explore", "-o", out)
    assert found == {"out": str(out), "bytes": out.stat().st_size, "results": 0}
    assert out.read_text("utf-8").startswith("<!doctype html>")


BAD: list[tuple[str, str]] = [
    ("explore {tmp}/none -o {tmp}/e.html", "the result must exist"),
    ("explore -o {tmp}", "{tmp} must be a file; got a folder"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    refused(capsys, command.split(), message, tmp=tmp_path, data=DATA)
    assert list(tmp_path.iterdir()) == []
