"""Writing and reading of files: atomic, validated by a schema, with provenance.

A document is one JSON object with `schema` and `schema_version`; each kind has a JSON Schema in
`ppdmodel/results/schemas`, checked on writing and on reading. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, RunFailedError

SCHEMA_VERSION = 1
MEASUREMENT, CALIBRATION = "ppdmodel/measurement", "ppdmodel/calibration"
TRAINED_EXITS, TIMING = "ppdmodel/trained-exits", "ppdmodel/timing"
VALIDATION = "ppdmodel/validation"
KINDS = (MEASUREMENT, CALIBRATION, TRAINED_EXITS, TIMING, VALIDATION)
VALIDATION_FILE = "validation.json"
#: names of the files in a measurement's folder
SUMMARY_FILE, TOKENS_FILE, GUESSES_FILE = "summary.json", "tokens.parquet", "guesses.parquet"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, renamed to `path` on success and removed otherwise.

    Raises:
        RunFailedError: the file system refused (a full disk, a read-only folder).
    """
    if path.exists() and not path.is_file():
        raise RunFailedError(
            f"{path} must be a file; got a folder or a device; choose another name"
        )
    part = path.with_name(f".{path.name}.part-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _not_writable(path: Path, error: OSError) -> RunFailedError:
    reason = error.strerror or error
    return RunFailedError(f"{path} must be writable; got {reason}; choose another place")


def check_writable(path: Path) -> None:
    """Check before a long computation that its result can be written to `path`.

    Raises:
        InvalidInputError: it is a folder or a device.
        RunFailedError: the file system refused.
    """
    if path.exists() and not path.is_file():
        raise InvalidInputError(f"{path} must be a file; got a folder or device; choose another")
    existed = path.parent.is_dir()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _not_writable(path, error) from error
    if not existed:
        path.parent.rmdir()


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


def read_json(path: Path, *expected: str) -> dict[str, Any]:
    """Read and check one document, of one of the expected kinds if any are given.

    Raises:
        InvalidInputError: the file is missing, cut short, of another kind than expected, or written
            by a newer version.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(f"the result must exist; got {path}; check the path") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
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
    name = document["schema"].rsplit("/", 1)[1]
    text = (resources.files(__package__) / "schemas" / f"{name}.schema.json").read_text("utf-8")
    error = next(_validator()(json.loads(text)).iter_errors(document), None)
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        raise InvalidInputError(
            f"{path} must follow its schema; got a fault at {where}: {error.message[:200]}"
        )


@cache
def _validator() -> Any:
    """The validator of JSON Schema; rows of numbers, most of a calibration, are checked at once."""
    from jsonschema import Draft202012Validator, validators

    extend: Any = validators.extend
    one_by_one = Draft202012Validator.VALIDATORS["items"]

    def items(validator: Any, each: Any, row: Any, schema: Any) -> Iterator[Any]:
        if not _are_numbers(row, each):
            yield from one_by_one(validator, each, row, schema)

    return extend(Draft202012Validator, {"items": items})


#: types of numbers in JSON as they are read; a boolean is none
_NUMBERS: Mapping[str, set[type]] = {"integer": {int}, "number": {int, float}}


def _are_numbers(row: Any, each: Mapping[str, Any]) -> bool:
    """Whether a row surely holds numbers of the type and between the bounds that `each` names."""
    kind = each.get("type")
    if not each.keys() <= {"type", "minimum", "maximum"} or kind not in ("integer", "number"):
        return False
    if not isinstance(row, list) or not row or not set(map(type, row)) <= _NUMBERS[kind]:
        return False
    low, high = each.get("minimum", -math.inf), each.get("maximum", math.inf)
    return bool(low <= min(row) and max(row) <= high)


def provenance(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Provenance of a result: versions, machine, date and command."""
    names = ("ppdmodel", *packages)
    is_command = Path(sys.argv[0]).name in ("ppdmodel", "__main__.py")
    return {
        "packages": {name: metadata.version(name) for name in names},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["ppdmodel", *sys.argv[1:]] if is_command else ["python"]),
    }
