"""Tables of batches merged: the whole in the order of the prompts, a row group at a time."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.results.measurement import Guesses, Measurement
from ppdmodel.results.parquet import (
    SINGLES,
    guesses_beside,
    read_guesses,
    read_tokens,
    write_guesses,
    write_tokens,
)
from ppdmodel.results.parquet_merge import merge_tables
from tests.support.tables import assert_equal, made_guesses, made_measurement

#: texts of five prompts, in batches of two, two and one
LENGTHS = [[3], [1, 2], [4], [2], [1]]
BATCHES = ((0, 2), (2, 4), (4, 5))


def whole(coupled: bool = False) -> tuple[Measurement, Guesses]:
    made = made_measurement(LENGTHS, layers=3, coupled=coupled, contexts=True)
    places = [{"prompt_id": f"p{n}/ä", "position": 0, "margin": 1e-6} for n in (0, 3)]
    ties = tuple(place | {"rank": 2} for place in places)
    near = tuple(place | {"turn": 0} for place in places[1:])
    again = tuple(
        {"prompt_id": place["prompt_id"], "turn": 0, "n_tokens": 1, "n_near_ties": 0}
        for place in places
    )
    lists: dict[str, Any] = {"ties": ties, "near_ties": near, "repeated": again}
    return (
        replace(made, **lists, prompt_numbers=tuple(range(5)), complete=True),
        made_guesses(LENGTHS, 3, 300),
    )


def rows_of(result: Any, first: int, end: int) -> Any:
    """Some of the prompts of a measurement or of guesses."""
    mine = (result.prompt_index >= first) & (result.prompt_index < end)
    arrays = {
        name: value[mine] for name, value in vars(result).items() if isinstance(value, np.ndarray)
    }
    arrays["prompt_index"] = arrays["prompt_index"] - first
    kept = {name: getattr(result, name)[first:end] for name in ("prompt_ids", "categories",
            "prompt_numbers") if hasattr(result, name)}  # fmt: skip
    part = replace(result, **arrays, **kept)
    if isinstance(result, Measurement):
        if result.context_ids is not None:
            chosen = np.flatnonzero(mine[result.starts()[:-1]])
            part = replace(part, context_ids=tuple(result.context_ids[i] for i in chosen))
        for name in SINGLES:
            ties = [t for t in getattr(result, name) if t["prompt_id"] in part.prompt_ids]
            part = replace(part, **{name: tuple(ties)})
    return part


def write_batches(
    folder: Path, tokens: Measurement, guesses: Guesses | None, batches: Any = BATCHES
) -> list[Path]:
    folder.mkdir()
    paths = []
    for first, end in batches:
        path = folder / f"{first:06d}.tokens.parquet"
        write_tokens(rows_of(tokens, first, end), path)
        if guesses is not None:
            write_guesses(rows_of(guesses, first, end), guesses_beside(path))
        paths.append(path)
    return paths


@pytest.mark.parametrize("coupled", [False, True])
def test_in_any_order_they_are_the_whole(tmp_path: Path, coupled: bool) -> None:
    tokens, guesses = whole(coupled)
    paths = write_batches(tmp_path / "in", tokens, guesses)
    for number, order in enumerate(itertools.permutations(paths)):
        out = tmp_path / str(number)
        parts = list(merge_tables(order, out, tokens.provenance))
        assert [part.prompt_ids for part in parts] == [
            tokens.prompt_ids[first:end] for first, end in BATCHES
        ]
        assert_equal(read_tokens(out / "tokens.parquet"), tokens)
        merged = read_guesses(out / "guesses.parquet")
        assert np.array_equal(merged.ids, guesses.ids)
        assert pq.ParquetFile(out / "tokens.parquet").num_row_groups == 3


def test_contexts_that_some_batches_lack_are_left_out(tmp_path: Path) -> None:
    """A measurement that an older version began goes on without them."""
    tokens, _ = whole()
    paths = write_batches(tmp_path / "in", tokens, None)
    write_tokens(replace(read_tokens(paths[1]), context_ids=None), paths[1])
    for number, order in enumerate((paths, paths[::-1])):
        out = tmp_path / str(number)
        list(merge_tables(order, out, tokens.provenance))
        assert_equal(read_tokens(out / "tokens.parquet"), replace(tokens, context_ids=None))


def test_merged_again_with_the_rest_they_are_the_whole(tmp_path: Path) -> None:
    """A measurement that goes on replaces its own table, which is among the sources."""
    tokens, guesses = whole()
    paths = write_batches(tmp_path / "in", tokens, guesses)
    out = tmp_path / "out"
    list(merge_tables(paths[:1] + paths[2:], out, {**tokens.provenance, "n_prompts": 5}))
    assert not read_tokens(out / "tokens.parquet").complete
    assert read_tokens(out / "tokens.parquet").prompt_numbers == (0, 1, 4)
    sources = [out / "tokens.parquet", paths[1]]
    list(merge_tables(sources, out, {**tokens.provenance, "n_prompts": 5}))
    found = read_tokens(out / "tokens.parquet")
    assert found.complete
    assert_equal(replace(found, provenance=tokens.provenance), tokens)


def test_a_prompt_in_two_sources_is_taken_from_the_first(tmp_path: Path) -> None:
    tokens, _ = whole()
    paths = write_batches(tmp_path / "in", tokens, None)
    other = replace(rows_of(tokens, 2, 4), token_id=np.zeros(6, dtype=np.int32))
    write_tokens(other, tmp_path / "again.tokens.parquet")
    list(
        merge_tables(
            [*paths, tmp_path / "again.tokens.parquet"], tmp_path / "out", tokens.provenance
        )
    )
    assert read_tokens(tmp_path / "out" / "tokens.parquet").token_id.tolist() == (
        tokens.token_id.tolist()
    )


def test_guesses_are_merged_where_all_have_them(tmp_path: Path) -> None:
    tokens, guesses = whole()
    paths = write_batches(tmp_path / "in", tokens, guesses)
    guesses_beside(paths[1]).unlink()
    list(merge_tables(paths, tmp_path / "out", tokens.provenance))
    assert not (tmp_path / "out" / "guesses.parquet").exists()
    assert read_tokens(tmp_path / "out" / "tokens.parquet").n_tokens == tokens.n_tokens


def test_guesses_of_other_tokens_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    tokens, guesses = whole()
    paths = write_batches(tmp_path / "in", tokens, guesses)
    shutil.copy(guesses_beside(paths[0]), guesses_beside(paths[1]))
    with pytest.raises(InvalidInputError, match="must hold the guesses of the tokens beside it"):
        list(merge_tables(paths, tmp_path / "out", tokens.provenance))
    assert list((tmp_path / "out").iterdir()) == []
    short = replace(guesses, **{n: getattr(guesses, n)[:-1] for n in ("prompt_index", "turn",
                    "position", "ids", "probs")})  # fmt: skip
    write_guesses(rows_of(short, 4, 5), guesses_beside(paths[2]))
    write_guesses(rows_of(guesses, 2, 4), guesses_beside(paths[1]))
    with pytest.raises(InvalidInputError, match="got others for prompt 'p4/ä'"):
        list(merge_tables(paths, tmp_path / "out", tokens.provenance))


def test_older_tables_have_no_numbers(tmp_path: Path) -> None:
    """Their prompts are numbered as they stand."""
    tokens, _ = whole()
    path = tmp_path / "one.tokens.parquet"
    write_tokens(replace(tokens, prompt_numbers=None), path)
    list(merge_tables([path], tmp_path / "out", tokens.provenance))
    assert read_tokens(tmp_path / "out" / "tokens.parquet").prompt_numbers == (0, 1, 2, 3, 4)
