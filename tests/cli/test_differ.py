"""`ppdmodel differ`: rows by group, depth and k, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import DATA, document, refused, said


def test_the_table_says_what_the_document_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("differ", folder, folder, "--k", "2", "--relative-depth", "0.5")
    (row,) = document(capsys, *command)["rows"]
    assert not row["differs"]
    shown = said(capsys, *command)
    assert f"m 0.50 2 {row['p_correct']:.3f} {row['p_first']:.3f} +0.000" in shown
    assert shown.endswith("None differs.")


BAD: list[tuple[str, str]] = [
    ("differ", "Missing argument 'DIR...'"),
    (
        "differ {data}/smollm2-135m-trained.calibration.json",
        "differ must be given a measurement folder; got",
    ),
    ("differ {data}/smollm2-135m --by-category --seed -1", "seed must be 0 or more; got -1"),
    ("differ {data}/smollm2-135m --by-category --k 1,x", "k must be a positive integer; got x"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    refused(capsys, command.split(), message, tmp=tmp_path, data=DATA)
    assert list(tmp_path.iterdir()) == []
