"""The Parquet tables of a measurement: ranks and guesses per token, a row group per batch.

A row group is the unit of writing, resuming, merging and summarizing, so a measurement of any
number of prompts is processed a batch at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InvalidInputError, excerpt
from . import files
from .domains import Fault, guesses_fault, measurement_fault
from .measurement import NO_RANK, Guesses, Measurement

if TYPE_CHECKING:
    from .._types import Ints

#: the two kinds of tables
TOKENS, GUESSES = "tokens", "guesses"
#: a key in the metadata of each that the other has not
TELLING = {TOKENS: "prompt_ids", GUESSES: "vocabulary"}
FILES = {TOKENS: files.TOKENS_FILE, GUESSES: files.GUESSES_FILE}
_UNREADABLE = (OSError, UnicodeDecodeError, pa.ArrowException)
#: lists of single tokens or texts in a table's metadata
SINGLES = ("ties", "near_ties", "repeated")
#: most tokens of a table, and most numbers in it: 1000 prompts of 4000 tokens each, with ranks and
#: probabilities of the 126 layers of Llama 3.1 405B, are 4 million and 1 billion
MOST_TOKENS, MOST_NUMBERS = 2**24, 2**31
#: largest vocabulary whose token ids fit the two bytes of a guess
SHORT_IDS = 2**16 - 1
#: the column of what the model read before a text, in the row of the text's first token
CONTEXT = "context_ids"


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
    columns["token_id"] = _array(result.token_id, np.int32)
    if result.context_ids is not None:
        columns[CONTEXT] = _lists_at(result.starts(), result.context_ids)
    ranks = [("rank", result.rank, np.int32), ("prob", result.top_prob, np.float32)]
    if result.coupled_rank is not None:
        ranks.insert(1, ("coupled", result.coupled_rank, np.int32))
    for name, values, dtype in ranks:
        stored = np.where(values == NO_RANK, 0, values) if dtype == np.int32 else values
        for column, label in enumerate(rank_columns(result.layers, name)):
            columns[label] = _array(stored[:, column], dtype)
    return pa.table(columns).replace_schema_metadata(metadata(_about(result)))


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
            flat = _array(values[:, column].reshape(-1), dtype)
            columns[label] = pa.FixedSizeListArray.from_arrays(flat, each)
    about = {"layers": layers, "guesses": each, "vocabulary": result.vocabulary}
    return pa.table(columns).replace_schema_metadata(metadata(about))


def _keys(result: Measurement | Guesses) -> dict[str, Any]:
    return {
        "prompt_id": pa.DictionaryArray.from_arrays(
            _array(result.prompt_index, np.int32), _strings(result.prompt_ids)
        ),
        "turn": _array(result.turn, np.int16),
        "position": _array(result.position, np.int32),
    }


def _strings(values: Sequence[str]) -> Any:
    """Strings as an Arrow column: `pa.array` would import all of pandas."""
    texts = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    joined = pa.py_buffer(b"".join(texts))
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), joined)


def _array(values: Any, dtype: Any) -> Any:
    """Numbers [n] as an Arrow column."""
    kept = np.ascontiguousarray(values, dtype=dtype)
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(kept.dtype), len(kept), [None, pa.py_buffer(kept)]
    )


def _lists_at(starts: Ints, lists: Sequence[Ints]) -> Any:
    """Lists of numbers in the rows `starts` but its last, which is the number of rows."""
    lengths = np.zeros(starts[-1], dtype=np.int64)
    lengths[starts[:-1]] = [len(one) for one in lists]
    ends = pa.py_buffer(np.cumsum([0, *lengths], dtype=np.int32))
    values = _array(np.concatenate(lists), np.int32)
    return pa.Array.from_buffers(
        pa.list_(values.type), len(lengths), [None, ends], children=[values]
    )


def _about(result: Measurement) -> dict[str, Any]:
    kept = ("complete", "provenance", "prompt_ids", "prompt_numbers", "categories", *SINGLES)
    about = {"layers": result.layers, "coupled": result.coupled_rank is not None}
    return about | {name: getattr(result, name) for name in kept}


def metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a table, as stored in its file."""
    document = {"schema": files.MEASUREMENT, "schema_version": files.SCHEMA_VERSION, **about}
    return {files.MEASUREMENT: json.dumps(files.json_ready(document), ensure_ascii=False)}


def write_tokens(result: Measurement, path: Path) -> None:
    """Write the per-token table of a measurement; its metadata hold everything else."""
    _write(token_table(result), path)


def write_guesses(result: Guesses, path: Path) -> None:
    """Write the table of the exits' first guesses."""
    _write(guess_table(result), path, use_dictionary=False)


def _write(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a batch as one row group, whatever its size."""
    rows = max(1, len(table))
    with files.atomic(path) as part:
        pq.write_table(table, part, compression="zstd", row_group_size=rows, **options)
        pa.default_memory_pool().release_unused()


# ---------------------------------------------------------------- reading


class TableFile:
    """One of the two tables, open for reading: its metadata, and its row groups.

    Raises:
        InvalidInputError: the file is missing, cut short, newer, or not such a table.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        files.check_regular(path)
        try:
            self.file = pq.ParquetFile(path)
            found = (self.file.schema_arrow.metadata or {}).get(files.MEASUREMENT.encode(), b"null")
            names = self.file.schema_arrow.names
        except _UNREADABLE as error:
            raise self._damaged(error) from None
        try:
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise self._damaged(ValueError(f"the column {twice!r} twice"))
            self.about: dict[str, Any] = self._checked_about(found)
        except InvalidInputError:
            self.file.close()
            raise

    def _checked_about(self, found: bytes) -> dict[str, Any]:
        """The metadata, checked for the kind of table."""
        kind = self.kind
        try:
            about = files.parse_json(found)
        except ValueError as error:
            raise InvalidInputError(
                f"the metadata of {self.path} must be JSON; got {error}; measure again"
            ) from None
        if not isinstance(about, dict) or TELLING[kind] not in about:
            raise InvalidInputError(
                f"{self.path} must be the table of {kind} of a {files.MEASUREMENT}; got another "
                "table; measure again"
            )
        files.check_version(about, self.path)
        files.check_part(about, files.MEASUREMENT, self.path, f"{kind}_table")
        if kind == TOKENS:
            n, numbers = len(about["prompt_ids"]), about.get("prompt_numbers")
            if len(about["categories"]) != n or (numbers and len(numbers) != n):
                raise InvalidInputError(
                    f"{self.path} must have a category and a number for each of {n} prompts; got "
                    "lists of other lengths; measure again"
                )
        return about

    def _damaged(self, error: Exception) -> InvalidInputError:
        reason = excerpt(error)
        return InvalidInputError(
            f"{self.path} must be a whole Parquet file; got: {reason}; measure again"
        )

    def _incomplete(self, error: KeyError) -> InvalidInputError:
        return InvalidInputError(
            f"{self.path} must hold a whole table of {self.kind}; got one without {error}; measure "
            "again"
        )

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return int(self.file.num_row_groups)

    @property
    def rows(self) -> int:
        """Number of rows, which are tokens."""
        return int(self.file.metadata.num_rows)

    @property
    def has_contexts(self) -> bool:
        """Whether what the model read before each text is in it."""
        return CONTEXT in self.file.schema_arrow.names

    def prompts(self, group: int) -> list[str]:
        """Ids of a row group's prompts, in order."""
        try:
            ids, _ = self._prompts_of(self._read(group, ["prompt_id"]))
        except KeyError as error:
            raise self._incomplete(error) from None
        return ids

    def _read(self, group: int | None, columns: Sequence[str] | None = None) -> Any:
        about, whole = self.file.metadata, group is None
        rows = about.num_rows if whole else about.row_group(group).num_rows
        each = self.about["guesses"] if self.kind == GUESSES else 1
        wide = each * (about.num_columns if columns is None else len(columns))
        numbers = rows * wide + (self._list_values(group) if columns is None else 0)
        if rows > MOST_TOKENS or numbers > MOST_NUMBERS:
            raise InvalidInputError(
                f"{self.path} must have at most {MOST_TOKENS} rows and {MOST_NUMBERS} numbers; got "
                f"{rows} rows and {numbers} numbers; measure fewer prompts in one folder"
            )
        try:
            table = self.file.read(columns) if whole else self.file.read_row_group(group, columns)
            table.validate(full=True)  # invalid UTF-8, lists of wrong lengths
            return table.select(table.column_names)  # invalid column names fail here
        except _UNREADABLE as error:
            raise self._damaged(error) from None

    def _list_values(self, group: int | None) -> int:
        """Numbers in the lists of what the model read."""
        about = self.file.metadata
        chunks = [
            about.row_group(number).column(place)
            for number in (range(self.groups) if group is None else [group])
            for place in range(about.num_columns)
        ]
        return sum(one.num_values for one in chunks if one.path_in_schema.startswith(CONTEXT))

    def measurement(self, group: int | None = None) -> Measurement:
        """A row group, or all of them, as a measurement."""
        table, about = self._read(group), self.about
        try:
            keys = self._read_keys(table)
            mine = set(keys["prompt_ids"])
            kept = [i for i, name in enumerate(about["prompt_ids"]) if name in mine]
            unknown = mine.difference(about["prompt_ids"])
            if unknown:
                raise InvalidInputError(
                    f"prompts of {self.path} must be in its metadata; got {unknown.pop()!r} in "
                    "column prompt_id; measure again"
                )
            numbers = about.get("prompt_numbers")
            lists: dict[str, Any] = {name: singles(about, name, mine) for name in SINGLES}
            result = Measurement(
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
                context_ids=self._contexts(table, keys["position"]),
                **lists,
            )
        except KeyError as error:
            raise self._incomplete(error) from None
        if result.has_shortlist:
            coupled = None if result.coupled_rank is None else _unscored(result.coupled_rank)
            result = replace(result, rank=_unscored(result.rank), coupled_rank=coupled)
        self._refuse(measurement_fault(result), group)
        return result

    def _contexts(self, table: Any, position: Ints) -> tuple[Ints, ...] | None:
        """What the model read before each text, from the rows of the first tokens."""
        if not self.has_contexts:
            return None
        column = table.column(CONTEXT).combine_chunks()
        if not pa.types.is_list(column.type) or column.null_count:
            raise KeyError(CONTEXT)
        values, lengths = column.flatten(), np.diff(column.offsets.to_numpy())
        if not _is_of(values, np.int32) or np.any((lengths > 0) != (position == 0)):
            raise KeyError(CONTEXT)
        parts = np.split(values.to_numpy(), np.cumsum(lengths[position == 0])[:-1])
        return tuple(part.astype(np.int32, copy=False) for part in parts) if len(lengths) else ()

    def _refuse(self, fault: Fault | None, group: int | None) -> None:
        if fault is not None:
            where = f"row {fault.row}" + ("" if group is None else f" of row group {group}")
            raise InvalidInputError(
                f"{fault.rule} in {self.path}; got {fault.got} in {where} of {fault.column}; "
                "measure again"
            )

    def guesses(self, group: int | None = None) -> Guesses:
        """A row group, or all of them, as guesses."""
        table, about = self._read(group), self.about

        def listed(label: str, dtype: Any) -> Any:
            kind, each = table.schema.field(label).type, about["guesses"]
            if not pa.types.is_fixed_size_list(kind) or kind.list_size != each:
                raise self._damaged(TypeError(f"{label} is {kind}, not lists of {each}"))
            values = table.column(label).combine_chunks().flatten()
            if not _is_of(values, dtype) or len(values) != each * len(table):
                raise self._damaged(TypeError(f"{label} has {kind}, or lacks values"))
            return values.to_numpy(zero_copy_only=False).reshape(-1, each).astype(dtype)

        def stacked(name: str, dtype: Any) -> Any:
            labels = rank_columns(about["layers"], name)
            return np.stack([listed(label, dtype) for label in labels], 1)

        try:
            ids = stacked("ids", np.int32)
            if about["vocabulary"] <= SHORT_IDS:
                ids[ids == SHORT_IDS] = -1  # no guess: the stored type is unsigned
            result = Guesses(
                **self._read_keys(table),
                vocabulary=about["vocabulary"],
                ids=ids,
                probs=stacked("probs", np.float32),
            )
        except KeyError as error:
            raise self._incomplete(error) from None
        self._refuse(guesses_fault(result), group)
        return result

    def _read_keys(self, table: Any) -> dict[str, Any]:
        ids, index = self._prompts_of(table)
        has_turns = "turn" in table.column_names
        return {
            "prompt_ids": tuple(ids),
            "prompt_index": index,
            "turn": (
                _column(table, "turn", np.int16) if has_turns else np.zeros(len(index), np.int16)
            ),
            "position": _column(table, "position", np.int32),
        }

    def _prompts_of(self, table: Any) -> tuple[list[str], Ints]:
        """Ids of the prompts, in order, and the number of each row's prompt among them."""
        column = table.column("prompt_id")
        if column.null_count:
            raise KeyError("prompt_id")
        known: dict[Any, int] = {}
        numbers = [np.zeros(0, dtype=np.int64)]
        for part in column.chunks:
            chunk = part if pa.types.is_dictionary(part.type) else part.dictionary_encode()
            names, places = chunk.dictionary.to_pylist(), chunk.indices.to_numpy()
            used, first = np.unique(places, return_index=True)
            number = np.zeros(len(names), dtype=np.int64)
            for place in used[np.argsort(first)]:
                number[place] = known.setdefault(names[place], len(known))
            numbers.append(number[places])
        return list(known), np.concatenate(numbers)

    def _stacked(self, table: Any, name: str, dtype: Any) -> Any:
        labels = rank_columns(self.about["layers"], name)
        return np.stack([_column(table, label, dtype) for label in labels], axis=1)


def _unscored(stored: Ints) -> Ints:
    """Ranks [tokens, layers] with `NO_RANK` for the 0 of an exit that does not score the token."""
    ranks = stored.copy()
    ranks[:, :-1][stored[:, :-1] == 0] = NO_RANK
    return ranks


def singles(about: Mapping[str, Any], name: str, prompts: set[str]) -> tuple[Any, ...]:
    """Those of these prompts in a list of a table's metadata."""
    return tuple(tie for tie in about.get(name, ()) if tie["prompt_id"] in prompts)


def _column(table: Any, name: str, dtype: Any) -> Any:
    """One column of integers or floats without nulls; otherwise treated as missing."""
    column = table.column(name)
    if not _is_of(column, dtype):
        raise KeyError(name)
    return column.to_numpy().astype(dtype, copy=False)


def _is_of(values: Any, dtype: Any) -> bool:
    """Whether values are integers or floats, as `dtype` is, without nulls."""
    whole = np.issubdtype(dtype, np.integer)
    is_right = pa.types.is_integer if whole else pa.types.is_floating
    return bool(is_right(values.type)) and not values.null_count


def read_tokens(path: Path) -> Measurement:
    """Read a per-token table as a measurement.

    Raises:
        InvalidInputError: the file is missing, cut short, newer, or not such a table.
    """
    with TableFile(path, TOKENS) as file:
        return file.measurement()


def read_guesses(path: Path) -> Guesses:
    """Read a table of guesses; raises like `read_tokens`."""
    with TableFile(path, GUESSES) as file:
        return file.guesses()


def guesses_beside(tokens: Path) -> Path:
    """Path of the guess table beside a token table."""
    return tokens.with_name(tokens.name.removesuffix(files.TOKENS_FILE) + files.GUESSES_FILE)
