"""Every value of a measurement's tables that no run can have made is refused, with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.results import files
from ppdmodel.results.domains import guesses_fault, measurement_fault
from ppdmodel.results.measurement import NO_RANK, Guesses, Measurement
from ppdmodel.results.parquet import (
    read_guesses,
    read_tokens,
    write_guesses,
    write_tokens,
)
from tests.support.tables import made_guesses, made_measurement

TEXTS = [[3, 2], [4]]
VOCABULARY = 300


def of_tokens() -> Measurement:
    """Nine tokens of two prompts, sampled, of a model with a vocabulary of 300."""
    made = made_measurement(TEXTS, coupled=True)
    rng = np.random.default_rng(0)
    about = {**made.provenance, "k_max": VOCABULARY}
    coupled = rng.integers(1, VOCABULARY + 1, made.rank.shape)
    return replace(
        made, provenance=about, token_id=made.token_id % VOCABULARY, coupled_rank=coupled
    )


def put(array: Any, value: float, *place: int) -> Any:
    changed = array.copy()
    changed[place] = value
    return changed


def test_what_a_run_can_have_made_passes() -> None:
    assert measurement_fault(of_tokens()) is None
    assert guesses_fault(made_guesses(TEXTS, 3, VOCABULARY)) is None
    rows = slice(0, 0)
    none = of_tokens()
    cut = {name: getattr(none, name)[rows] for name in ("prompt_index", "turn", "position")}
    cut |= {name: getattr(none, name)[rows] for name in ("token_id", "rank", "top_prob")}
    assert measurement_fault(replace(none, **cut, coupled_rank=None)) is None


def test_the_ends_of_a_domain_belong_to_it() -> None:
    tokens = of_tokens()
    ends = {
        "rank": put(put(tokens.rank, 1, 0, 0), VOCABULARY, 1, 0),
        "coupled_rank": put(tokens.coupled_rank, VOCABULARY, 1, 0),
        "token_id": put(put(tokens.token_id, 0, 0), VOCABULARY - 1, 1),
        "top_prob": put(put(tokens.top_prob, 0, 0, 0), 1, 1, 0),
    }
    assert measurement_fault(replace(tokens, **ends)) is None
    without_limit = {name: x for name, x in tokens.provenance.items() if name != "k_max"}
    beyond = {"rank": put(tokens.rank, 10**6, 0, 0), "provenance": without_limit}
    assert measurement_fault(replace(tokens, **beyond)) is None, "no limit is on record"


NAN = float("nan")
#: a field, its value, and where: every column of a table of tokens, at both ends of its domain
BAD_TOKENS = [
    ("rank", 0, (4, 1), "rank must be from 1 to 300", "row 4 of rank of exit layer 2"),
    ("rank", -7, (0, 0), "rank must be from 1 to 300", "row 0 of rank of exit layer 1"),
    ("rank", 301, (8, 2), "rank must be from 1 to 300", "row 8 of rank of exit layer 3"),
    ("coupled_rank", 0, (1, 0), "coupled must be from 1", "row 1 of coupled of exit layer 1"),
    ("coupled_rank", 301, (1, 0), "coupled must be from 1", "row 1 of coupled of exit layer 1"),
    ("top_prob", 7, (2, 2), "prob must be from 0 to 1", "row 2 of prob of exit layer 3"),
    ("top_prob", -0.1, (2, 2), "prob must be from 0 to 1", "row 2 of prob of exit layer 3"),
    ("top_prob", NAN, (3, 0), "prob must be from 0 to 1", "row 3 of prob of exit layer 1"),
    ("token_id", -1, (5,), "token_id must be from 0 to 299", "row 5 of token_id"),
    ("token_id", 300, (5,), "token_id must be from 0 to 299", "row 5 of token_id"),
    ("turn", -1, (0,), "turn must be at least 0", "row 0 of turn"),
    ("turn", 0, (3,), "positions of a text must count from 0", "row 3 of position"),
    ("turn", 1, (1,), "turns of a prompt must follow each other", "row 2 of turn"),
    ("turn", 5, (2,), "turns of a prompt must follow each other", "row 3 of turn"),
    ("position", 9999, (2,), "positions of a text must count from 0", "row 2 of position"),
    ("position", 0, (2,), "positions of a text must count from 0", "row 2 of position"),
    ("position", 1, (5,), "positions of a text must count from 0", "row 5 of position"),
    ("position", -1, (0,), "position must be at least 0", "row 0 of position"),
]


@pytest.mark.parametrize(("name", "value", "place", "rule", "where"), BAD_TOKENS)
def test_a_bad_token_is_refused_with_its_place(
    tmp_path: Path, name: str, value: float, place: tuple[int, ...], rule: str, where: str
) -> None:
    path, tokens = tmp_path / "tokens.parquet", of_tokens()
    write_tokens(replace(tokens, **{name: put(getattr(tokens, name), value, *place)}), path)
    with pytest.raises(InvalidInputError) as caught:
        read_tokens(path)
    message = str(caught.value)
    assert message.startswith(f"{rule}"), message
    assert f" in {path}; got " in message
    assert f"{where}; measure again" in message, message


def of_listed_tokens() -> Measurement:
    """The same, ranked by exits that score 40 tokens; the fourth token is not among them."""
    made = of_tokens()
    about = {**made.provenance, "k_max": 40, "vocabulary": VOCABULARY}
    ranks = {name: np.minimum(getattr(made, name), 40) for name in ("rank", "coupled_rank")}
    for values in ranks.values():
        values[3, :-1], values[5, -1] = NO_RANK, VOCABULARY
    return replace(made, provenance=about, **ranks)


def test_a_token_outside_of_a_shortlist_has_no_rank_and_no_hit(tmp_path: Path) -> None:
    """In the file it has rank 0."""
    listed, path = of_listed_tokens(), tmp_path / "tokens.parquet"
    assert listed.has_shortlist
    assert not of_tokens().has_shortlist
    write_tokens(listed, path)
    columns = pq.read_table(path)
    assert [columns[f"rank_0{n}"][3].as_py() == 0 for n in (1, 2, 3)] == [True, True, False]
    found = read_tokens(path)
    assert np.array_equal(found.rank, listed.rank)
    assert found.coupled_rank is not None
    assert listed.coupled_rank is not None
    assert np.array_equal(found.coupled_rank, listed.coupled_rank)
    assert found.hits_by_prompt(100)[:, 0, -1].sum() == found.n_tokens - 1


#: a field, its value, and where, of a table of exits with a shortlist
BAD_LISTED = [
    ("rank", 0, (3, 2), "rank must be from 1 to 300; got 0 in row 3 of rank of exit layer 3"),
    ("rank", 0, (4, 1), "a token must be ranked by every exit, or by none (0); got 0 in row 4"),
    ("rank", 7, (3, 1), "a token must be ranked by every exit, or by none (0); got 7 in row 3"),
    ("coupled_rank", 0, (4, 0), "a token must be ranked by every exit, or by none (0); got 0"),
    ("rank", 41, (4, 1), "rank must be from 1 to 40; got 41 in row 4 of rank of exit layer 2"),
    ("rank", -1, (4, 1), "rank must be from 1 to 40; got -1 in row 4 of rank of exit layer 2"),
    ("coupled_rank", 301, (4, 2), "coupled must be from 1 to 300; got 301 in row 4 of coupled"),
    ("token_id", 300, (5,), "token_id must be from 0 to 299; got 300 in row 5 of token_id"),
]


@pytest.mark.parametrize(("name", "value", "place", "words"), BAD_LISTED)
def test_a_bad_rank_of_an_exit_with_a_shortlist_is_refused(
    tmp_path: Path, name: str, value: int, place: tuple[int, ...], words: str
) -> None:
    path, tokens = tmp_path / "tokens.parquet", of_listed_tokens()
    write_tokens(replace(tokens, **{name: put(getattr(tokens, name), value, *place)}), path)
    with pytest.raises(InvalidInputError) as caught:
        read_tokens(path)
    assert words in str(caught.value).replace(f" in {path}", "")


@pytest.mark.parametrize("value", [-1, 300])
def test_a_bad_token_of_a_prompt_is_refused_with_its_place(tmp_path: Path, value: int) -> None:
    path, read = tmp_path / "tokens.parquet", [np.array([7, 0]), np.array([299, 8]), np.array([5])]
    write_tokens(replace(of_tokens(), context_ids=tuple(read)), path)
    assert read_tokens(path).context_ids is not None
    read[1][1] = value
    write_tokens(replace(of_tokens(), context_ids=tuple(read)), path)
    with pytest.raises(InvalidInputError) as caught:
        read_tokens(path)
    assert str(caught.value) == (
        f"context_ids must be from 0 to 299 in {path}; got {value} in row 3 of context_ids; "
        "measure again"
    )


BAD_GUESSES = [
    ("ids", -2, (4, 1, 3), "ids must be from -1 to 69999", "row 4 of ids of exit layer 2"),
    ("ids", 70_000, (4, 1, 3), "ids must be from -1 to 69999", "row 4 of ids of exit layer 2"),
    ("probs", NAN, (4, 1, 3), "probs must be from 0 to 1", "row 4 of probs of exit layer 2"),
    ("probs", 1.5, (4, 1, 0), "probs must be from 0 to 1", "row 4 of probs of exit layer 2"),
    ("probs", -0.5, (4, 1, 7), "probs must be from 0 to 1", "row 4 of probs of exit layer 2"),
    ("probs", 1, (4, 1, 7), "probabilities must fall", "row 4 of probs of exit layer 2"),
]


@pytest.mark.parametrize(("name", "value", "place", "rule", "where"), BAD_GUESSES)
def test_a_bad_guess_is_refused_with_its_place(
    tmp_path: Path, name: str, value: float, place: tuple[int, ...], rule: str, where: str
) -> None:
    path, guesses = tmp_path / "guesses.parquet", made_guesses(TEXTS, 3, 70_000)
    write_guesses(replace(guesses, **{name: put(getattr(guesses, name), value, *place)}), path)
    with pytest.raises(InvalidInputError) as caught:
        read_guesses(path)
    assert str(caught.value).startswith(rule)
    assert f"{where}; measure again" in str(caught.value)


def test_guesses_of_one_token_differ_and_their_probabilities_add_up_to_at_most_one() -> None:
    guesses = made_guesses(TEXTS, 3, VOCABULARY)
    twice = guesses.ids.copy()
    twice[2, 1, 5] = twice[2, 1, 0]
    fault = guesses_fault(replace(guesses, ids=twice))
    assert fault is not None
    assert (fault.row, fault.rule) == (2, "the guesses of one token must differ")
    none = guesses.ids.copy()
    none[:, :, 4:] = -1
    assert guesses_fault(replace(guesses, ids=none)) is None, "without a guess is no guess twice"
    fault = guesses_fault(replace(guesses, probs=np.full(guesses.probs.shape, 0.2)))
    assert fault is not None
    assert (fault.row, fault.got) == (0, "1.6")
    one: Guesses = replace(guesses, ids=guesses.ids[:, :, :1], probs=guesses.probs[:, :, :1])
    assert guesses_fault(one) is None


def rewritten(path: Path, change: Callable[[Any], Any]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


ROWS = {
    "twice": ([0, 1, 1, 2, 3, 4, 5, 6, 7, 8], "positions of a text must count from 0"),
    "missing": ([0, 2, 3, 4, 5, 6, 7, 8], "positions of a text must count from 0"),
    "exchanged": ([1, 0, 2, 3, 4, 5, 6, 7, 8], "positions of a text must count from 0"),
    "turns exchanged": ([3, 4, 0, 1, 2, 5, 6, 7, 8], "turns of a prompt must follow each other"),
    "prompts mixed": ([0, 1, 2, 5, 6, 7, 8, 3, 4], "the rows of a prompt must be together"),
    "all twice": ([*range(9), *range(9)], "the rows of a prompt must be together"),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", ["tokens", "guesses"])
def test_rows_in_another_order_missing_or_twice_are_refused(
    tmp_path: Path, kind: str, name: str
) -> None:
    rows, rule = ROWS[name]
    path = tmp_path / "table.parquet"
    if kind == "tokens":
        write_tokens(of_tokens(), path)
    else:
        write_guesses(made_guesses(TEXTS, 3, VOCABULARY), path)
    rewritten(path, lambda table: table.take(rows))
    with pytest.raises(InvalidInputError, match=rule):
        (read_tokens if kind == "tokens" else read_guesses)(path)


ABOUT: dict[str, tuple[dict[str, Any], str]] = {
    "ids twice": ({"prompt_ids": ["p0/ä", "p0/ä"]}, "non-unique elements"),
    "an id of no prompt": ({"prompt_ids": ["p0/ä", "p9"]}, "must be in its metadata; got 'p1/ä'"),
    "fewer categories": ({"categories": ["a"]}, "a category and a number for each of 2 prompts"),
    "numbers twice": ({"prompt_numbers": [7, 7]}, "prompt_numbers: .* non-unique"),
    "fewer numbers": ({"prompt_numbers": [7]}, "a category and a number for each of 2 prompts"),
    "layers": ({"layers": 0}, "layers: 0 is less than the minimum"),
    "layers as text": ({"layers": "3"}, "layers: '3' is not of type 'integer'"),
    "layers as a float": ({"layers": 3.0}, "layers: 3.0 is not of type 'integer'"),
    "complete": ({"complete": "yes"}, "complete: 'yes' is not of type 'boolean'"),
    "a tie": ({"ties": [{"prompt_id": "p0/ä"}]}, "ties/0: 'position' is a required"),
    "provenance": ({"provenance": {}}, "provenance: 'model' is a required"),
}


@pytest.mark.parametrize("name", ABOUT)
def test_bad_metadata_are_refused_with_the_field(tmp_path: Path, name: str) -> None:
    change, words = ABOUT[name]
    path = tmp_path / "tokens.parquet"
    write_tokens(of_tokens(), path)
    key = files.MEASUREMENT.encode()
    about = json.loads(pq.read_schema(path).metadata[key]) | change
    rewritten(path, lambda t: t.replace_schema_metadata({key: json.dumps(about).encode()}))
    with pytest.raises(InvalidInputError, match=words):
        read_tokens(path)


def test_numbers_of_metadata_are_finite_and_its_keys_unique(tmp_path: Path) -> None:
    path = tmp_path / "guesses.parquet"
    write_guesses(made_guesses(TEXTS, 3, VOCABULARY), path)
    key = files.MEASUREMENT.encode()
    text = pq.read_schema(path).metadata[key]
    for old, new in ((b"300", b"NaN"), (b'"layers"', b'"guesses"')):
        bad = {key: text.replace(old, new)}
        pq.write_table(pq.read_table(path).replace_schema_metadata(bad), path)
        with pytest.raises(InvalidInputError, match=r"the metadata of .* must be JSON; got"):
            read_guesses(path)


def test_a_vocabulary_of_a_float_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "guesses.parquet"
    write_guesses(made_guesses(TEXTS, 3, VOCABULARY), path)
    key = files.MEASUREMENT.encode()
    about = json.loads(pq.read_schema(path).metadata[key]) | {"vocabulary": 300.5}
    rewritten(path, lambda t: t.replace_schema_metadata({key: json.dumps(about).encode()}))
    with pytest.raises(InvalidInputError, match=r"vocabulary: 300.5 is not of type 'integer'"):
        read_guesses(path)
