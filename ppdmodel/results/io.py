"""Load and save results: measurement folders and calibration files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from . import files
from .calibration import Calibration, FamilyScore, MatchCurve, Reliability
from .files import read_json, write_json
from .intervals import METHOD, Interval
from .measurement import Guesses, Measurement
from .packing import pack_token_counts, unpack_token_counts
from .timing import Timed, Timing

if TYPE_CHECKING:
    from .._types import Ints


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
    drawn, faults = timing.samples["terms"], []
    for name, term in timing.terms.items():
        faults.append(_term_fault(term, drawn.get(name), n, name))
    for k, terms in timing.by_k.items():
        for name, each in terms.items():
            if len(each) != len(places):
                return f"{len(each)} values of {name} for k = {k}, not one per exit layer"
            samples = timing.samples["by_k"].get(str(k), {}).get(name, ())
            for e, term, mine in zip_longest(places, each, samples):
                faults.append(_term_fault(term, mine, n, f"{name} for k = {k} at exit layer {e}"))
    return next(filter(None, faults), "")


def _term_fault(term: Timed | None, samples: Any, n: int, name: str) -> str:
    """An inconsistency between a median time and its samples; empty if there is none."""
    if term is None or not isinstance(samples, list) or {len(samples), term.n} != {n}:
        return f"not {n} samples of {name}"
    if not term.ci_low <= term.value <= term.ci_high:
        return (
            f"{name} of {term.value:g} s outside its interval {term.ci_low:g} to {term.ci_high:g}"
        )
    if not math.isclose(float(np.median(samples)), term.value, rel_tol=1e-6, abs_tol=1e-12):
        return f"{name} of {term.value:g} s, which is not the median of its samples"
    return ""


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
    fields["reliability"] = tuple(
        Reliability(**{k: v for k, v in row.items() if k in Reliability.__dataclass_fields__})
        for row in fields.get("reliability", ())
    )
    fields.setdefault("interval", METHOD)  # that of older versions
    result = Calibration(**fields)
    fault = _calibration_fault(result)
    if fault:
        raise InvalidInputError(f"{path} must fit together; got {fault}; fit again")
    return result


def _calibration_fault(result: Calibration) -> str:
    """An inconsistency between the fields of a calibration; empty if there is none."""
    curve, layers, k_max = result.curve, result.layers, result.k_max
    tokens, rates = result.tokens, result.hits.sum(axis=0) / result.tokens.sum()
    cells = {
        "more hits than tokens": (result.hits > tokens[:, None, None]).any(axis=0),
        "hits that fall with k": (np.diff(result.hits, axis=2, prepend=0) < 0).any(axis=0),
        "a match rate that is not hits by tokens": np.abs(result.p_correct - rates) > 1e-6,
        "an interval upside down": result.ci_low > result.ci_high,
    }
    for words, wrong in cells.items():
        if wrong.any():
            e, k = (int(index) + 1 for index in np.argwhere(wrong)[0])
            return f"{words} at exit layer {e} and k = {k}"
    sizes = {len(curve.covariance), *map(len, curve.covariance)}
    trained = [one.exit_layer for one in result.reliability]
    faults = {
        "more tokens than can be counted, 2^53": tokens.sum(dtype=float) >= 2**53,
        "exit layers that are not there": _beyond(result.exit_layers, layers),
        "ks that are not there": _beyond(result.ks, k_max),
        "reliability of a layer that is not there": _beyond(trained, layers),
        "the largest residual at a layer or k that is not there": (
            curve.largest_residual_layer > layers or curve.largest_residual_k > k_max
        ),
        "a parameter's interval upside down": any(
            one.ci_low > one.ci_high for one in curve.parameters.values()
        ),
        "a covariance of another size than the curve's parameters": (
            len(curve.covariance) > 0 and sizes != {len(curve.parameters)}
        ),
        "a timing of another number of layers": (
            result.timing is not None and result.timing.layers != layers
        ),
    }
    return next((words for words, wrong in faults.items() if wrong), "")


def _beyond(values: Sequence[int] | None, most: int) -> bool:
    """Whether numbers do not ascend to at most so many."""
    return not all(a < b for a, b in pairwise((*(values or ()), most + 1)))


def _known(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Convert null to NaN, for parameters that are not identified."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _check_shapes(document: Mapping[str, Any], path: Path) -> None:
    """The tables of a calibration must have the sizes that it states."""
    prompts, layers, k_max = len(document["prompt_ids"]), document["layers"], document["k_max"]
    tables = {name: [document[name]] for name in ("p_correct", "ci_low", "ci_high")}
    tables["hits"] = document["hits"]
    other = [name for name in ("tokens", "hits") if len(document[name]) != prompts]
    for name, each in tables.items():
        whole = all(len(x) == layers and all(len(row) == k_max for row in x) for x in each)
        other += [] if whole else [name]
    if other:
        raise InvalidInputError(
            f"the tables of {path} must be {layers} layers by {k_max} k for {prompts} prompts; "
            f"got other sizes in {other[0]}; fit again"
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
    from .parquet import TOKENS, TableFile

    summary = read_json(folder / files.SUMMARY_FILE, files.MEASUREMENT)
    with TableFile(folder / files.TOKENS_FILE, TOKENS) as file:
        if file.rows == summary["n_tokens"]:  # before any of them is read
            result = file.measurement()
            fault = _summary_fault(summary, result)
        else:
            fault = f"{file.rows} tokens and {summary['n_tokens']}"
    if fault:
        raise InvalidInputError(
            f"the two files of {folder} must belong together; got {fault} in the summary; measure "
            "again into another folder"
        )
    return result


def _summary_fault(summary: Mapping[str, Any], table: Measurement) -> str:
    """What a summary says otherwise than its table; empty if nothing."""
    if summary["layers"] != table.layers:
        return f"{table.layers} layers and {summary['layers']}"
    tokens = dict(zip(table.prompt_ids, table.tokens_by_prompt().tolist(), strict=True))
    if {one["id"]: one["n_tokens"] for one in summary["prompts"] if one["n_tokens"]} != tokens:
        return "prompts or their tokens otherwise than"
    for part, ranks in ((summary, table.rank), (summary.get("coupled"), table.coupled_rank)):
        if part is None or ranks is None:
            continue
        if part["hits"] != _hits(ranks, summary["k_max"]):
            return "hits otherwise than"
        ends = (chain.from_iterable(part[end] or ()) for end in ("ci_low", "ci_high"))
        if any(low is None or high is None or low > high for low, high in zip_longest(*ends)):
            return "an interval upside down"
    return ""


def _hits(ranks: Ints, k_max: int) -> list[list[int]]:
    """Tokens [layers][k_max] that ranked k or better."""
    found = [np.bincount(np.minimum(column, k_max + 1), minlength=k_max + 2) for column in ranks.T]
    return [counts[1:-1].cumsum().tolist() for counts in found]
