"""Merging the Parquet tables of a measurement's batches, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..errors import InvalidInputError
from . import parquet
from .files import atomic
from .measurement import Guesses, Measurement


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
    if not index.groups:
        raise InvalidInputError(f"{sources[0]} must hold tokens; got none; measure again")
    about = index.about(provenance)
    kinds = [parquet.TOKENS, parquet.GUESSES] if index.with_guesses else [parquet.TOKENS]
    with ExitStack() as stack:
        outs = [stack.enter_context(atomic(out / parquet.FILES[kind])) for kind in kinds]
        writers: list[Any] = []
        for group in index.groups:
            part = group.tokens()
            yield part
            none: dict[str, Any] = dict.fromkeys(parquet.SINGLES, ())
            whole = replace(part, **none, complete=about["complete"])
            if not index.with_contexts:
                whole = replace(whole, context_ids=None)
            tables = [parquet.token_table(whole)]
            if index.with_guesses:
                tables.append(parquet.guess_table(group.guesses_of(part)))
            writers = writers or _writers(stack, tables, outs, about)
            for writer, table in zip(writers, tables, strict=True):
                writer.write_table(table.cast(writer.schema), row_group_size=max(1, len(table)))
        for writer in writers:
            writer.close()


@dataclass(frozen=True)
class _Group:
    """Reference to a row group; its files are opened only while it is read."""

    path: Path
    group: int
    prompt_ids: tuple[str, ...]
    labels: Sequence[tuple[int, str]]  # of each prompt: its number and its category
    places: Mapping[str, int]

    def tokens(self) -> Measurement:
        with parquet.TableFile(self.path, parquet.TOKENS) as file:
            return file.measurement(self.group)

    def guesses_of(self, part: Measurement) -> Guesses:
        path = parquet.guesses_beside(self.path)
        group = self.places.get(self.prompt_ids[0])
        found = None
        if group is not None:
            with parquet.TableFile(path, parquet.GUESSES) as file:
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
        self.with_guesses = all(parquet.guesses_beside(path).is_file() for path in sources)
        self.abouts: dict[Path, dict[str, Any]] = {}
        found: list[_Group] = []
        seen: set[str] = set()
        self.with_contexts = True
        for path in sources:
            places = _places(parquet.guesses_beside(path)) if self.with_guesses else {}
            with parquet.TableFile(path, parquet.TOKENS) as file:
                about = self.abouts[path] = file.about
                self.with_contexts &= file.has_contexts
                label = dict(zip(about["prompt_ids"], _labels(about), strict=True))
                for group in range(file.groups):
                    ids = tuple(file.prompts(group))
                    if ids and seen.isdisjoint(ids):
                        found.append(_Group(path, group, ids, [label[n] for n in ids], places))
                        seen.update(ids)
        self.groups = sorted(found, key=lambda group: group.labels[0][0])

    def about(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of the merged table."""
        first = next(iter(self.abouts.values()))
        ids = [name for group in self.groups for name in group.prompt_ids]
        labels = [label for group in self.groups for label in group.labels]
        singles: dict[str, list[Any]] = {name: [] for name in parquet.SINGLES}
        for group in self.groups:
            for name in parquet.SINGLES:
                singles[name] += parquet.singles(
                    self.abouts[group.path], name, set(group.prompt_ids)
                )
        return {
            "layers": first["layers"],
            "coupled": first.get("coupled", False),
            "complete": len(ids) == provenance.get("n_prompts", len(ids)),
            "provenance": dict(provenance),
            "prompt_ids": ids,
            "prompt_numbers": [number for number, _ in labels],
            "categories": [category for _, category in labels],
            **singles,
        }


def _labels(about: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Each prompt's number in the whole list, and its category."""
    numbers = about.get("prompt_numbers") or range(len(about["prompt_ids"]))
    return zip(numbers, about["categories"], strict=True)


def _places(guesses: Path) -> dict[str, int]:
    """Row group by first prompt: a guess table may be newer than its token table."""
    with parquet.TableFile(guesses, parquet.GUESSES) as file:
        prompts = {group: file.prompts(group) for group in range(file.groups)}
        return {names[0]: group for group, names in prompts.items() if names}


def _writers(stack: ExitStack, tables: Any, paths: Any, about: Mapping[str, Any]) -> list[Any]:
    schemas = [table.schema for table in tables]
    schemas[0] = schemas[0].with_metadata(parquet.metadata(about))
    options = [{}, {"use_dictionary": False}]
    return [
        stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd", **option))
        for path, schema, option in zip(paths, schemas, options, strict=False)
    ]
