"""The tables of a measurement: written and read back, whole, older or damaged."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdmodel import load, save
from ppdmodel.errors import InvalidInputError, PpdModelError
from ppdmodel.results import files, parquet
from ppdmodel.results.measurement import Guesses, Measurement
from ppdmodel.results.parquet import read_guesses, read_tokens, write_guesses, write_tokens
from tests.support.tables import (
    QUICK,
    SHAPES,
    Lengths,
    assert_equal,
    made_guesses,
    made_measurement,
)


def test_the_parquet_columns_are_the_documented_ones(
    measurement: Measurement, tmp_path: Path
) -> None:
    save(measurement, tmp_path)
    table = pq.read_table(tmp_path / "tokens.parquet")
    ranks = [f"rank_0{n}" for n in range(1, 7)]
    probs = [f"prob_0{n}" for n in range(1, 7)]
    keys = ["prompt_id", "turn", "position", "token_id"]
    assert table.column_names == [*keys, *ranks, *probs]
    assert str(table.schema.field("rank_01").type) == "int32"
    assert str(table.schema.field("prob_01").type) == "float"
    assert table.column("prompt_id").to_pylist()[:2] == ["p0", "p0"]


@QUICK
@given(SHAPES, st.integers(1, 12), st.booleans(), st.integers(0, 9), st.booleans())
def test_tokens_there_and_back(
    lengths: Lengths, layers: int, coupled: bool, seed: int, contexts: bool
) -> None:
    original = made_measurement(lengths, layers, seed, coupled, contexts=contexts)
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(original, Path(folder) / "tokens.parquet")
        found = read_tokens(Path(folder) / "tokens.parquet")
    assert_equal(found, original)
    assert found.rank.dtype == np.int32, "in memory as in the file: twice that is twice the memory"
    assert found.top_prob.dtype == np.float32


@QUICK
@given(SHAPES, st.integers(1, 12), st.sampled_from([9, 257, 65534, 65535, 65536, 262144]))
def test_guesses_there_and_back(lengths: Lengths, layers: int, vocabulary: int) -> None:
    original = made_guesses(lengths, layers, vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guesses.parquet"
        write_guesses(original, path)
        found, stored = read_guesses(path), pq.read_schema(path)
    assert_equal(replace(found, probs=original.probs), original)
    kind = stored.field("ids_01").type.value_type
    assert kind == (pa.uint16() if vocabulary <= 65535 else pa.int32())
    error = np.abs(found.probs - original.probs)
    assert (error <= np.maximum(5e-4 * original.probs, 2**-25)).all(), "exact to 0.05%, or 3e-8"
    assert (np.diff(found.probs, axis=2) <= 0).all(), "the likeliest stay first"


@pytest.mark.parametrize("vocabulary", [5, 65535, 65536])
def test_places_without_a_guess_stay_so(tmp_path: Path, vocabulary: int) -> None:
    """A vocabulary of 5 has no 8 guesses: the others have id -1, in two bytes too."""
    original = made_guesses([[3]], 2, vocabulary)
    original.ids[:, :, 5:], original.probs[:, :, 5:] = -1, 0
    write_guesses(original, tmp_path / "guesses.parquet")
    assert np.array_equal(read_guesses(tmp_path / "guesses.parquet").ids, original.ids)


def test_probabilities_at_the_ends_of_what_two_bytes_hold(tmp_path: Path) -> None:
    original = made_guesses([[1]], 1, 9)
    original.probs[0, 0] = [1 - 2**-12, 1e-3, 6.2e-5, 1e-7, 1e-9, 0, 0, 0]
    write_guesses(original, tmp_path / "guesses.parquet")
    found = read_guesses(tmp_path / "guesses.parquet").probs[0, 0]
    assert found[0] == 1, "never above 1"
    assert found[1:3] == pytest.approx(original.probs[0, 0, 1:3], rel=5e-4)
    assert found[3] == pytest.approx(1e-7, abs=3e-8)
    assert found[4:].tolist() == [0] * 4


@pytest.mark.parametrize("layers", [9, 10, 99, 100])
def test_columns_keep_the_order_of_the_layers(tmp_path: Path, layers: int) -> None:
    """rank_100 comes before rank_11 where names are sorted: each layer must keep its own."""
    original = replace(
        made_measurement([[2]], layers),
        rank=np.tile(np.arange(1, layers + 1, dtype=np.int32), (2, 1)),
    )
    write_tokens(original, tmp_path / "tokens.parquet")
    names = pq.read_schema(tmp_path / "tokens.parquet").names
    assert [name for name in sorted(names) if name.startswith("rank")] == [
        name for name in names if name.startswith("rank")
    ]
    assert read_tokens(tmp_path / "tokens.parquet").rank[0].tolist() == list(range(1, layers + 1))


def test_a_batch_is_one_row_group_whatever_its_size(tmp_path: Path) -> None:
    """A prompt that falls into two groups would be taken for known by the second, and dropped."""
    rows = 2**20 + 1
    place: dict[str, Any] = {
        "prompt_ids": ("p0",),
        "prompt_index": np.zeros(rows, np.int32),
        "turn": np.zeros(rows, np.int16),
        "position": np.arange(rows, dtype=np.int32),
    }
    ones = np.ones((rows, 1), np.int32)
    tokens = replace(
        made_measurement([[1]], 1),
        **place,
        token_id=ones[:, 0],
        rank=ones,
        top_prob=ones.astype(np.float32),
        ties=(),
        near_ties=(),
    )
    write_tokens(tokens, tmp_path / "tokens.parquet")
    assert pq.ParquetFile(tmp_path / "tokens.parquet").num_row_groups == 1
    first = Guesses(**place, vocabulary=9, ids=ones[:, :, None], probs=ones[:, :, None] / 1)
    write_guesses(first, tmp_path / "guesses.parquet")
    assert pq.ParquetFile(tmp_path / "guesses.parquet").num_row_groups == 1


def test_tables_of_the_older_format_are_read(tmp_path: Path) -> None:
    """Without turns, without the numbers of the prompts, and with fewer lists beside them."""
    original = replace(made_measurement([[3], [1], [4]]), turn=np.zeros(8, np.int16), near_ties=())
    save(original, tmp_path / "m")
    path = tmp_path / "m" / "tokens.parquet"
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[files.MEASUREMENT.encode()])
    for name in ("prompt_numbers", "coupled", "near_ties", "repeated"):
        del about[name]
    older = table.drop_columns(["turn"]).replace_schema_metadata(
        {files.MEASUREMENT: json.dumps(about)}
    )
    pq.write_table(older, path)
    summary = tmp_path / "m" / "summary.json"
    document = json.loads(summary.read_text("utf-8"))
    for name in ("by_category", "matches", "near_ties", "repeated"):
        del document[name]
    summary.write_text(json.dumps(document), encoding="utf-8")
    found = load(tmp_path / "m")
    assert isinstance(found, Measurement)
    assert_equal(found, replace(original, prompt_numbers=None))
    assert found.starts().tolist() == [0, 3, 4, 8]
    save(found, tmp_path / "newer")
    assert_equal(read_tokens(tmp_path / "newer" / "tokens.parquet"), found)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_named_or_harmless(data: st.DataObject) -> None:
    """Any few bytes changed, in any place: the package's own error, if any."""
    tokens = data.draw(st.booleans(), "tokens")
    whole = _BYTES[tokens]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        path.write_bytes(damaged)
        try:
            (read_tokens if tokens else read_guesses)(path)
        except PpdModelError as error:
            named = str(path) in str(error) and "\n" not in str(error)
        else:
            named = True
        assert named


def _written(tokens: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        if tokens:
            write_tokens(made_measurement([[2, 1], [3]]), path)
        else:
            write_guesses(made_guesses([[2, 1], [3]], 2, 300), path)
        return path.read_bytes()


_BYTES = {kind: _written(kind) for kind in (True, False)}


def _context(lists: Any) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        place = table.column_names.index("context_ids")
        return table.set_column(place, "context_ids", pa.array(lists))

    return change


@pytest.mark.parametrize(
    "lists",
    [
        [[1], [], [2], [], [], []],  # none for the last text
        [[1], [2], [3], [4], [], []],  # one where no text begins
        [[1], None, [2], [4], [], []],
        [[1], [], [None], [4], [], []],
        [[1.5], [], [2.0], [4.0], [], []],
        [1, 0, 2, 3, 0, 0],
        [["1"], [], ["2"], ["3"], [], []],
    ],
)
def test_a_table_with_other_contexts_is_named(tmp_path: Path, lists: Any) -> None:
    path = tmp_path / "tokens.parquet"
    write_tokens(made_measurement([[2, 1], [3]], contexts=True), path)
    pq.write_table(_context(lists)(pq.read_table(path)), path)
    with pytest.raises(InvalidInputError, match="got one without 'context_ids'"):
        read_tokens(path)
    pq.write_table(_context([[1], [], [2], [4], [], []])(pq.read_table(path)), path)
    assert [ids.tolist() for ids in read_tokens(path).context_ids or ()] == [[1], [2], [4]]


def test_contexts_count_among_the_numbers_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = made_measurement([[2, 1], [3]], contexts=True)
    write_tokens(original, tmp_path / "tokens.parquet")
    assert original.context_ids is not None
    numbers = 6 * (5 + 2 * 3) + sum(map(len, original.context_ids)) + 3  # three empty lists
    monkeypatch.setattr(parquet, "MOST_NUMBERS", numbers)
    assert_equal(read_tokens(tmp_path / "tokens.parquet"), original)
    monkeypatch.setattr(parquet, "MOST_NUMBERS", numbers - 1)
    with pytest.raises(InvalidInputError, match=f"got 6 rows and {numbers} numbers"):
        read_tokens(tmp_path / "tokens.parquet")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.drop_columns(["rank_01"]),
            "must hold a whole table of tokens; got one without",
        ),
        (
            lambda t: _cast(t, "prob_01", pa.string()),
            "must hold a whole table of tokens; got one without",
        ),
    ],
)
def test_a_table_without_a_column_is_named(
    tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    path = tmp_path / "tokens.parquet"
    write_tokens(made_measurement([[2, 1], [3]]), path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InvalidInputError, match=words):
        read_tokens(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop_columns(["ids_01"]), "must hold a whole table of guesses; got one with"),
        (lambda t: _cast(t, "probs_01", pa.list_(pa.float32())), "not lists of"),
        (lambda t: _cast(t, "ids_01", pa.list_(pa.string(), 8)), "ids_01 has fixed_size_list"),
    ],
)
def test_guesses_without_a_column_are_named(
    tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    path = tmp_path / "guesses.parquet"
    write_guesses(made_guesses([[2, 1], [3]], 2, 300), path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InvalidInputError, match=words):
        read_guesses(path)


def _cast(table: Any, name: str, kind: Any) -> Any:
    """The table with a column of another type."""
    rows = table.column(name).to_pylist()
    if pa.types.is_string(kind):
        rows = [str(x) for x in rows]
    elif pa.types.is_string(kind.value_type):
        rows = [[str(x) for x in row] for row in rows]
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(rows, kind))
