"""A measurement's folder, batch by batch: what counts as done, what is joined, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.prompts import Prompt
from ppdmodel.measure.store import UNFINISHED, Store, check_same, join_batches
from ppdmodel.results.files import GUESSES_FILE, SUMMARY_FILE, TOKENS_FILE
from ppdmodel.results.io import load_guesses, read_measurement
from ppdmodel.results.measurement import Guesses, Measurement
from ppdmodel.results.parquet import read_guesses, read_tokens
from tests.conftest import make_measurement
from tests.support.runs import snapshot

COUNT, TOKENS, LAYERS = 6, 4, 3
PROMPTS = [Prompt(f"p{n}", f"text {n}", "made-up") for n in range(COUNT)]
WHOLE = make_measurement(COUNT, TOKENS, LAYERS)
#: what makes two measurements the same one
SETTINGS: dict[str, Any] = {
    "model": "made-up",
    "weights_sha256": ["0" * 64],
    "dtype": "float32",
    "max_new_tokens": TOKENS,
    "n_prompts": COUNT,
    "guesses": True,
    "shard": None,
}
ABOUT = {**WHOLE.provenance, **SETTINGS}


def batch(*numbers: int, about: dict[str, Any] | None = None) -> tuple[Measurement, Guesses]:
    """The tokens of some prompts of the whole, as a batch is put on disk."""
    mine = np.isin(WHOLE.prompt_index, numbers)
    place = np.searchsorted(np.array(numbers), WHOLE.prompt_index[mine])
    names = ("turn", "position", "token_id", "rank", "top_prob")
    part = replace(
        WHOLE,
        provenance=about or ABOUT,
        prompt_ids=tuple(f"p{n}" for n in numbers),
        categories=("made-up",) * len(numbers),
        prompt_numbers=numbers,
        prompt_index=place,
        complete=False,
        near_ties=({"prompt_id": f"p{numbers[0]}", "turn": 0, "position": 1, "margin": 1e-4},),
        repeated=({"prompt_id": f"p{numbers[0]}", "turn": 0, "n_tokens": 2, "n_near_ties": 0},),
        **{name: getattr(WHOLE, name)[mine] for name in names},
    )
    ids = np.arange(part.n_tokens * LAYERS * 8).reshape(-1, LAYERS, 8) % 97 + 100 * numbers[0]
    guesses = Guesses(
        part.prompt_ids, place, part.turn, part.position, 700, ids, np.full(ids.shape, 0.125)
    )
    return part, guesses


def filled(out: Path, *batches: Sequence[int]) -> Store:
    store = Store(out, SETTINGS)
    for numbers in batches:
        store.add(*batch(*numbers))
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_batch_is_on_disk_when_it_was_added(tmp_path: Path) -> None:
    store = Store(tmp_path / "m", SETTINGS)
    assert not (tmp_path / "m").exists(), "a look at a folder makes none"
    part, guesses = batch(2, 3)
    store.add(part, guesses)
    assert store.done == {"p2", "p3"}
    assert store.n_tokens == 2 * TOKENS
    folder = tmp_path / "m" / UNFINISHED
    assert names(folder) == [f"000002.{GUESSES_FILE}", f"000002.{TOKENS_FILE}"]
    found = read_tokens(folder / f"000002.{TOKENS_FILE}")
    assert np.array_equal(found.rank, WHOLE.rank[2 * TOKENS : 4 * TOKENS])
    assert np.array_equal(read_guesses(folder / f"000002.{GUESSES_FILE}").ids, guesses.ids)


def test_without_guesses_there_is_no_file_of_them(tmp_path: Path) -> None:
    settings = SETTINGS | {"guesses": False}
    store = Store(tmp_path, settings)
    store.add(batch(0, 1, about=ABOUT | settings)[0], None)
    assert names(tmp_path / UNFINISHED) == [f"000000.{TOKENS_FILE}"]
    assert Store(tmp_path, settings).done == {"p0", "p1"}
    store.join_batches()
    assert names(tmp_path) == sorted([SUMMARY_FILE, TOKENS_FILE])
    assert not (tmp_path / UNFINISHED).exists()


def test_another_store_of_the_folder_goes_on_with_what_is_left(tmp_path: Path) -> None:
    filled(tmp_path, (0, 1), (4, 5))
    again = Store(tmp_path, SETTINGS)
    assert again.done == {"p0", "p1", "p4", "p5"}
    assert again.n_tokens == 4 * TOKENS
    assert again.pending(PROMPTS, 2) == [[2, 3]]
    again.join_batches()
    joined = Store(tmp_path, SETTINGS)
    assert (joined.done, joined.n_tokens) == (again.done, again.n_tokens)
    assert joined.pending(PROMPTS, 2) == [[2, 3]]


@pytest.mark.parametrize(
    ("done", "size", "batches"),
    [
        ((), 1, [[0], [1], [2], [3], [4], [5]]),
        ((), 2, [[0, 1], [2, 3], [4, 5]]),
        ((), 4, [[0, 1, 2, 3], [4, 5]]),
        ((), 9, [[0, 1, 2, 3, 4, 5]]),
        ((0,), 2, [[1], [2, 3], [4, 5]]),
        ((1,), 3, [[0], [2], [3, 4, 5]]),
        ((0, 2, 4), 3, [[1], [3], [5]]),
        ((0, 1, 2, 3, 4, 5), 2, []),
    ],
)
def test_pending_prompts_stay_in_their_batches(
    tmp_path: Path, done: tuple[int, ...], size: int, batches: list[list[int]]
) -> None:
    """A batch starts at every multiple of the size and wherever a prompt is done already."""
    store = Store(tmp_path, SETTINGS)
    store.done.update(f"p{n}" for n in done)
    assert store.pending(PROMPTS, size) == batches


def test_joined_batches_are_the_whole_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    filled(tmp_path, (4, 5), (0, 1), (2, 3)).join_batches()
    assert names(tmp_path) == sorted([GUESSES_FILE, SUMMARY_FILE, TOKENS_FILE])
    assert not (tmp_path / UNFINISHED).exists()
    found = read_measurement(tmp_path)
    assert found.complete
    assert found.prompt_ids == WHOLE.prompt_ids
    for name in ("prompt_index", "turn", "position", "token_id", "rank"):
        assert np.array_equal(getattr(found, name), getattr(WHOLE, name)), name
    assert [tie["prompt_id"] for tie in found.near_ties] == ["p0", "p2", "p4"]
    assert [text["prompt_id"] for text in found.repeated] == ["p0", "p2", "p4"]
    ids = np.concatenate([batch(n, n + 1)[1].ids for n in (0, 2, 4)])
    assert np.array_equal(load_guesses(tmp_path).ids, ids)
    summary = json.loads((tmp_path / SUMMARY_FILE).read_text("utf-8"))
    assert (summary["n_tokens"], summary["n_prompts"]) == (COUNT * TOKENS, COUNT)
    assert summary["complete"] is True
    assert len(summary["near_ties"]) == len(summary["repeated"]) == 3


def test_parts_are_joined_as_incomplete_and_later_ones_added(tmp_path: Path) -> None:
    store = filled(tmp_path, (0, 1))
    store.join_batches()
    first = read_measurement(tmp_path)
    assert (first.complete, first.prompt_ids) == (False, ("p0", "p1"))
    store.add(*batch(4, 5))
    store.add(*batch(2, 3))
    store.join_batches()
    found = read_measurement(tmp_path)
    assert found.complete
    assert np.array_equal(found.rank, WHOLE.rank)


def test_joining_goes_by_what_is_on_disk(tmp_path: Path) -> None:
    """Another process wrote a batch of which this store knows nothing."""
    mine = Store(tmp_path, SETTINGS)
    filled(tmp_path, (0, 1))
    mine.join_batches()
    assert read_measurement(tmp_path).prompt_ids == ("p0", "p1")


def test_joining_twice_changes_nothing_and_a_lost_summary_is_made_again(tmp_path: Path) -> None:
    store = filled(tmp_path, (0, 1, 2), (3, 4, 5))
    store.join_batches()
    before = snapshot(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    store.join_batches()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    (tmp_path / SUMMARY_FILE).unlink()
    Store(tmp_path, SETTINGS).join_batches()
    assert snapshot(tmp_path)[SUMMARY_FILE] == before[SUMMARY_FILE]


def test_nothing_to_join_makes_no_file(tmp_path: Path) -> None:
    Store(tmp_path / "m", SETTINGS).join_batches()
    join_batches([], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_joined_table_says_of_itself_what_it_is_told(tmp_path: Path) -> None:
    later = ABOUT | {"date": "2026-01-02T00:00:00+00:00"}
    filled(tmp_path / "m", (0, 1), (2, 3)).add(*batch(4, 5, about=later))
    sources = sorted((tmp_path / "m" / UNFINISHED).glob(f"*.{TOKENS_FILE}"))
    join_batches(sources, tmp_path / "told", {**ABOUT, "n_prompts": 6, "note": "told"})
    assert read_measurement(tmp_path / "told").provenance["note"] == "told"
    assert read_measurement(tmp_path / "told").complete
    join_batches(sources, tmp_path / "last")
    assert read_measurement(tmp_path / "last").provenance == later


def test_a_batch_that_is_joined_already_counts_once(tmp_path: Path) -> None:
    """As a kill leaves it between the joined table and the removal of its parts."""
    store = filled(tmp_path, (0, 1))
    shutil.copytree(tmp_path / UNFINISHED, tmp_path.with_name("kept"))
    store.join_batches()
    shutil.copytree(tmp_path.with_name("kept"), tmp_path / UNFINISHED)
    again = Store(tmp_path, SETTINGS)
    assert again.n_tokens == 2 * TOKENS
    again.join_batches()
    assert read_measurement(tmp_path).n_tokens == 2 * TOKENS
    assert not (tmp_path / UNFINISHED).exists()


def test_what_a_kill_cut_short_is_cleared_away(tmp_path: Path) -> None:
    store = filled(tmp_path, (0, 1))
    folder = tmp_path / UNFINISHED
    cut = [folder / f".000002.{TOKENS_FILE}.part-1.parquet", tmp_path / f".{TOKENS_FILE}.part-1"]
    for path in [*cut, folder / f"000002.{GUESSES_FILE}"]:
        path.write_bytes(b"PAR1 cut short")
    assert Store(tmp_path, SETTINGS).done == {"p0", "p1"}, "a name with a dot does not count"
    store.join_batches()
    assert names(tmp_path) == sorted([GUESSES_FILE, SUMMARY_FILE, TOKENS_FILE])
    assert not folder.exists()


def test_files_of_others_among_the_batches_are_left_alone(tmp_path: Path) -> None:
    store = filled(tmp_path, (0, 1))
    (tmp_path / UNFINISHED / "notes.txt").write_text("mine")
    (tmp_path / UNFINISHED / f"000002.{GUESSES_FILE}").write_bytes(b"PAR1 cut short")
    store.join_batches()
    assert (tmp_path / UNFINISHED / "notes.txt").read_text() == "mine"
    assert (tmp_path / UNFINISHED / f"000002.{GUESSES_FILE}").exists()


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 5}, "with max_new_tokens 4 instead of 5; choose another --out"),
        ({"dtype": "bfloat16"}, "with dtype 'float32' instead of 'bfloat16'"),
        ({"guesses": False}, "with guesses True instead of False"),
        ({"shard": "1/2 of batches of 2"}, "with shard None instead of '1/2 of batches of 2'"),
        ({"temperature": 1.0}, "with temperature None instead of 1.0"),
    ],
)
def test_another_measurement_is_refused_by_the_name_of_what_differs(
    tmp_path: Path, joined: bool, changes: dict[str, Any], words: str
) -> None:
    store = filled(tmp_path, (0, 1))
    if joined:
        store.join_batches()
    before = snapshot(tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        Store(tmp_path, SETTINGS | changes)
    assert f"the out folder must hold this same measurement; got {tmp_path}" in str(caught.value)
    assert words in str(caught.value)
    assert snapshot(tmp_path) == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "thesis.tex"
    file.write_text("mine")
    with pytest.raises(InvalidInputError, match="with other files; choose another --out"):
        Store(tmp_path, SETTINGS)
    (tmp_path / "empty" / UNFINISHED).mkdir(parents=True)
    assert Store(tmp_path / "empty", SETTINGS).done == set()


def test_settings_that_are_not_asked_for_may_differ() -> None:
    check_same(Path("e"), {"a": 1, "date": "today"}, {"a": 1})
    with pytest.raises(InvalidInputError, match="got e with a 1 instead of 2; choose another"):
        check_same(Path("e"), {"a": 1}, {"a": 2})


def test_tokens_without_their_guesses_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, (0, 1))
    lost = tmp_path / UNFINISHED / f"000000.{GUESSES_FILE}"
    lost.unlink()
    with pytest.raises(InvalidInputError) as caught:
        Store(tmp_path, SETTINGS)
    assert f"must be beside them; got no {lost}; copy it back, or remove" in str(caught.value)
