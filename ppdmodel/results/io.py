"""Load and save results: measurement folders and calibration files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from . import files
from .calibration import Calibration, FamilyScore, MatchCurve, Reliability
from .files import read_json, write_json
from .intervals import Interval
from .measurement import Guesses, Measurement
from .packing import pack_token_counts, unpack_token_counts
from .timing import Timed, Timing


def load(path: str | Path) -> Measurement | Calibration | Timing:
    """Read a measurement folder, a calibration file or a timing file.

    Raises:
        InvalidInputError: the path holds none of them, or a damaged or newer one.
    """
    path = Path(path)
    if path.is_dir():
        return read_measurement(path)
    document = read_json(path, files.CALIBRATION, files.TIMING)
    read = _timing if document["schema"] == files.TIMING else _calibration
    return read(document, path)


def load_rates(path: str | Path) -> Measurement | Calibration:
    """Read match rates: a measurement folder or a calibration file."""
    path = Path(path)
    return read_measurement(path) if path.is_dir() else load_calibration(path)


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration file, and nothing else."""
    return _calibration(read_json(Path(path), files.CALIBRATION), Path(path))


def load_timing(path: str | Path) -> Timing:
    """Read a timing file, and nothing else."""
    return _timing(read_json(Path(path), files.TIMING), Path(path))


def save(result: Measurement | Calibration | Timing, path: str | Path) -> None:
    """Write a measurement to a folder, or another result to a file, atomically."""
    if isinstance(result, Measurement):
        write_measurement(result, Path(path))
    elif isinstance(result, Timing):
        write_json(Path(path), _timing_document(result))
    else:
        write_json(Path(path), _calibration_document(result))


def _timing_document(result: Timing) -> dict[str, Any]:
    return {"schema": files.TIMING, "schema_version": files.SCHEMA_VERSION, **asdict(result)}


def _timing(document: Mapping[str, Any], path: Path) -> Timing:
    fields = {k: v for k, v in document.items() if k in Timing.__dataclass_fields__}
    fields["terms"] = {name: Timed(**term) for name, term in fields["terms"].items()}
    fields["by_k"] = {
        int(k): {name: tuple(Timed(**term) for term in each) for name, each in terms.items()}
        for k, terms in fields["by_k"].items()
    }
    fields["exit_layers"] = tuple(fields["exit_layers"])
    fields["layer_profile_s"] = tuple(fields["layer_profile_s"])
    result = Timing(**fields)
    fault = _timing_fault(result)
    if fault:
        raise InvalidInputError(f"{path} must be whole; got {fault}; time again")
    return result


def _timing_fault(timing: Timing) -> str:
    """An inconsistency between the fields of a timing; empty if there is none."""
    places = timing.exit_layers
    if list(places) != sorted(places) or places[-1] >= timing.layers:
        return f"exit layers that do not ascend below layer {timing.layers}: {list(places)}"
    if len(timing.layer_profile_s) != timing.layers:
        return f"a profile of {len(timing.layer_profile_s)} layers, not {timing.layers}"
    n = next(iter(timing.terms.values())).n
    for name in timing.terms:
        if _lengths(timing.samples["terms"].get(name)) != n:
            return f"not {n} samples of {name}"
    for k, terms in timing.by_k.items():
        for name, each in terms.items():
            if len(each) != len(places):
                return f"{len(each)} values of {name} for k = {k}, not one per exit layer"
            drawn = timing.samples["by_k"].get(str(k), {}).get(name)
            if _lengths(drawn) != [n] * len(places):
                return f"not {n} samples of {name} for k = {k} at each exit layer"
    return ""


def _lengths(samples: Any) -> Any:
    """Length of a list of numbers, lengths of a list of lists, None otherwise."""
    if not isinstance(samples, list):
        return None
    if any(isinstance(one, list) for one in samples):
        return [_lengths(one) for one in samples]
    return len(samples) if all(isinstance(one, (int, float)) for one in samples) else None


def _calibration_document(result: Calibration) -> dict[str, Any]:
    fields = asdict(replace(result, recorded=None))
    document = {"schema": files.CALIBRATION, "schema_version": files.SCHEMA_VERSION, **fields}
    timing = result.timing and _timing_document(result.timing)
    counts = result.recorded and pack_token_counts(result.recorded)
    return document | {"k_max": result.k_max, "timing": timing, "recorded": counts}


def _calibration(document: dict[str, Any], path: Path) -> Calibration:
    _check_shapes(document, path)
    fields = {k: v for k, v in document.items() if k in Calibration.__dataclass_fields__}
    curve = dict(fields["curve"])
    curve["parameters"] = {k: Interval(**_known(v)) for k, v in curve["parameters"].items()}
    rows = curve.get("covariance", ())
    curve["covariance"] = tuple(tuple(_known(dict(enumerate(row))).values()) for row in rows)
    curve["candidates"] = tuple(FamilyScore(**row) for row in curve.get("candidates", ()))
    arrays = {k: np.asarray(fields[k], dtype=float) for k in ("p_correct", "ci_low", "ci_high")}
    counts = {k: np.asarray(fields[k], dtype=np.int64) for k in ("tokens", "hits")}
    fields |= arrays | counts | {"curve": MatchCurve(**curve)}
    fields["prompt_ids"] = tuple(fields["prompt_ids"])
    for name in ("exit_layers", "ks"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    timing = fields.get("timing")
    if timing is not None:
        files.check_version(timing, path)
        files.check_schema(timing, path)
        fields["timing"] = _timing(timing, path)
    if fields.get("recorded") is not None:
        fields["recorded"] = unpack_token_counts(
            fields["recorded"], fields["layers"], fields["tokens"], path
        )
    fields["reliability"] = tuple(Reliability(**row) for row in fields.get("reliability", ()))
    return Calibration(**fields)


def _known(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Convert null to NaN, for parameters that are not identified."""
    return {name: math.nan if value is None else value for name, value in values.items()}


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


def write_measurement(result: Measurement, folder: Path) -> None:
    """Write `tokens.parquet`, then the `summary.json` that is derived from it."""
    from .parquet import write_tokens
    from .summary import summarize

    write_tokens(result, folder / files.TOKENS_FILE)
    write_json(folder / files.SUMMARY_FILE, summarize(result))


def load_guesses(folder: str | Path) -> Guesses:
    """Read the first guesses of every exit that a measurement folder holds.

    Raises:
        InvalidInputError: the folder has none, or a damaged file.
    """
    path = Path(folder) / files.GUESSES_FILE
    if not path.is_file():
        raise InvalidInputError(
            f"the measurement must hold {path.name}; got {folder} without it; measure again"
        )
    from .parquet import read_guesses

    return read_guesses(path)


def read_measurement(folder: Path) -> Measurement:
    """Read a measurement folder.

    Raises:
        InvalidInputError: it is not one, or its two files do not match.
    """
    if not (folder / files.SUMMARY_FILE).is_file():
        raise InvalidInputError(
            f"a measurement folder must hold {files.SUMMARY_FILE}; got {folder} without it; "
            "make one with: ppdmodel measure"
        )
    from .parquet import read_tokens

    summary = read_json(folder / files.SUMMARY_FILE, files.MEASUREMENT)
    result = read_tokens(folder / files.TOKENS_FILE)
    if (result.n_tokens, result.layers) != (summary["n_tokens"], summary["layers"]):
        raise InvalidInputError(
            f"the two files of {folder} must belong together; got {result.n_tokens} tokens and "
            f"{summary['n_tokens']} in the summary; measure again into another folder"
        )
    return result
