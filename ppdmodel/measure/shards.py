"""Merging of the shards of a measurement into one. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..progress import OnProgress, no_report
from ..results.compatibility import TOKEN_IDS, check_agree, check_texts
from ..results.files import GUESSES_FILE, SUMMARY_FILE, TOKENS_FILE, provenance
from ..results.io import read_measurement
from ..results.locks import LOCK_FILE, owns_out
from ..results.measurement import Measurement
from ..results.parquet import TOKENS, TableFile
from .store import join_batches

#: provenance that may differ between shards
RUN_KEYS = (
    "shard", "packages", "python", "platform", "date", "command", "device", "threads", "batch_size",
    "merged",
)  # fmt: skip


@owns_out
def merge(
    folders: Sequence[Path], out: Path, *, on_progress: OnProgress = no_report
) -> Measurement:
    """Join measurements of parts of one list of prompts, in the order of the list.

    The result equals that of a single run, whatever the order of the folders. If parts are
    missing it is marked incomplete, and `measure` with this folder measures the missing ones.

    Args:
        folders: measurements, such as the shards of `ppdmodel measure --shard i/N`.
        out: a new or empty folder, or one that a stopped merge left.
        on_progress: called with the progress.

    Raises:
        InvalidInputError: a folder is no measurement, two hold the same prompt, they differ in
            model, settings or prompts, `out` holds files, or another run is using it.
    """
    if not _is_free(out):
        raise InvalidInputError(
            f"the out folder must be new or empty; got {out}; choose another --out"
        )
    if not folders:
        raise InvalidInputError("merge needs at least one measurement; got none; give folders")
    for folder in folders:
        if not (folder / SUMMARY_FILE).is_file():
            raise InvalidInputError(
                f"each shard must be a measurement folder with {SUMMARY_FILE}; got {folder} "
                "without it; finish or repeat its run"
            )
    about = _checked(folders)
    join_batches(sorted(folder / TOKENS_FILE for folder in folders), out, about, on_progress)
    return read_measurement(out)


def _is_free(out: Path) -> bool:
    """Whether a folder is empty, or holds a merge that was stopped before its summary."""
    found = {path.name for path in out.iterdir() if ".part-" not in path.name}
    if not found <= {LOCK_FILE, TOKENS_FILE, GUESSES_FILE} or TOKENS_FILE not in found:
        return found <= {LOCK_FILE, GUESSES_FILE}
    with TableFile(out / TOKENS_FILE, TOKENS) as file:
        return "merged" in file.about["provenance"]


def _checked(folders: Sequence[Path]) -> dict[str, Any]:
    """The provenance of the whole, after checking that the parts are compatible."""
    first: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    owner: dict[str, Path] = {}
    runs = []
    for folder in folders:
        with TableFile(folder / TOKENS_FILE, TOKENS) as file:
            found, prompts = file.about["provenance"], file.about["prompt_ids"]
        first = first or found
        texts = texts if texts or TOKEN_IDS not in found else {TOKEN_IDS: found[TOKEN_IDS]}
        check_agree(
            found,
            first,
            sorted((first.keys() | found.keys()) - {*RUN_KEYS, TOKEN_IDS}),
            rule="shards must be parts of one measurement",
            what=str(folder),
            fix=f"merge those with the settings of {folders[0]}",
        )
        check_texts(found, texts, str(folder))
        check_agree(
            {"partition": _partition(found)},
            {"partition": _partition(first)},
            ["partition"],
            rule="shards must be of one partition of the batches",
            what=str(folder),
            fix="use one N and one --batch-size",
        )
        for name in prompts:
            if name in owner:
                raise InvalidInputError(
                    f"shards must not overlap; got prompt {name!r} in {owner[name]} and {folder}; "
                    "leave one out"
                )
            owner[name] = folder
        if found.get("guesses") and not (folder / GUESSES_FILE).is_file():
            raise InvalidInputError(
                f"each shard must hold its {GUESSES_FILE}; got {folder} without it; copy it too"
            )
        runs.append({key: found.get(key) for key in RUN_KEYS})
    shared = {key: value for key, value in first.items() if key not in RUN_KEYS} | texts
    mine = provenance(("numpy", "pyarrow"))
    kept: dict[str, Any] = {
        key: first[key] for key in ("device", "threads", "packages") if key in first
    }
    runs.sort(key=lambda run: str(run["shard"]))
    return {**shared, **mine, **kept, "shard": None, "merged": runs}


def _partition(about: dict[str, Any]) -> str | None:
    """Number of shards and size of batches, from "1/3 of batches of 2"; None if unsharded."""
    return (about.get("shard") or "").partition("/")[2] or None
