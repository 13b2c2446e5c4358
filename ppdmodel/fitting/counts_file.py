"""Calibration of hit counts from a user's CSV file."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..checks import MOST_K, MOST_LAYERS, positive_integer
from ..errors import InvalidInputError
from ..progress import OnProgress, no_report
from ..results.calibration import Calibration
from ..results.compatibility import check_agree, check_not_random
from ..results.files import read_bytes, table_lines
from ..results.hit_counts import HitCounts
from ..results.intervals import RESAMPLES, SEED
from ..results.timing import Timing
from .calibrate import fit_counts

if TYPE_CHECKING:
    from .._types import Ints

#: hits of each prompt, by exit layer and k
Cells: TypeAlias = dict[tuple[int, int], dict[str, int]]
COLUMNS = ("exit_layer", "k", "hits", "n", "prompt_id")


def fit_table(
    path: str | Path,
    layers: int,
    *,
    model: str = "table",
    timing: Timing | None = None,
    family: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    on_progress: OnProgress = no_report,
) -> Calibration:
    """Fit counts from a CSV file with columns `exit_layer,k,hits,n,prompt_id`.

    A row says that of the n tokens of a prompt, `hits` ranked k or better at an exit layer. Every
    prompt must have a row for each exit layer and k of the table; layers and k may be
    missing. Decisions are made among those present.

    Args:
        path: the file, with a header.
        layers: decoder layers of the model.
        model: its name.
        timing: as `fit`; that it is of this model cannot be checked beyond its layers; never of
            random weights.
        family: as `fit`.
        resamples: as `fit`.
        seed: as `fit`.
        on_progress: as `fit`.

    Raises:
        InvalidInputError: the file or a number does not fit.
    """
    positive_integer("layers", layers, most=MOST_LAYERS)
    path = Path(path)
    data = _data(path)
    cells, totals = _read(path, data, layers)
    if timing is not None:
        fix = "time this model"
        check_not_random(
            timing.provenance, {"model": path.name}, what="a timing", beside="match rates", fix=fix
        )
        check_agree(
            {"layers": timing.layers},
            {"layers": layers},
            ["layers"],
            rule="the timing must be of the table's model",
            what="a timing",
            fix=fix,
        )
    hits = _hits(path, cells, totals, layers)
    if len(totals) < 2:
        raise InvalidInputError(
            f"an interval needs at least 2 prompts; got {len(totals)} in {path}; count more prompts"
        )
    if sum(totals.values()) >= 2**53:
        raise InvalidInputError(
            f"the tokens of all prompts must be below 2^53; got {sum(totals.values())} in {path}"
        )
    exits = sorted({exit_layer for exit_layer, _ in cells})
    counts = HitCounts(
        model=model,
        layers=layers,
        prompt_ids=tuple(totals),
        tokens=np.array(list(totals.values())),
        hits=hits,
        provenance={
            "model": model,
            "table": path.name,
            "sha256": hashlib.sha256(data).hexdigest(),
        },
        exit_layers=tuple(e for e in exits if e < layers),
        ks=tuple(sorted({k for _, k in cells})),
        resamples=resamples,
        seed=seed,
    )
    return fit_counts(counts, timing=timing, family=family, on_progress=on_progress)


def _hits(path: Path, cells: Cells, totals: Mapping[str, int], layers: int) -> Ints:
    """Hits [prompts, layers, k_max]; a missing k takes those of the next smaller one."""
    ks = sorted({k for _, k in cells})
    hits = np.zeros((len(totals), layers, ks[-1]), dtype=np.int64)
    for e in sorted({exit_layer for exit_layer, _ in cells}):
        before: Ints = np.zeros(len(totals), dtype=np.int64)
        for k in ks:
            by_prompt = cells.get((e, k), {})
            missing = next((prompt for prompt in totals if prompt not in by_prompt), None)
            if missing is not None:
                raise InvalidInputError(
                    f"{path} must have a row for each exit layer, k and prompt; got none for exit "
                    f"layer {e}, k = {k}, prompt {missing!r}"
                )
            row = np.array([by_prompt[prompt] for prompt in totals])
            if (row < before).any():
                raise InvalidInputError(
                    f"hits must not fall with k; got fewer at exit layer {e}, k = {k} in {path}"
                )
            hits[:, e - 1, k - 1 :] = row[:, None]
            before = row
    hits[:, -1] = np.array(list(totals.values()))[:, None]  # the last layer always hits
    return hits


def _data(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise _not_csv(path, error) from None


def _not_csv(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"a table must be readable CSV; got {path} ({error})")


def _read(path: Path, data: bytes, layers: int) -> tuple[Cells, dict[str, int]]:
    """Hits by exit layer, k and prompt, and tokens by prompt."""
    cells: Cells = defaultdict(dict)
    totals: dict[str, int] = {}
    try:
        reader = csv.DictReader(table_lines(data, path))
        names = reader.fieldnames or ()
        twice = next((name for name in COLUMNS if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidInputError(f"{path} must have one column {twice}; got two or more")
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise InvalidInputError(
                f"{path} must have the columns {','.join(COLUMNS)}; got none named {missing[0]}"
            )
        for line, row in enumerate(reader, start=2):
            e, k, hits, n = (_count(path, line, name, row[name]) for name in COLUMNS[:4])
            prompt = row["prompt_id"] or ""
            if not (1 <= e <= layers and 1 <= k <= MOST_K and 1 <= n < 2**53 and hits <= n):
                raise InvalidInputError(
                    f"line {line} of {path} must have 1 <= exit_layer <= {layers}, k from 1 to "
                    f"{MOST_K}, n from 1 to 2^53, hits <= n; got {e}, {k}, {n}, {hits}"
                )
            if totals.setdefault(prompt, n) != n:
                raise InvalidInputError(
                    f"n must be the tokens of the prompt, the same in all its rows; got {n} "
                    f"and {totals[prompt]} for {prompt!r} in line {line} of {path}"
                )
            if prompt in cells[e, k]:
                raise InvalidInputError(
                    f"{path} must have one row for each exit layer, k and prompt; got a second "
                    f"in line {line}"
                )
            cells[e, k][prompt] = hits
    except (UnicodeDecodeError, csv.Error) as error:
        raise _not_csv(path, error) from None
    if not any(e < layers for e, _ in cells):
        raise InvalidInputError(f"a table must have exits below layer {layers}; got none in {path}")
    return cells, totals


def _count(path: Path, line: int, name: str, text: str | None) -> int:
    try:
        value = int(text or "")
    except ValueError:
        value = -1
    if value < 0:
        raise InvalidInputError(
            f"{name} must be a whole number of at least 0; got {text!r} in line {line} of {path}"
        )
    return value
