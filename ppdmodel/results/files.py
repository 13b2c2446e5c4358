"""Writing and reading of files: atomic, validated by a schema, with provenance.

A document is one JSON object with `schema` and `schema_version`; each kind has a JSON Schema in
`ppdmodel/results/schemas`, checked on writing and on reading. Nothing is pickled.
"""

from __future__ import annotations

import errno
import glob
import io
import json
import math
import os
import platform
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from ..errors import EXCERPT, InvalidInputError, PpdModelError, RunFailedError, visible
from .locks import lock

SCHEMA_VERSION = 1
MEASUREMENT, CALIBRATION = "ppdmodel/measurement", "ppdmodel/calibration"
TRAINED_EXITS, TIMING = "ppdmodel/trained-exits", "ppdmodel/timing"
VALIDATION, VALIDATION_FILE = "ppdmodel/validation", "validation.json"
KINDS = (MEASUREMENT, CALIBRATION, TRAINED_EXITS, TIMING, VALIDATION)
#: names of the files in a measurement's folder
SUMMARY_FILE, TOKENS_FILE, GUESSES_FILE = "summary.json", "tokens.parquet", "guesses.parquet"
_NAMED = 40  # characters of a file's name that its temporary name has


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, renamed to `path` on success and removed otherwise.

    The file is flushed to the disk before it is renamed, and its folder afterwards. While it is
    written it is locked; what killed processes left of earlier attempts has no lock and is removed.

    Raises:
        RunFailedError: the file system refused (a full disk, a read-only folder).
    """
    name = path.name[:_NAMED]
    number = int.from_bytes(os.urandom(4))
    part = path.with_name(f".{name}.part-{number}{path.suffix[:8]}")
    held = None
    try:
        if path.exists() and not path.is_file():
            raise RunFailedError(
                f"{path} must be a file; got a folder or a device; choose another name"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(name)}.part-[0-9]*"):
            _remove_unlocked(left)
        with suppress(OSError):  # without locks, nothing is removed either
            held = lock(part)
        yield part
        flush(part)
        part.replace(path)
        flush(path.parent)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if held is not None:
            held.close()


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        file = lock(path)
        if file is not None:
            with file:
                path.unlink()


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder where it can, to the disk.

    Raises:
        OSError: a file could not be written.
    """
    if path.is_dir():
        with suppress(OSError):
            folder = os.open(path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _not_writable(path: Path, error: OSError) -> PpdModelError:
    is_input = error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    kind = InvalidInputError if is_input else RunFailedError
    return kind(f"{path} must be writable; got {error.strerror or error}; choose another place")


def check_writable(path: Path) -> None:
    """Check before a long computation that its result can be written to `path`.

    Nothing is made: the check is of the nearest folder that exists.

    Raises:
        InvalidInputError: it is a folder or a device.
        RunFailedError: the file system refused.
    """
    try:
        if path.exists() and not path.is_file():
            raise InvalidInputError(
                f"{path} must be a file; got a folder or device; choose another"
            )
        folder = next(place for place in path.absolute().parents if place.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(path, error) from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Check a document against the schema of its kind and write it atomically."""
    clean = json_ready(document)
    check_schema(clean, path)
    with atomic(path) as part:
        part.write_text(_compact_rows(clean), encoding="utf-8")


def json_ready(value: Any) -> Any:
    """Convert a value to JSON types: NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return json_ready(value.tolist())
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _compact_rows(document: Mapping[str, Any]) -> str:
    """One line per key, and per row of a table, so that files diff and stay small."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n  {rows}\n ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


# ---------------------------------------------------------------- reading

#: most bytes of a text file: a calibration of 1000 prompts and 126 layers has 16 million
MOST_TEXT_BYTES = 2**26
#: most lines of a table of text, and commas or tabs of a line, those within its texts too
MOST_LINES, MOST_DELIMITERS = 10_000_000, 100_000
#: most lists and objects around a value: the schemas have six
MOST_NESTED = 64
#: a longer path has no room for the names of the files in a folder
_ROOM = "x" * 64


def check_path(path: Path) -> None:
    """Raise `InvalidInputError` where nothing can be at a path, nor in a folder there.

    A name is too long, links lead in a circle, or a folder above may not be entered.
    """
    try:
        with suppress(FileNotFoundError):
            path.stat()
        with suppress(FileNotFoundError, NotADirectoryError):  # the path may be a file's
            (path / _ROOM).stat()
    except (OSError, ValueError) as error:  # a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"a path must lead to a file or folder; got {reason} for {path}; give another"
        ) from None


def check_regular(path: Path, most_bytes: float = math.inf) -> None:
    """Raise `InvalidInputError` for a pipe or a device, which may have no end, and a large file.

    What is missing or may not be read passes; opening it says so.
    """
    try:
        about = path.stat()
    except OSError:
        return
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        raise InvalidInputError(
            f"{path} must be a file; got a pipe or a device; write its content to a file first"
        )
    if about.st_size > most_bytes and not stat.S_ISDIR(about.st_mode):
        raise InvalidInputError(
            f"{path} must be at most {most_bytes} bytes; got {about.st_size}; give another file"
        )


def read_text(path: Path, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """The text of a regular file of at most so many bytes.

    Raises:
        InvalidInputError: it is a pipe or a device, or larger.
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most_bytes).decode()


def read_bytes(path: Path, most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """The bytes of a regular file, of which there must not be more.

    Raises:
        InvalidInputError: it is a pipe or a device, or larger.
        OSError: it cannot be read.
    """
    check_regular(path, most_bytes)
    with path.open("rb") as file:  # what grows is read no further
        return file.read(most_bytes)


def table_lines(data: bytes, path: Path, delimiter: str = ",") -> Iterator[str]:
    """Each line of a table of text with its end, for a CSV reader.

    Raises:
        InvalidInputError: there are more than `MOST_LINES`, or `MOST_DELIMITERS` in one.
        UnicodeDecodeError: it is not UTF-8.
    """
    if max(map(data.count, (b"\n", b"\r"))) > MOST_LINES:
        raise InvalidInputError(
            f"a table must have at most {MOST_LINES} lines; got {path} with more; give a part of it"
        )
    lines = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    few = data.count(delimiter.encode()) <= MOST_DELIMITERS
    return lines if few else _within(lines, path, delimiter)


def _within(lines: Iterable[str], path: Path, delimiter: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.count(delimiter) > MOST_DELIMITERS:
            raise InvalidInputError(
                f"a line of a table must have at most {MOST_DELIMITERS} delimiters; got more "
                f"in line {number} of {path}; give a part of it"
            )
        yield line


#: spellings of numbers that JSON cannot have, or that may be too large for a float, and of halves
#: of characters
_MAYBE_WRONG = re.compile(r"\b(?:NaN|Infinity)\b|[eE]\+?\d{3}|\d{300}|\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document: keys of an object are unique, numbers finite, and texts Unicode.

    Raises:
        ValueError: the document is none, or is nested too deeply; the message is one line.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        document = json.loads(text, object_pairs_hook=_once)
        items = document.items() if isinstance(document, dict) else [("it", document)]
        deep = next((name for name, value in items if _is_deep(value)), None)
    except RecursionError:
        deep = "it"
    if deep is not None:
        raise ValueError(f"lists or objects nested too deeply in {deep}: more than {MOST_NESTED}")
    place = next(_wrong(document), None) if _MAYBE_WRONG.search(text) else None
    if place is not None:
        where, value, must = place
        raise ValueError(f"{value} at {where or 'the top level'}, which must be {must}")
    return document


def _is_deep(document: Any) -> bool:
    """Whether more than `MOST_NESTED` lists and objects are around each other."""
    level: list[Any] = [[document]]
    for _ in range(MOST_NESTED + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [x for items in inner for x in items if type(x) is list or type(x) is dict]
        if not level:
            break
    return bool(level)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} twice in one object")
    return found


def _wrong(value: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """Infinite numbers, NaN, and texts with half a character: place, value, what must hold."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, str(value), "a finite number"
    elif isinstance(value, str) and not _is_unicode(value):
        yield where, visible(value)[:EXCERPT], "text in Unicode"
    elif isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            if isinstance(name, str) and not _is_unicode(name):
                yield where, visible(name)[:EXCERPT], "text in Unicode"
            yield from _wrong(item, f"{where}/{name}" if where else str(name))


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text)


def read_json(path: Path, *expected: str) -> dict[str, Any]:
    """Read and check one document, of one of the expected kinds if any are given.

    Raises:
        InvalidInputError: the file is missing, cut short, of another kind than expected, or written
            by a newer version, or a value is not what its schema allows.
    """
    try:
        document: Any = parse_json(read_text(path))
    except FileNotFoundError:
        raise InvalidInputError(f"the result must exist; got {path}; check the path") from None
    except InvalidInputError:
        raise
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"a result must be whole JSON; got {path} ({error}); make it again"
        ) from None
    kind = document.get("schema") if isinstance(document, dict) else None
    if kind not in (expected or KINDS):
        wanted = " or ".join(expected or KINDS)
        raise InvalidInputError(f"the file must be a {wanted}; got {kind!r} in {path}")
    check_version(document, path)
    check_schema(document, path)
    return dict(document)


def check_version(document: Mapping[str, Any], path: Path) -> None:
    """Raise `InvalidInputError` where a newer ppdmodel wrote the document."""
    version = document.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InvalidInputError(
            f"{path} must have schema version {SCHEMA_VERSION} or older; got {version!r}; "
            "upgrade ppdmodel"
        )


def check_schema(document: Any, path: Path) -> None:
    """Raise `InvalidInputError` where a document does not follow the schema that it names."""
    check_part(document, document["schema"], path)


def check_part(part: Any, kind: str, path: Path | str, definition: str = "") -> None:
    """Raise `InvalidInputError` where data do not follow a kind's schema, or one of its `$defs`."""
    error = next(_validator(kind, definition).iter_errors(part), None)
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        raise InvalidInputError(
            f"{path} must follow its schema; got a fault at {where}: {_shortened(error.message)}"
        )


def _shortened(message: str) -> str:
    """A message of one line without the middle of a long value."""
    line, half = " ".join(message.split()), EXCERPT // 2
    return line if len(line) <= EXCERPT else f"{line[:half]}...{line[-half:]}"


@cache
def _validator(kind: str, definition: str) -> Any:
    """The validator of a schema; rows of numbers, most of a calibration, are checked at once.

    Whole numbers fit 64 bits and are not written as floats, and no number is beyond a float.
    """
    from jsonschema import Draft202012Validator, validators

    extend: Any = validators.extend
    one_by_one = Draft202012Validator.VALIDATORS["items"]

    def items(validator: Any, each: Any, row: Any, schema: Any) -> Iterator[Any]:
        if not _are_numbers(row, each):
            yield from one_by_one(validator, each, row, schema)

    types = Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": lambda _, value: _is_whole(value), "number": lambda _, value: _is_number(value)}
    )
    name = kind.rsplit("/", 1)[1]
    text = (resources.files(__package__) / "schemas" / f"{name}.schema.json").read_text("utf-8")
    schema = json.loads(text)
    whole = extend(Draft202012Validator, {"items": items}, type_checker=types)(schema)
    return whole.evolve(schema=schema["$defs"][definition]) if definition else whole


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (type(value) is float and math.isfinite(value))


#: types of numbers in JSON as they are read; a boolean is none
_NUMBERS: Mapping[str, set[type]] = {"integer": {int}, "number": {int, float}}


def _are_numbers(row: Any, each: Mapping[str, Any]) -> bool:
    """Whether a row surely holds numbers of the type and between the bounds that `each` names."""
    kind = each.get("type")
    if not each.keys() <= {"type", "minimum", "maximum"} or kind not in ("integer", "number"):
        return False
    if not isinstance(row, list) or not row or not set(map(type, row)) <= _NUMBERS[kind]:
        return False
    low, high = each.get("minimum", -(2**63)), each.get("maximum", 2**63 - 1)
    return bool(low <= min(row) and max(row) <= high)


@cache
def _version(name: str) -> str | None:
    """A package's version, of a checkout too; None where it is missing, as in part of an extra."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return getattr(sys.modules.get(name), "__version__", None)


def provenance(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Provenance of a result: versions, machine, date and command."""
    is_command = Path(sys.argv[0]).name in ("ppdmodel", "__main__.py")
    return {
        "packages": {name: _version(name) for name in ("ppdmodel", *packages)},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["ppdmodel", *sys.argv[1:]] if is_command else ["python"]),
    }
