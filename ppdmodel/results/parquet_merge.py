"""Merging the Parquet tables of a measurement's batches, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..errors import InvalidInputError
from .files import atomic
from .measurement import Guesses, Measurement
from .parquet import (
    FILES,
    GUESSES,
    TIES,
    TOKENS,
    TableFile,
    guess_table,
    guesses_beside,
    metadata,
    singles,
    token_table,
)


def merge_tables(
    sources: Sequence[Path], out: Path, provenance: Mapping[str, Any]
) -> Iterator[Measurement]:
    """Merge token tables, with the guess tables beside them, into those of the folder `out`.

    Yields each row group in the order of the prompts, and replaces the folder's two tables at the
    end. Sources may be among the replaced files.

    Args:
        sources: paths of token tables; each may have a table of guesses beside it. A prompt that
            two sources hold is taken from the first.
        out: the folder that gets `tokens.parquet`, and `guesses.parquet` where all have one.
        provenance: of the merged table.
    """
    index = _Index(sources)
    about = index.about(provenance)
    kinds = [TOKENS, GUESSES] if index.with_guesses else [TOKENS]
    with ExitStack() as stack:
        outs = [stack.enter_context(atomic(out / FILES[kind])) for kind in kinds]
        writers: list[Any] = []
        for group in index.groups:
            part = group.tokens()
            yield part
            tables = [token_table(replace(part, ties=(), near_ties=(), complete=about["complete"]))]
            if index.with_guesses:
                tables.append(guess_table(group.guesses_of(part)))
            writers = writers or _writers(stack, tables, outs, about)
            for writer, table in zip(writers, tables, strict=True):
                writer.write_table(table.cast(writer.schema), row_group_size=max(1, len(table)))
        for writer in writers:
            writer.close()


@dataclass(frozen=True)
class _Group:
    """Reference to a row group; its files are opened only while it is read."""

    number: int
    path: Path
    group: int
    prompt_ids: tuple[str, ...]
    places: Mapping[str, int]

    def tokens(self) -> Measurement:
        with TableFile(self.path, TOKENS) as file:
            return file.measurement(self.group)

    def guesses_of(self, part: Measurement) -> Guesses:
        path = guesses_beside(self.path)
        group = self.places.get(self.prompt_ids[0])
        found = None
        if group is not None:
            with TableFile(path, GUESSES) as file:
                found = file.guesses(group)
        if found is None or (found.prompt_ids, len(found.turn)) != (part.prompt_ids, part.n_tokens):
            raise InvalidInputError(
                f"{path} must hold the guesses of the tokens beside it; got others for prompt "
                f"{self.prompt_ids[0]!r}; copy it again, or measure again"
            )
        return found


class _Index:
    """The row groups of several tables in the order of the prompts, and their metadata."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self.with_guesses = all(guesses_beside(path).is_file() for path in sources)
        self.abouts: dict[Path, dict[str, Any]] = {}
        found: list[_Group] = []
        seen: set[str] = set()
        for path in sources:
            places = _places(guesses_beside(path)) if self.with_guesses else {}
            with TableFile(path, TOKENS) as file:
                self.abouts[path] = file.about
                number = dict(zip(file.about["prompt_ids"], _numbers(file.about), strict=True))
                for group in range(file.groups):
                    prompts = tuple(file.prompts(group))
                    if prompts and seen.isdisjoint(prompts):
                        found.append(_Group(number[prompts[0]], path, group, prompts, places))
                        seen.update(prompts)
        self.groups = sorted(found, key=lambda group: group.number)

    def about(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of the merged table."""
        ids = [name for group in self.groups for name in group.prompt_ids]
        joined: dict[str, list[Any]] = {"prompt_numbers": [], "categories": []}
        joined |= {name: [] for name in TIES}
        places = {
            path: {name: place for place, name in enumerate(about["prompt_ids"])}
            for path, about in self.abouts.items()
        }
        for group in self.groups:
            about = self.abouts[group.path]
            numbers = _numbers(about)
            for name in group.prompt_ids:
                place = places[group.path][name]
                joined["prompt_numbers"].append(numbers[place])
                joined["categories"].append(about["categories"][place])
            for name in TIES:
                joined[name] += singles(about, name, set(group.prompt_ids))
        first = next(iter(self.abouts.values()))
        return {
            "layers": first["layers"],
            "coupled": first.get("coupled", False),
            "complete": len(ids) == provenance.get("n_prompts", len(ids)),
            "provenance": dict(provenance),
            "prompt_ids": ids,
            **joined,
        }


def _numbers(about: Mapping[str, Any]) -> Sequence[int]:
    """The number of each prompt in the whole list."""
    return about.get("prompt_numbers") or range(len(about["prompt_ids"]))


def _places(guesses: Path) -> dict[str, int]:
    """Row group by first prompt: a guess table may be newer than its token table."""
    with TableFile(guesses, GUESSES) as file:
        prompts = {group: file.prompts(group) for group in range(file.groups)}
        return {names[0]: group for group, names in prompts.items() if names}


def _writers(stack: ExitStack, tables: Any, paths: Any, about: Mapping[str, Any]) -> list[Any]:
    schemas = [tables[0].schema.with_metadata(metadata(about)), *(t.schema for t in tables[1:])]
    options = [{}, {"use_dictionary": False}]
    return [
        stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd", **option))
        for path, schema, option in zip(paths, schemas, options, strict=False)
    ]
