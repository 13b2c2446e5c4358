"""Files: atomic, checked against their schema, and clear about what is wrong with them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from ppdmodel import checks
from ppdmodel.decide import roofline
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.results import files, parquet


def test_json_never_holds_nan_or_infinity() -> None:
    value = {"a": [math.nan, math.inf, 1.0], "b": np.array([[math.nan]]), "c": np.int64(3)}
    assert json.loads(json.dumps(files.json_ready(value), allow_nan=False)) == {
        "a": [None, None, 1.0],
        "b": [[None]],
        "c": 3,
    }


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with files.atomic(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RunFailedError, match="must be writable; got No space left on device"),
        files.atomic(tmp_path / "file"),
    ):
        raise OSError(28, "No space left on device")


def test_an_atomic_write_replaces_the_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with files.atomic(path) as part:
            assert part != path
            assert part.suffix == ".txt", "the suffix says the format to whoever writes"
            part.write_text(text)
        assert path.read_text() == text
        assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    fsync, rename = os.fsync, os.replace

    def flushed(file: int) -> None:
        events.append((os.fstat(file).st_ino, os.fstat(file).st_size))
        fsync(file)

    def renamed(*names: Any) -> None:
        events.append("renamed")
        rename(*names)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    path = tmp_path / "file"
    with files.atomic(path) as part:
        part.write_text("whole")
    (file, size), was_renamed, (folder, _) = events
    assert (file, size, was_renamed) == (path.stat().st_ino, 5, "renamed")
    assert folder == tmp_path.stat().st_ino


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "[a]?*.json", tmp_path / ".other.json.part-1.json"
    for left in (".[a]?*.json.part-1.json", ".[a]?*.json.part-4294967295.json", other.name):
        (tmp_path / left).write_text("half")
    with files.atomic(path) as first:
        first.write_text("first")
        with files.atomic(path) as second:
            second.write_text("second")
            assert sorted(tmp_path.iterdir()) == sorted([first, second, other])
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "\N{SNOWMAN}" * 85, "x." + "y" * 250])
def test_a_name_that_is_as_long_as_it_may_be_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    files.check_writable(path)
    with files.atomic(path) as part:
        part.write_text("text")
    assert path.read_text() == "text"
    for write in (files.check_writable, lambda path: files.atomic(path).__enter__()):
        with pytest.raises(InvalidInputError, match="must be writable; got File name too long"):
            write(tmp_path / (name + "1234567"))


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="must be a file; got a folder"):
        files.check_writable(tmp_path)
    with (
        pytest.raises(RunFailedError, match="must be a file; got a folder"),
        files.atomic(tmp_path),
    ):
        pass


def test_a_check_before_the_work_leaves_nothing(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "new" / "file")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("kept")
    files.check_writable(tmp_path / "old" / "file")
    assert (tmp_path / "old" / "file").read_text() == "kept"
    (tmp_path / "text").write_text("a file where a folder should be")
    with pytest.raises(RunFailedError, match="must be writable; got"):
        files.check_writable(tmp_path / "text" / "file")


def a_timing_document() -> dict[str, Any]:
    from dataclasses import asdict

    from tests.pipeline.test_prediction_error import a_timing

    about = {"schema": files.TIMING, "schema_version": files.SCHEMA_VERSION}
    return {**about, **asdict(a_timing())}


def test_a_document_is_written_a_line_per_key_and_per_row(tmp_path: Path) -> None:
    path, document = tmp_path / "t.json", a_timing_document()
    files.write_json(path, document)
    text = path.read_text("utf-8")
    assert len(text.splitlines()) == len(document) + 2
    assert json.loads(text) == files.read_json(path, files.TIMING) == files.json_ready(document)
    lists = {"a": [[1, 2], [3, 4]], "b": [1, 2], "c": []}
    assert files._compact_rows(lists) == (
        '{\n "a": [\n  [1, 2],\n  [3, 4]\n ],\n "b": [1, 2],\n "c": []\n}\n'
    )


@pytest.mark.parametrize(
    "each",
    [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "integer", "minimum": 0},
        {"type": "integer", "maximum": 1},
        {"type": ["number", "null"]},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string"},
        {"minimum": 0},
    ],
)
def test_rows_of_numbers_have_the_faults_that_they_have_one_by_one(each: dict[str, Any]) -> None:
    schema = {"properties": {"row": {"items": each}}}
    whole = files._validator(files.TIMING, "").evolve(schema=schema)
    extend: Any = jsonschema.validators.extend
    one_by_one = extend(
        type(whole), {"items": jsonschema.Draft202012Validator.VALIDATORS["items"]}
    )(schema)
    values = (0, 1, 0.5, -1, 2, -0.5, True, None, "1", 2**63, -(2**63), 1.0)
    for row in [[], [1], [0, 1], [0.5, 2], 3, *([1, 0, x, 1] for x in values)]:
        faults = [fault.message for fault in whole.iter_errors({"row": row})]
        assert faults == [fault.message for fault in one_by_one.iter_errors({"row": row})]


def test_a_document_that_breaks_its_schema_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(InvalidInputError, match="must follow its schema; got a fault at layers"):
        files.write_json(path, a_timing_document() | {"layers": 0})
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "x/y"}, "must be a ppdmodel/measurement or ppdmodel/calibration or"),
        ({"schema": None}, "the file must be a"),
        ({"schema_version": 2}, "must have schema version 1 or older; got 2; upgrade ppdmodel"),
        ({"schema_version": "1"}, "must have schema version 1 or older; got '1'"),
    ],
)
def test_other_kinds_and_newer_versions_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(files.json_ready(a_timing_document()) | change), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=words):
        files.read_json(path)


def test_another_kind_than_expected_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    files.write_json(path, a_timing_document())
    with pytest.raises(InvalidInputError, match="must be a ppdmodel/calibration; got 'ppdmodel/t"):
        files.read_json(path, files.CALIBRATION)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="got None in"):
        files.read_json(path)


def test_provenance_says_who_made_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import ppdmodel

    monkeypatch.setattr(sys, "argv", ["script.py"])
    found = files.provenance(("numpy",))
    assert found["packages"] == {"ppdmodel": ppdmodel.__version__, "numpy": np.__version__}
    assert found["command"] == "python"
    assert found["date"].endswith("+00:00")
    monkeypatch.setattr(sys, "argv", [os.path.join("bin", "ppdmodel"), "fit", "x"])
    assert files.provenance()["command"] == "ppdmodel fit x"


def test_a_package_that_is_not_installed_has_no_version_and_a_checkout_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib import metadata

    import ppdmodel

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    found = files.provenance(("no such package",))
    assert found["packages"] == {"ppdmodel": ppdmodel.__version__, "no such package": None}


def test_the_page_of_files_has_every_limit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text("utf-8")
    rows = page.partition("## Limits")[2].splitlines()
    told = [cells[2].replace(" ", "") for row in rows if len(cells := row.split("|")) == 5]
    limits = {
        files.MOST_TEXT_BYTES, files.MOST_LINES, files.MOST_DELIMITERS, files.MOST_NESTED,
        parquet.MOST_TOKENS, parquet.MOST_NUMBERS,
        checks.MOST_DRAWS, checks.MOST, roofline.MOST_SIZE, *checks.LIMITS.values(),
    }  # fmt: skip
    assert {str(limit) for limit in limits} <= set(told)
