"""From a prompt file to its records: JSON, CSV, Parquet or plain text, within a size."""

from __future__ import annotations

import csv
import gzip
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, excerpt
from ..results.files import parse_json, table_lines

#: most bytes of a prompt file, after decompression, and most rows of a table
MAX_BYTES, MAX_ROWS = 1 << 26, 1_000_000
#: most commas or tabs of a table of text, those within its texts too
MAX_DELIMITERS = 10_000_000
#: rows of a Parquet table that are read together
ROWS = 64
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
#: a line from its first character that is not blank
LINE = re.compile(r"\S[^\n]*")
FORMATS = (
    'write one JSON object a line: {"text": "..."}, {"turns": ["...", ...]} or {"messages": '
    '[{"role": "user", "content": "..."}]}; a JSON array, CSV or Parquet table of these; '
    "or plain text in a .txt file, texts separated by blank lines"
)
#: keys of the text of a prompt, of which each prompt has one
TEXTS = ("text", "prompt", "turns", "messages", "conversations")
IDS, LABELS = ("id", "question_id", "task_id"), ("category", "language")


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Every record of a file, with its place there.

    Args:
        path: a .txt, .csv, .tsv, .parquet or .json file, or one of JSON Lines; also with .gz.

    Raises:
        InvalidInputError: the file is missing, no file, too large, damaged or not UTF-8.
    """
    name, data = path.name.lower().removesuffix(".gz"), _data(path)
    if name.endswith(".parquet"):
        yield from _parquet_rows(path, data)
        return
    if name.endswith((".csv", ".tsv")):
        yield from _csv_rows(path, data, "\t" if name.endswith(".tsv") else ",")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    if name.endswith(".txt"):
        text = text.replace("\r\n", "\n")
        parts = [part.strip("\n") for part in BLANK_LINES.split(f"\n\n{text}\n\n") if part.strip()]
        yield from ((f"text {n}", {"text": part}) for n, part in enumerate(parts, start=1))
    else:
        yield from _json_records(path, text, whole=name.endswith(".json"))


def _data(path: Path) -> bytes:
    """The bytes of a regular file, decompressed, of which there must not be too many."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "folder" if stat.S_ISDIR(mode) else "FIFO" if stat.S_ISFIFO(mode) else "device"
            raise InvalidInputError(
                f"the prompts must be in a regular file; got {path}, a {kind}; check --prompts"
            )
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInputError(
            f"the prompt file must exist; got {path}; check --prompts"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None
    check_size(path, len(data))
    return data


def _unreadable(path: Path, error: Exception) -> InvalidInputError:
    reason = getattr(error, "strerror", None) or excerpt(error)
    return InvalidInputError(
        f"the prompt file must be readable UTF-8 text; got {path} ({reason}); check --prompts"
    )


def check_size(path: Path, size: int) -> None:
    """Refuse more than `MAX_BYTES` bytes or characters read from a prompt file."""
    if size > MAX_BYTES:
        raise InvalidInputError(
            f"the prompt file must hold at most {MAX_BYTES >> 20} MiB, decompressed; got {path} "
            "with more; give a part of it"
        )


def _json_records(path: Path, text: str, whole: bool) -> Iterator[tuple[str, Any]]:
    """The elements of an array, or the object of each line; a `whole` file may be one object."""
    is_array = text.lstrip()[:1] == "["
    if is_array or whole:
        try:
            document = parse_json(text)
        except ValueError as error:
            if is_array:
                raise _not_json("the prompt file", str(path), error) from None
        else:
            rows = document if is_array else [document]
            yield from ((f"row {n}", row) for n, row in enumerate(rows, start=1))
            return
    number, end = 1, 0
    for match in LINE.finditer(text):
        number += text.count("\n", end, match.start())
        end = match.start()
        try:
            yield f"line {number}", parse_json(match[0])
        except ValueError as error:
            where = f"{path} line {number}"
            raise _not_json("each line of a prompt file", where, error) from None


def _not_json(what: str, where: str, error: ValueError) -> InvalidInputError:
    reason = getattr(error, "msg", None) or excerpt(error)
    return InvalidInputError(f"{what} must be JSON; got {where}: {reason}; {FORMATS}")


def _csv_rows(path: Path, data: bytes, delimiter: str) -> Iterator[tuple[str, Any]]:
    """Rows by the names in the first; cells of lists hold JSON."""
    if data.count(delimiter.encode()) > MAX_DELIMITERS:
        raise InvalidInputError(
            f"a table of prompts must have at most {MAX_DELIMITERS} delimiters; got {path} with "
            "more; give a part of it"
        )
    lines = table_lines(data, path, delimiter)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    before = csv.field_size_limit(MAX_BYTES)
    try:
        names = next(rows, [])
        _check_columns(path, names)
        number = 0
        for cells in rows:
            _check_rows(path, rows.line_num)
            if not cells:
                continue
            number += 1
            if len(cells) != len(names):
                raise InvalidInputError(
                    f"each row of a table must have a cell for each column; got {path} row "
                    f"{number} with {len(cells)} of {len(names)}; quote texts with commas"
                )
            row = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True)}
            for name in ("turns", "messages", "conversations"):
                if row.get(name):
                    try:
                        row[name] = parse_json(row[name])
                    except ValueError as error:
                        where = f"{path} row {number}"
                        raise _not_json(f"{name} in a table", where, error) from None
            yield f"row {number}", row
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    except csv.Error as error:
        raise InvalidInputError(
            f"the prompt file must be a table; got {path}: {excerpt(error)} in line "
            f"{rows.line_num}; quote texts with commas or newlines"
        ) from None
    finally:
        csv.field_size_limit(before)


def _cell(name: str, cell: str) -> Any:
    """A cell of a CSV file; a number or a truth value where it is no field of a prompt."""
    if name in (*TEXTS, *IDS, *LABELS):
        return cell
    with suppress(ValueError):
        return float(cell)
    return {"true": True, "false": False}.get(cell.lower(), cell)


def _check_rows(path: Path, rows: int) -> None:
    if rows > MAX_ROWS:
        raise InvalidInputError(
            f"a table of prompts must have at most {MAX_ROWS} rows; got {path} with more; give a "
            "part of it"
        )


def _parquet_rows(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        check_size(path, sum(group.total_byte_size for group in groups))
        _check_rows(path, file.metadata.num_rows)
        _check_columns(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=ROWS):
            # a large text may be stored once for many rows
            step = len(batch) if batch.nbytes * ROWS < MAX_BYTES else 1
            for start in range(0, len(batch), step):
                for row in batch.slice(start, step).to_pylist():
                    number += 1
                    yield f"row {number}", row
    except InvalidInputError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        raise InvalidInputError(
            f"the prompt file must be a Parquet table; got {path} ({excerpt(error)}); check "
            "--prompts"
        ) from None


def _check_columns(path: Path, names: Sequence[str]) -> None:
    counted = Counter(names)
    twice = next((name for name in names if counted[name] > 1), None)
    if twice is not None:
        raise InvalidInputError(
            f"columns of a table must have names of their own; got {twice!r} twice in {path}; "
            "rename one"
        )
