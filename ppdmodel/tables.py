"""The Parquet tables of a measurement: ranks and guesses per token, a row group per batch.

A row group is the unit that is written, resumed, merged and summed up, so a measurement of any
number of prompts passes through memory a batch at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import InvalidInputError
from .files import (
    GUESSES_FILE,
    MEASUREMENT,
    SCHEMA_VERSION,
    TOKENS_FILE,
    atomic,
    check_version,
    json_ready,
)
from .results import Guesses, Measurement

if TYPE_CHECKING:
    from types import TracebackType

#: the two kinds of tables
TOKENS, GUESSES = "tokens", "guesses"
#: what the metadata of each must have
ABOUT = {
    TOKENS: {"layers", "complete", "provenance", "prompt_ids", "categories", "ties"},
    GUESSES: {"layers", "guesses", "vocabulary"},
}
FILES = {TOKENS: TOKENS_FILE, GUESSES: GUESSES_FILE}
#: lists of single tokens that a table's metadata hold
TIES = ("ties", "near_ties")
#: largest vocabulary whose token ids fit the two bytes of a guess
SHORT_IDS = 2**16 - 1


def rank_columns(layers: int, name: str = "rank") -> list[str]:
    """Column names of the Parquet file, one per exit layer.

    >>> rank_columns(2)
    ['rank_01', 'rank_02']
    """
    digits = max(2, len(str(layers)))
    return [f"{name}_{layer:0{digits}d}" for layer in range(1, layers + 1)]


# ---------------------------------------------------------------- tables


def token_table(result: Measurement) -> pa.Table:
    """The per-token table of a measurement, its metadata included."""
    columns = _keys(result)
    columns["token_id"] = pa.array(result.token_id, pa.int32())
    ranks = [("rank", result.rank, np.int32), ("prob", result.top_prob, np.float32)]
    if result.coupled_rank is not None:
        ranks.insert(1, ("coupled", result.coupled_rank, np.int32))
    for name, values, dtype in ranks:
        for column, label in enumerate(rank_columns(result.layers, name)):
            columns[label] = pa.array(np.ascontiguousarray(values[:, column], dtype=dtype))
    return pa.table(columns).replace_schema_metadata(_metadata(_about(result)))


def guess_table(result: Guesses) -> pa.Table:
    """The table of each exit's first guesses: ids of 2 or 4 bytes, probabilities of 2."""
    columns = _keys(result)
    short = result.vocabulary <= SHORT_IDS
    kinds = (
        ("ids", result.ids, np.uint16 if short else np.int32),
        ("probs", result.probs, np.float16),
    )
    layers, each = result.ids.shape[1:]
    for name, values, dtype in kinds:
        for column, label in enumerate(rank_columns(layers, name)):
            flat = np.ascontiguousarray(values[:, column], dtype=dtype).ravel()
            columns[label] = pa.FixedSizeListArray.from_arrays(pa.array(flat), each)
    about = {"layers": layers, "guesses": each, "vocabulary": result.vocabulary}
    return pa.table(columns).replace_schema_metadata(_metadata(about))


def _keys(result: Measurement | Guesses) -> dict[str, Any]:
    return {
        "prompt_id": pa.DictionaryArray.from_arrays(
            pa.array(result.prompt_index, pa.int32()), pa.array(result.prompt_ids, pa.string())
        ),
        "turn": pa.array(result.turn, pa.int16()),
        "position": pa.array(result.position, pa.int32()),
    }


def _about(result: Measurement) -> dict[str, Any]:
    return {
        "layers": result.layers,
        "coupled": result.coupled_rank is not None,
        "complete": result.complete,
        "provenance": result.provenance,
        "prompt_ids": result.prompt_ids,
        "prompt_numbers": result.prompt_numbers,
        "categories": result.categories,
        "ties": result.ties,
        "near_ties": result.near_ties,
    }


def _metadata(about: Mapping[str, Any]) -> dict[str, str]:
    document = {"schema": MEASUREMENT, "schema_version": SCHEMA_VERSION, **about}
    return {MEASUREMENT: json.dumps(json_ready(document), ensure_ascii=False)}


def write_tokens(result: Measurement, path: Path) -> None:
    """Write the per-token table of a measurement; its metadata hold all that the table does not."""
    with atomic(path) as part:
        pq.write_table(token_table(result), part, compression="zstd")


def write_guesses(result: Guesses, path: Path) -> None:
    """Write the table of the exits' first guesses."""
    with atomic(path) as part:
        pq.write_table(guess_table(result), part, compression="zstd", use_dictionary=False)


# ---------------------------------------------------------------- reading


class TableFile:
    """One of the two tables, open: what it is about, and its row groups.

    Raises:
        InvalidInputError: the file is missing, cut short, newer, or not such a table.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        try:
            self.file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from None
        found = (self.file.schema_arrow.metadata or {}).get(MEASUREMENT.encode(), b"null")
        self.about: dict[str, Any] = self._checked_about(found, kind)
        check_version(self.about, path)

    def _checked_about(self, found: bytes, kind: str) -> dict[str, Any]:
        """What the metadata say, if they are those of such a table."""
        try:
            about = json.loads(found)
        except ValueError:
            about = None
        if not isinstance(about, dict) or not ABOUT[kind] <= about.keys():
            self.file.close()
            raise InvalidInputError(
                f"{self.path} must be the table of {kind} of a {MEASUREMENT}; got another table, "
                "or damaged metadata; measure again"
            )
        return about

    def _damaged(self, error: Exception) -> InvalidInputError:
        reason = " ".join(str(error).split())[:200]
        return InvalidInputError(
            f"{self.path} must be a whole Parquet file; got: {reason}; measure again"
        )

    def __enter__(self) -> TableFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return int(self.file.num_row_groups)

    @property
    def rows(self) -> int:
        """Number of rows, which are tokens."""
        return int(self.file.metadata.num_rows)

    def prompts(self, group: int) -> list[str]:
        """Ids of a row group's prompts, in order."""
        ids = self._read(group, ["prompt_id"]).column("prompt_id").to_pylist()
        return list(dict.fromkeys(ids))

    def _read(self, group: int | None, columns: Sequence[str] | None = None) -> Any:
        try:
            if group is None:
                return self.file.read(columns)
            return self.file.read_row_group(group, columns)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from None

    def measurement(self, group: int | None = None) -> Measurement:
        """A row group, or all of them, as a measurement."""
        table, about = self._read(group), self.about
        try:
            keys = self._read_keys(table)
            mine = set(keys["prompt_ids"])
            kept = [i for i, name in enumerate(about["prompt_ids"]) if name in mine]
            numbers = about.get("prompt_numbers")
            return Measurement(
                **keys,
                provenance=about["provenance"],
                categories=tuple(about["categories"][i] for i in kept),
                prompt_numbers=tuple(numbers[i] for i in kept) if numbers else None,
                token_id=_column(table, "token_id", np.int32),
                rank=self._stacked(table, "rank", np.int32),
                top_prob=self._stacked(table, "prob", np.float32),
                coupled_rank=(
                    self._stacked(table, "coupled", np.int32) if about.get("coupled") else None
                ),
                complete=about["complete"],
                ties=_of(about, "ties", mine),
                near_ties=_of(about, "near_ties", mine),
            )
        except KeyError as error:
            raise InvalidInputError(
                f"{self.path} must hold a whole table; got one without {error}; measure again"
            ) from None

    def guesses(self, group: int | None = None) -> Guesses:
        """A row group, or all of them, as guesses."""
        table, about = self._read(group), self.about

        def stacked(name: str, dtype: Any) -> Any:
            columns = [
                table.column(label).combine_chunks().flatten().to_numpy(zero_copy_only=False)
                for label in rank_columns(about["layers"], name)
            ]
            return np.stack([c.reshape(-1, about["guesses"]) for c in columns], 1).astype(dtype)

        try:
            return Guesses(
                **self._read_keys(table),
                vocabulary=about["vocabulary"],
                ids=stacked("ids", np.int32),
                probs=stacked("probs", np.float32),
            )
        except KeyError as error:
            raise InvalidInputError(
                f"{self.path} must hold a whole table of guesses; got one without {error}; "
                "measure again"
            ) from None

    def _read_keys(self, table: Any) -> dict[str, Any]:
        ids = table.column("prompt_id").to_pylist()
        number = {name: index for index, name in enumerate(dict.fromkeys(ids))}
        has_turns = "turn" in table.column_names
        return {
            "prompt_ids": tuple(number),
            "prompt_index": np.asarray([number[name] for name in ids], dtype=np.int64),
            "turn": _column(table, "turn", np.int16) if has_turns else np.zeros(len(ids), np.int16),
            "position": _column(table, "position", np.int32),
        }

    def _stacked(self, table: Any, name: str, dtype: Any) -> Any:
        labels = rank_columns(self.about["layers"], name)
        return np.stack([_column(table, label, dtype) for label in labels], axis=1)


def _of(about: Mapping[str, Any], name: str, prompts: set[str]) -> tuple[Any, ...]:
    """A list of single tokens in a table's metadata, as far as they are of these prompts."""
    return tuple(tie for tie in about.get(name, ()) if tie["prompt_id"] in prompts)


def _column(table: Any, name: str, dtype: Any) -> Any:
    return table.column(name).to_numpy().astype(dtype, copy=False)


def read_tokens(path: Path) -> Measurement:
    """Read a per-token table back as the measurement it was.

    Raises:
        InvalidInputError: the file is missing, cut short, newer, or not such a table.
    """
    with TableFile(path, TOKENS) as file:
        return file.measurement()


def read_guesses(path: Path) -> Guesses:
    """Read a table of guesses back; raises like `read_tokens`."""
    with TableFile(path, GUESSES) as file:
        return file.guesses()


# ---------------------------------------------------------------- joining


def join(
    sources: Sequence[Path], out: Path, provenance: Mapping[str, Any]
) -> Iterator[Measurement]:
    """Join token tables, with the guess tables beside them, into those of the folder `out`.

    Yields each row group as it passes, in the order of the prompts, and replaces the folder's two
    tables when all have passed. Sources may be among what is replaced.

    Args:
        sources: paths of token tables; each may have a table of guesses beside it. A prompt that
            two sources hold is taken from the first.
        out: the folder that gets `tokens.parquet`, and `guesses.parquet` where all have one.
        provenance: what the joined table says of itself.
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
    """A row group somewhere: the files are opened when it is read, however many there are."""

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
    """The row groups of several tables in the order of the prompts, and what they are about."""

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
                    if seen.isdisjoint(prompts):
                        found.append(_Group(number[prompts[0]], path, group, prompts, places))
                        seen.update(prompts)
        self.groups = sorted(found, key=lambda group: group.number)

    def about(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of the joined table."""
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
                joined[name] += _of(about, name, set(group.prompt_ids))
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
    """Row group by its first prompt: a table of guesses may be newer than that of its tokens."""
    with TableFile(guesses, GUESSES) as file:
        return {file.prompts(group)[0]: group for group in range(file.groups)}


def _writers(stack: ExitStack, tables: Any, paths: Any, about: Mapping[str, Any]) -> list[Any]:
    schemas = [tables[0].schema.with_metadata(_metadata(about)), *(t.schema for t in tables[1:])]
    options = [{}, {"use_dictionary": False}]
    return [
        stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd", **option))
        for path, schema, option in zip(paths, schemas, options, strict=False)
    ]


def guesses_beside(tokens: Path) -> Path:
    """Where the guesses of a table of tokens are."""
    return tokens.with_name(tokens.name.removesuffix(TOKENS_FILE) + GUESSES_FILE)
