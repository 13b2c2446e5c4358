"""Shards of one measurement, from any machines, joined into one. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..results.files import GUESSES_FILE, SUMMARY_FILE, TOKENS_FILE, provenance
from ..results.io import read_measurement
from ..results.measurement import Measurement
from ..results.parquet import TOKENS, TableFile
from .store import join_batches

#: what may differ between shards: who made them, and which they are
OF_THE_RUN = (
    "shard", "packages", "python", "platform", "date", "command", "device", "threads", "batch_size",
    "merged",
)  # fmt: skip


def merge(folders: Sequence[Path], out: Path) -> Measurement:
    """Join measurements of parts of one list of prompts, in the order of the list.

    The result equals that of a single run, whatever the order of the folders. Where parts are
    missing it is marked incomplete, and `measure` with this folder goes on with what is missing.

    Args:
        folders: measurements, such as the shards of `ppdmodel measure --shard i/N`.
        out: a new or empty folder.

    Raises:
        InvalidInputError: a folder is no measurement, two hold the same prompt, they differ in
            model, settings or prompts, or `out` holds files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
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
    join_batches(sorted(folder / TOKENS_FILE for folder in folders), out, about)
    return read_measurement(out)


def _checked(folders: Sequence[Path]) -> dict[str, Any]:
    """The provenance of the whole, after a look at whether the parts belong together."""
    first: dict[str, Any] = {}
    owner: dict[str, Path] = {}
    runs = []
    for folder in folders:
        with TableFile(folder / TOKENS_FILE, TOKENS) as file:
            found, prompts = file.about["provenance"], file.about["prompt_ids"]
        first = first or found
        for key in sorted((first.keys() | found.keys()) - set(OF_THE_RUN)):
            if found.get(key) != first.get(key):
                raise InvalidInputError(
                    f"shards must be parts of one measurement; got {key} {found.get(key)!r} in "
                    f"{folder} and {first.get(key)!r} in {folders[0]}; merge equal settings"
                )
        _check_sizes(first, found, folder)
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
        runs.append({key: found.get(key) for key in OF_THE_RUN})
    shared = {key: value for key, value in first.items() if key not in OF_THE_RUN}
    mine = provenance(("numpy", "pyarrow"))
    kept: dict[str, Any] = {
        key: first[key] for key in ("device", "threads", "packages") if key in first
    }
    runs.sort(key=lambda run: str(run["shard"]))
    return {**shared, **mine, **kept, "shard": None, "merged": runs}


def _check_sizes(first: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Shards cut the list into batches, so all must have cut it alike."""
    cut = [str(about.get("shard")).partition(" of ")[2] for about in (first, found)]
    counts = [
        str(about.get("shard")).partition(" of ")[0].rpartition("/")[2] for about in (first, found)
    ]
    if cut[0] != cut[1] or counts[0] != counts[1]:
        raise InvalidInputError(
            f"shards must be cut alike; got {found.get('shard')} in {folder} and "
            f"{first.get('shard')}; use one N and one --batch-size"
        )
