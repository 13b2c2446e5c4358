"""The files that results travel in: schemas, atomic writes, provenance, reading back.

A document is one JSON object with `schema` and `schema_version`; each kind has a JSON Schema in
`ppdmodel/schemas`, checked on writing and on reading. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from .errors import InvalidInputError, RunFailedError
from .results import Calibration, Interval, MatchCurve, Measurement

SCHEMA_VERSION = 1
MEASUREMENT, CALIBRATION = "ppdmodel/measurement", "ppdmodel/calibration"
SUMMARY_FILE, TOKENS_FILE = "summary.json", "tokens.parquet"
#: largest k in a summary's table of hits; the ranks in the Parquet file have no such limit
SUMMARY_K = 100


# ---------------------------------------------------------------- writing and reading, any kind


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, renamed to `path` on success and removed otherwise.

    Raises:
        RunFailedError: the file system refused (a full disk, a read-only folder).
    """
    part = path.with_name(f".{path.name}.part-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise RunFailedError(
            f"{path} must be writable; got {error.strerror or error}; choose another place"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Check a document against the schema of its kind and write it atomically."""
    clean = json_ready(document)
    _validate(clean, path)
    with atomic(path) as part:
        part.write_text(_compact_rows(clean), encoding="utf-8")


def json_ready(value: Any) -> Any:
    """Turn a value into what JSON holds: NaN and infinities become None."""
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


def read_json(path: Path, expected: str | None = None) -> dict[str, Any]:
    """Read and check one document.

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
    if kind not in (MEASUREMENT, CALIBRATION) or (expected and kind != expected):
        wanted = expected or f"{MEASUREMENT} or {CALIBRATION}"
        raise InvalidInputError(f"the file must be a {wanted}; got {kind!r} in {path}")
    _check_version(document, path)
    _validate(document, path)
    return dict(document)


def _check_version(document: Mapping[str, Any], path: Path) -> None:
    version = document.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InvalidInputError(
            f"{path} must have schema version {SCHEMA_VERSION} or older; got {version!r}; "
            "upgrade ppdmodel"
        )


def _validate(document: Any, path: Path) -> None:
    import jsonschema

    name = document["schema"].rsplit("/", 1)[1]
    text = (resources.files("ppdmodel") / "schemas" / f"{name}.schema.json").read_text("utf-8")
    error = next(jsonschema.Draft202012Validator(json.loads(text)).iter_errors(document), None)
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the top level"
        raise InvalidInputError(
            f"{path} must follow its schema; got a fault at {where}: {error.message[:200]}"
        )


def provenance(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Who made a result: versions, machine, date and command."""
    names = ("ppdmodel", *packages)
    return {
        "packages": {name: metadata.version(name) for name in names},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["ppdmodel", *sys.argv[1:]] if _is_cli() else ["python"]),
    }


def _is_cli() -> bool:
    return Path(sys.argv[0]).name in ("ppdmodel", "__main__.py")


# ---------------------------------------------------------------- load and save


def load(path: str | Path) -> Measurement | Calibration:
    """Read a measurement folder or a calibration file.

    Raises:
        InvalidInputError: the path holds neither, or a damaged or newer one.
    """
    path = Path(path)
    if path.is_dir():
        return read_measurement(path)
    document = read_json(path, CALIBRATION)
    _check_shapes(document, path)
    return _calibration(document)


def save(result: Measurement | Calibration, path: str | Path) -> None:
    """Write a measurement to a folder, or a calibration to a file, atomically."""
    if isinstance(result, Measurement):
        write_measurement(result, Path(path))
    else:
        write_json(Path(path), _calibration_document(result))


def _calibration_document(result: Calibration) -> dict[str, Any]:
    document = {"schema": CALIBRATION, "schema_version": SCHEMA_VERSION, **asdict(result)}
    return document | {"k_max": result.k_max}


def _calibration(document: dict[str, Any]) -> Calibration:
    import numpy as np

    fields = {k: v for k, v in document.items() if k in Calibration.__dataclass_fields__}
    curve = dict(fields["curve"])
    curve["parameters"] = {k: Interval(**v) for k, v in curve["parameters"].items()}
    arrays = {k: np.asarray(fields[k], dtype=float) for k in ("p_correct", "ci_low", "ci_high")}
    counts = {k: np.asarray(fields[k], dtype=np.int64) for k in ("tokens", "hits")}
    fields |= arrays | counts | {"curve": MatchCurve(**curve)}
    fields["prompt_ids"] = tuple(fields["prompt_ids"])
    return Calibration(**fields)


def _check_shapes(document: Mapping[str, Any], path: Path) -> None:
    """The tables of a calibration must have the sizes that it states."""
    prompts, layers, k_max = len(document["prompt_ids"]), document["layers"], document["k_max"]
    tables = [document[name] for name in ("p_correct", "ci_low", "ci_high")] + document["hits"]
    whole = len(document["tokens"]) == len(document["hits"]) == prompts and all(
        len(table) == layers and all(len(row) == k_max for row in table) for table in tables
    )
    if not whole:
        raise InvalidInputError(
            f"the tables of {path} must be {layers} layers by {k_max} k for {prompts} prompts; "
            "got other sizes; fit again"
        )


# ---------------------------------------------------------------- measurements


def rank_columns(layers: int, name: str = "rank") -> list[str]:
    """Column names of the Parquet file, one per exit layer.

    >>> rank_columns(2)
    ['rank_01', 'rank_02']
    """
    digits = max(2, len(str(layers)))
    return [f"{name}_{layer:0{digits}d}" for layer in range(1, layers + 1)]


def write_tokens(result: Measurement, path: Path) -> None:
    """Write the per-token table of a measurement; its metadata hold all that the table does not."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "prompt_id": pa.DictionaryArray.from_arrays(
            pa.array(result.prompt_index, pa.int32()), pa.array(result.prompt_ids, pa.string())
        ),
        "position": pa.array(result.position, pa.int32()),
        "token_id": pa.array(result.token_id, pa.int32()),
    }
    for name, values, dtype in (
        ("rank", result.rank, np.int32),
        ("prob", result.top_prob, np.float32),
    ):
        for column, label in enumerate(rank_columns(result.layers, name)):
            columns[label] = pa.array(np.ascontiguousarray(values[:, column], dtype=dtype))
    about = {
        "schema": MEASUREMENT,
        "schema_version": SCHEMA_VERSION,
        "layers": result.layers,
        "complete": result.complete,
        "provenance": result.provenance,
        "prompt_ids": result.prompt_ids,
        "categories": result.categories,
        "ties": result.ties,
    }
    metadata = {MEASUREMENT: json.dumps(json_ready(about), ensure_ascii=False)}
    with atomic(path) as part:
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, part, compression="zstd")


def read_tokens(path: Path) -> Measurement:
    """Read a per-token table back as the measurement it was.

    Raises:
        InvalidInputError: the file is missing, cut short, newer, or not such a table.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidInputError(
            f"{path} must be a whole Parquet file; got: {reason}; measure again"
        ) from None
    about = json.loads((table.schema.metadata or {}).get(MEASUREMENT.encode(), b"null"))
    if about is None:
        raise InvalidInputError(f"{path} must be the table of a {MEASUREMENT}; got another table")
    _check_version(about, path)

    def column(name: str, dtype: Any) -> Any:
        return table.column(name).to_numpy().astype(dtype)

    def stacked(name: str, dtype: Any) -> Any:
        return np.stack([column(c, dtype) for c in rank_columns(about["layers"], name)], axis=1)

    try:
        number = {name: index for index, name in enumerate(about["prompt_ids"])}
        return Measurement(
            provenance=about["provenance"],
            prompt_ids=tuple(number),
            categories=tuple(about["categories"]),
            prompt_index=np.asarray(
                [number[name] for name in table.column("prompt_id").to_pylist()], dtype=np.int64
            ),
            position=column("position", np.int64),
            token_id=column("token_id", np.int64),
            rank=stacked("rank", np.int64),
            top_prob=stacked("prob", np.float64),
            complete=about["complete"],
            ties=tuple(about["ties"]),
        )
    except KeyError as error:
        raise InvalidInputError(
            f"{path} must hold a whole table; got one without {error}; measure again"
        ) from None


def write_measurement(result: Measurement, folder: Path) -> None:
    """Write `tokens.parquet`, then the `summary.json` that is derived from it."""
    from .summary import summarize

    write_tokens(result, folder / TOKENS_FILE)
    write_json(folder / SUMMARY_FILE, summarize(result))


def read_measurement(folder: Path) -> Measurement:
    """Read a measurement folder.

    Raises:
        InvalidInputError: it is not one, or its two files do not belong together.
    """
    if not (folder / SUMMARY_FILE).is_file():
        raise InvalidInputError(
            f"a measurement folder must hold {SUMMARY_FILE}; got {folder} without it; "
            "make one with: ppdmodel measure"
        )
    summary = read_json(folder / SUMMARY_FILE, MEASUREMENT)
    result = read_tokens(folder / TOKENS_FILE)
    if (result.n_tokens, result.layers) != (summary["n_tokens"], summary["layers"]):
        raise InvalidInputError(
            f"the two files of {folder} must belong together; got {result.n_tokens} tokens and "
            f"{summary['n_tokens']} in the summary; measure again into another folder"
        )
    return result
