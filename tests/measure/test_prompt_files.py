"""Prompt files of each kind: their records, their sizes, and what is no file or damaged."""

from __future__ import annotations

import csv
import gzip
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import prompt_files
from ppdmodel.measure.prompts import read_prompts


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_any_system_say_the_same(
    tmp_path: Path, bom: bytes, newline: str, zipped: bool
) -> None:
    """Also without a newline at the end, and with line separators of Unicode inside a text."""
    texts = [
        "plain",
        "ü and 漢字 and 🦊",
        "one\u2028two\u2029three\x85four\x0bfive\x0csix",
        "a\r\nb",
    ]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    data = bom + newline.join([rows[0], "", *rows[1:]]).encode()
    path = tmp_path / ("p.jsonl.gz" if zipped else "p.jsonl")
    path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    found = read_prompts(path)
    assert [prompt.text for prompt in found] == texts
    assert [prompt.id for prompt in found] == ["line-1", "line-3", "line-4", "line-5"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a", "text": "b"}', "line 2: the key 'text' twice in one object"),
        ('{"text": "a", "category": NaN}', "line 2: nan at category, which must be a finite"),
        ('{"text": ' + "[" * 100_000, "line 2: lists or objects nested too deeply"),
    ],
)
def test_a_line_that_json_cannot_mean_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "first"}\n' + line + "\n")
    with pytest.raises(InvalidInputError, match=words) as caught:
        read_prompts(path)
    assert len(str(caught.value)) < 500


# ---------------------------------------------------------------- plain text and archives


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_plain_text_is_split_at_blank_lines(tmp_path: Path, bom: bytes, newline: str) -> None:
    lines = [
        "",
        "",
        "First line",
        "and more.",
        "",
        "{not json}",
        "",
        "",
        "",
        "  sep\u2028arated",
        "",
    ]
    path = tmp_path / "notes.txt"
    path.write_bytes(bom + newline.join(lines).encode())
    found = read_prompts(path)
    assert [(prompt.id, prompt.text) for prompt in found] == [
        ("text-1", "First line\nand more."),
        ("text-2", "{not json}"),
        ("text-3", "  sep\u2028arated"),
    ]
    assert all(prompt.turns == (prompt.text,) for prompt in found)


@pytest.mark.parametrize("name", ["notes.txt.gz", "NOTES.TXT"])
def test_plain_text_by_any_name(tmp_path: Path, name: str) -> None:
    data = b"first\n\nsecond\n"
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    assert [prompt.text for prompt in read_prompts(tmp_path / name)] == ["first", "second"]


@pytest.mark.parametrize(
    "text", ["first\n  \nsecond\n", " \nfirst\n \n\t\n \nsecond\n ", "\n\n \nfirst\n\n\n\nsecond"]
)
def test_a_line_of_blanks_is_a_blank_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.txt").write_text(text)
    assert [prompt.text for prompt in read_prompts(tmp_path / "n.txt")] == ["first", "second"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not gzip", "must be readable UTF-8 text"),
        (gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-12], "must be readable UTF-8 text"),
        (gzip.compress(b"\xff", mtime=0), "must be readable UTF-8 text"),
        (gzip.compress(b"", mtime=0), "which is empty"),
        (gzip.compress(b"hello", mtime=0), "must be JSON; got"),
    ],
)
def test_damaged_archives_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError) as caught:
        read_prompts(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,text,text\n1,a,b\n", "got 'text' twice in"),
        ("id,text\n1,a,b\n", "row 1 with 3 of 2; quote texts with commas"),
        ("id,text\n1,a\n\n2\n", "row 2 with 1 of 2"),
        ('id,text\n1,"a\n', "unexpected end of data in line"),
        ('id,text\n1,"a"b\n', "expected after"),
        ('turns\n"[""a"", 3"\n', "turns in a table must be JSON; got"),
        ("text,system\na,Answer in Greek.\n", "row 1 with 'system', which is not"),
        ("id,text\n1,\n", "row 1 without one: its keys are 'id', 'text'"),
        ("a\tb\n", "which is empty"),
        ("", "which is empty"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        read_prompts(tmp_path / "p.csv")
    assert words in str(caught.value)
    assert str(tmp_path / "p.csv") in str(caught.value)


def test_tables_keep_texts_as_they_are(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "p.tsv").write_text(
        f'\ufeffid\ttext\tyear\n007\tNA\t\n2\t"a\n b"\t1\n3\t{long}\t\n'
    )
    found = read_prompts(tmp_path / "p.tsv")
    assert [(p.id, p.text) for p in found] == [("007", "NA"), ("2", "a\n b"), ("3", long)]
    before = csv.field_size_limit()
    read_prompts(tmp_path / "p.tsv")
    assert csv.field_size_limit() == before


def test_damaged_parquet_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"text": ["a"] * 99, "id": range(99)}), path)
    data = path.read_bytes()
    for part in (b"", b"text", data[:-9], data[9:], b"PAR1" + data[40:]):
        path.write_bytes(part)
        with pytest.raises(InvalidInputError, match="must be a Parquet table; got"):
            read_prompts(path)
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, path)
    with pytest.raises(InvalidInputError, match="got 'text' twice"):
        read_prompts(path)


# ---------------------------------------------------------------- budgets


def test_an_archive_that_swells_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(bytes(1 << 20)) * 200)
    start = time.process_time()
    with pytest.raises(InvalidInputError, match=r"hold at most 64 MiB, decompressed; got .* with"):
        read_prompts(tmp_path / "p.jsonl.gz")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["p.jsonl", "p.json.gz", "p.csv", "p.txt.gz", "p.parquet"])
def test_the_limit_is_of_every_container(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_files, "MAX_BYTES", 1 << 20)
    data = b"x" * ((1 << 20) + 1)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(InvalidInputError, match="hold at most 1 MiB, decompressed"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("data", [b"\n", b"[", b'{"text": 1,', b"\0", b'"', b"[[],"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_a_large_file_of_nothing_ends_soon(tmp_path: Path, name: str, data: bytes) -> None:
    """A twentieth of the largest size, in a fraction of the time."""
    (tmp_path / name).write_bytes(data * ((prompt_files.MAX_BYTES // 20) // len(data)))
    start = time.process_time()
    with pytest.raises(InvalidInputError) as caught:
        read_prompts(tmp_path / name)
    assert time.process_time() - start < 0.4
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
def test_a_table_of_nothing_but_columns_ends_soon(tmp_path: Path, name: str) -> None:
    delimiter = "\t" if name.endswith("tsv") else ","
    (tmp_path / name).write_text(delimiter * (prompt_files.MAX_DELIMITERS + 1))
    with pytest.raises(InvalidInputError, match=r"at most 10000000 delimiters; got .*p\."):
        read_prompts(tmp_path / name)
    (tmp_path / name).write_text(delimiter * 5_000_000)
    with pytest.raises(InvalidInputError, match=r"at most 100000 delimiters; got more in line 1"):
        read_prompts(tmp_path / name)
    (tmp_path / name).write_text(delimiter.join(map(str, range(100_000))) + "\n")
    start = time.process_time()
    with pytest.raises(InvalidInputError, match="which is empty"):
        read_prompts(tmp_path / name)
    assert time.process_time() - start < 2


def test_a_parquet_table_that_swells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    large = pa.DictionaryArray.from_arrays(
        pa.array([0] * 9000, pa.int32()), pa.array(["x" * 10_000])
    )
    pq.write_table(pa.table({"text": large}), path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InvalidInputError, match="hold at most 64 MiB, decompressed"):
        read_prompts(path)
    pq.write_table(pa.table({"text": pa.nulls(1_000_001, pa.string())}), path)
    with pytest.raises(InvalidInputError, match=r"at most 1000000 rows; got .*with more"):
        read_prompts(path)


# ---------------------------------------------------------------- what is no file


NO_FILES = {
    "/dev/zero": "/dev/zero, a device",
    "/dev/full": "/dev/full, a device",
    "/dev/tty": "/dev/tty, a device",
    "{tmp}": ", a folder; check --prompts",
    "{tmp}/fifo": "/fifo, a FIFO; check",
    "{tmp}/loop": "Too many levels of symbolic links for",
    "{tmp}/loop/p.jsonl": "Too many levels of symbolic links for",
    "{tmp}/" + "x" * 256: "File name too long for",
    "{tmp}/dangling": "the prompt file must exist; got",
    "{tmp}/file/p.jsonl": "Not a directory for",
}


@pytest.mark.parametrize("command", ["measure", "train-exits"])
@pytest.mark.parametrize(("path", "words"), NO_FILES.items(), ids=[*map(str, range(len(NO_FILES)))])
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, path: str, words: str
) -> None:
    if path.startswith("/dev") and not Path(path).exists():
        pytest.skip(f"there is no {path}")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "file").write_text("")
    named = path.format(tmp=tmp_path)
    assert run_command([command, "--prompts", named, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("error: the prompt", "error: a path must lead to a file"))
    assert words in line
    assert named in line
    assert not (tmp_path / "out").exists()
