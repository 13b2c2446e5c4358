"""The tables of a measurement, there and back, and what the summary counts in them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdmodel import load, save
from ppdmodel.errors import PpdModelError
from ppdmodel.results import files
from ppdmodel.results.measurement import Guesses, Measurement
from ppdmodel.results.parquet import read_guesses, read_tokens, write_guesses, write_tokens
from ppdmodel.results.summary import FOLLOWED_K, Tally, summarize
from tests.conftest import make_measurement

#: lengths of texts: of each prompt, of each of its turns
Lengths = list[list[int]]
SHAPES = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=5)
QUICK = settings(max_examples=40, deadline=None)


def keys(lengths: Lengths) -> dict[str, Any]:
    """Names and places of tokens in texts of these lengths."""
    rows = [
        (prompt, turn, position)
        for prompt, turns in enumerate(lengths)
        for turn, length in enumerate(turns)
        for position in range(length)
    ]
    prompt, turn, position = np.array(rows).T
    return {
        "prompt_ids": tuple(f"p{n}/ä" for n in range(len(lengths))),
        "prompt_index": prompt,
        "turn": turn.astype(np.int16),
        "position": position.astype(np.int32),
    }


def measurement(
    lengths: Lengths, layers: int = 3, seed: int = 0, coupled: bool = False, top: int = 13
) -> Measurement:
    """A made-up measurement of texts of these lengths, with ties, and ranks up to `top`."""
    rng, rows = np.random.default_rng(seed), sum(map(sum, lengths))
    place = keys(lengths)
    last = place["prompt_ids"][-1]
    tie = {"prompt_id": last, "position": 0, "rank": 2, "margin": 1e-6}
    near = {"prompt_id": last, "turn": 0, "position": 0, "margin": 1e-5}
    return Measurement(
        **place,
        provenance=make_measurement(2, 2).provenance,
        categories=tuple("ab"[n % 2] for n in range(len(lengths))),
        token_id=rng.integers(0, 2**31 - 1, rows),
        rank=rng.integers(1, top + 1, (rows, layers)),
        top_prob=rng.random((rows, layers), dtype=np.float32),
        coupled_rank=rng.integers(1, 2**31 - 1, (rows, layers)) if coupled else None,
        complete=bool(seed % 2),
        ties=(tie,),
        near_ties=(near,),
        prompt_numbers=tuple(range(7, 7 + len(lengths))),
    )


def guesses(lengths: Lengths, layers: int, vocabulary: int, seed: int = 0) -> Guesses:
    """Made-up guesses, the largest ids of the vocabulary among them."""
    rng, rows = np.random.default_rng(seed), sum(map(sum, lengths))
    shape = (rows, layers, 8)
    ids = rng.integers(0, vocabulary, shape)
    ids[0, 0, :2] = vocabulary - 1, 0
    probs = -np.sort(-(rng.random(shape) ** 9), axis=2)
    return Guesses(**keys(lengths), vocabulary=vocabulary, ids=ids, probs=probs)


def assert_equal(found: Measurement | Guesses, original: Measurement | Guesses) -> None:
    for field in fields(original):
        a, b = getattr(found, field.name), getattr(original, field.name)
        same = np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b
        assert same, field.name


# ---------------------------------------------------------------- there and back


@QUICK
@given(SHAPES, st.integers(1, 12), st.booleans(), st.integers(0, 9))
def test_tokens_there_and_back(lengths: Lengths, layers: int, coupled: bool, seed: int) -> None:
    original = measurement(lengths, layers, seed, coupled)
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(original, Path(folder) / "tokens.parquet")
        found = read_tokens(Path(folder) / "tokens.parquet")
    assert_equal(found, original)
    assert found.rank.dtype == np.int32, "in memory as in the file: twice that is twice the memory"
    assert found.top_prob.dtype == np.float32


@QUICK
@given(SHAPES, st.integers(1, 12), st.sampled_from([9, 257, 65534, 65535, 65536, 262144]))
def test_guesses_there_and_back(lengths: Lengths, layers: int, vocabulary: int) -> None:
    original = guesses(lengths, layers, vocabulary)
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
    original = guesses([[3]], 2, vocabulary)
    original.ids[:, :, 5:], original.probs[:, :, 5:] = -1, 0
    write_guesses(original, tmp_path / "guesses.parquet")
    assert np.array_equal(read_guesses(tmp_path / "guesses.parquet").ids, original.ids)


def test_probabilities_at_the_ends_of_what_two_bytes_hold(tmp_path: Path) -> None:
    original = guesses([[1]], 1, 9)
    original.probs[0, 0] = [1, 1 - 2**-12, 0.5, 1e-3, 6.2e-5, 1e-7, 1e-9, 0]
    write_guesses(original, tmp_path / "guesses.parquet")
    found = read_guesses(tmp_path / "guesses.parquet").probs[0, 0]
    assert found[:2].tolist() == [1, 1], "never above 1"
    assert found[2:5] == pytest.approx(original.probs[0, 0, 2:5], rel=5e-4)
    assert found[5] == pytest.approx(1e-7, abs=3e-8)
    assert found[6:].tolist() == [0, 0]


@pytest.mark.parametrize("layers", [9, 10, 99, 100])
def test_columns_keep_the_order_of_the_layers(tmp_path: Path, layers: int) -> None:
    """rank_100 comes before rank_11 where names are sorted: each layer must keep its own."""
    original = replace(
        measurement([[2]], layers), rank=np.tile(np.arange(1, layers + 1, dtype=np.int32), (2, 1))
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
        measurement([[1]], 1),
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
    original = replace(measurement([[3], [1], [4]]), turn=np.zeros(8, np.int16), near_ties=())
    save(original, tmp_path / "m")
    path = tmp_path / "m" / "tokens.parquet"
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[files.MEASUREMENT.encode()])
    for name in ("prompt_numbers", "coupled", "near_ties"):
        del about[name]
    older = table.drop_columns(["turn"]).replace_schema_metadata(
        {files.MEASUREMENT: json.dumps(about)}
    )
    pq.write_table(older, path)
    summary = tmp_path / "m" / "summary.json"
    document = json.loads(summary.read_text("utf-8"))
    for name in ("by_category", "matches", "near_ties"):
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
            write_tokens(measurement([[2, 1], [3]]), path)
        else:
            write_guesses(guesses([[2, 1], [3]], 2, 300), path)
        return path.read_bytes()


_BYTES = {kind: _written(kind) for kind in (True, False)}


# ---------------------------------------------------------------- the summary


def part_of(whole: Measurement, first: int, end: int) -> Measurement:
    """The prompts from number `first` to `end` alone."""
    mine = (whole.prompt_index >= first) & (whole.prompt_index < end)
    rows = {name: getattr(whole, name)[mine] for name in ("turn", "position", "token_id", "rank")}
    coupled = whole.coupled_rank
    return replace(
        whole,
        **rows,
        top_prob=whole.top_prob[mine],
        prompt_index=whole.prompt_index[mine] - first,
        coupled_rank=None if coupled is None else coupled[mine],
        prompt_ids=whole.prompt_ids[first:end],
        categories=whole.categories[first:end],
        ties=(),
        near_ties=(),
    )


def same(a: Any, b: Any) -> bool:
    """Equal as JSON, where undefined numbers are None."""
    return bool(files.json_ready(a) == files.json_ready(b))


@settings(max_examples=15, deadline=None)
@given(SHAPES, st.booleans(), st.integers(0, 9), st.data())
def test_batches_add_up_to_the_whole(
    lengths: Lengths, coupled: bool, seed: int, data: st.DataObject
) -> None:
    whole = measurement(lengths, 3, seed, coupled)
    cuts = data.draw(st.sets(st.integers(1, max(1, len(lengths) - 1))))
    ends = sorted({0, len(lengths), *(cut for cut in cuts if cut < len(lengths))})
    tally = Tally()
    for first, end in pairwise(ends):
        tally.add(part_of(whole, first, end))
    found = tally.summary(whole.provenance, whole.complete, whole.ties, whole.near_ties)
    expected = summarize(whole)
    assert found.keys() == expected.keys()
    for name in expected:
        assert same(found[name], expected[name]), name


def followed(whole: Measurement, layer: int, k: int) -> tuple[float | None, float | None, int, int]:
    """Autocorrelation, mean run, pairs and runs, the slow way: text by text, token by token."""
    texts: dict[tuple[int, int], list[bool]] = {}
    for prompt, turn, rank in zip(
        whole.prompt_index, whole.turn, whole.rank[:, layer], strict=True
    ):
        texts.setdefault((int(prompt), int(turn)), []).append(bool(rank <= k))
    pairs = [pair for text in texts.values() for pair in pairwise(text)]
    runs, length = 0, 0
    for text in texts.values():
        before = False
        for match in text:
            runs += match and not before
            length += match
            before = match
    correlation = None
    if pairs:
        p = sum(a + b for a, b in pairs) / (2 * len(pairs))
        covariance = sum((a - p) * (b - p) for a, b in pairs) / len(pairs)
        correlation = covariance / (p * (1 - p)) if 0 < p < 1 else None
    return correlation, length / runs if runs else None, len(pairs), runs


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(0, 99), st.sampled_from([2, 5, 13]))
def test_matches_are_followed_as_by_hand(lengths: Lengths, seed: int, top: int) -> None:
    whole = measurement(lengths, 2, seed, top=top)
    found = files.json_ready(summarize(whole)["matches"])
    assert found["k"] == list(FOLLOWED_K)
    for layer in range(2):
        for column, k in enumerate(FOLLOWED_K):
            correlation, run, pairs, runs = followed(whole, layer, k)
            assert found["n_pairs"] == pairs
            assert found["n_runs"][layer][column] == runs
            for name, value in (("autocorrelation", correlation), ("run_length", run)):
                got = found[name][layer][column]
                assert (got is None) == (value is None), name
                assert value is None or got == pytest.approx(value, abs=1e-4), name


def test_texts_are_never_joined() -> None:
    """Matches from end to start: of two turns of one prompt, and of two prompts."""
    whole = replace(measurement([[3, 2], [4]], 1), rank=np.ones((9, 1), np.int32))
    found = summarize(whole)["matches"]
    assert found["n_pairs"] == 2 + 1 + 3
    assert files.json_ready(found["n_runs"]) == [[3] * 4]
    assert files.json_ready(found["run_length"]) == [[3.0] * 4]
    alternating = replace(whole, rank=np.array([[1], [99], [1], [1], [99], [99], [1], [99], [1]]))
    found = files.json_ready(summarize(alternating)["matches"])
    assert found["autocorrelation"][0][0] == pytest.approx(-1), "all six pairs differ"
    assert found["n_runs"][0][0] == 5


def test_texts_of_one_token_have_no_pairs() -> None:
    whole = measurement([[1], [1, 1], [1]], 2)
    found = files.json_ready(summarize(whole)["matches"])
    assert found["n_pairs"] == 0
    assert found["autocorrelation"] == [[None] * 4] * 2
    assert found["run_length"][0][-1] in (1.0, None)


def chains(stay: Sequence[float], prompts: int, tokens: int, seed: int) -> Measurement:
    """Matches that follow one another as a Markov chain; a layer for each chance to stay."""
    rng = np.random.default_rng(seed)
    states = np.empty((prompts, tokens, len(stay)), bool)
    states[:, 0] = rng.random((prompts, len(stay))) < 0.5
    for position in range(1, tokens):
        stays = rng.random((prompts, len(stay))) < np.array(stay)
        states[:, position] = states[:, position - 1] == stays
    rank = np.where(states, 1, 99).reshape(-1, len(stay))
    return replace(measurement([[tokens]] * prompts, len(stay)), rank=rank, ties=(), near_ties=())


def test_intervals_of_the_autocorrelation_hold_the_truth_and_no_more() -> None:
    """A chain that stays with chance s has 2 s - 1; of independent matches the error is 1/√n."""
    prompts, tokens = 60, 50
    whole = chains([0.5, 0.75, 0.9], prompts, tokens, seed=3)
    found = summarize(whole)["matches"]
    names = ("autocorrelation_ci_low", "autocorrelation", "autocorrelation_ci_high")
    low, value, high = (np.array(found[name])[:, 0] for name in names)
    truth = np.array([0.0, 0.5, 0.8])
    assert (low < truth).all()
    assert (truth < high).all()
    assert (low < value).all()
    assert (value < high).all()
    wanted = 2 * 1.96 / np.sqrt(prompts * (tokens - 1))
    assert high[0] - low[0] == pytest.approx(wanted, rel=0.25)
    few = summarize(part_of(whole, 0, 15))["matches"]
    width = np.array(few[names[2]]) - np.array(few[names[0]])
    assert width[0, 0] == pytest.approx(2 * wanted, rel=0.5), "a quarter of the prompts: twice it"


def test_prompts_are_resampled_and_not_tokens() -> None:
    """Prompts that are all alike leave no doubt, however their tokens scatter."""
    one = chains([0.6], 1, 40, seed=0).rank
    whole = replace(chains([0.6], 9, 40, seed=0), rank=np.tile(one, (9, 1)))
    summary = files.json_ready(summarize(whole))
    found = summary["matches"]
    for name in ("autocorrelation", "run_length"):
        assert found[f"{name}_ci_low"][0] == found[name][0] == found[f"{name}_ci_high"][0]
    assert summary["ci_low"] == summary["ci_high"]


def test_what_is_undefined_is_null_and_not_a_warning(tmp_path: Path) -> None:
    """Where all match there is no correlation; the file must still follow its schema."""
    whole = chains([0.6, 0.6], 4, 5, seed=0)
    whole.rank[:, 1] = 1
    save(whole, tmp_path / "m")
    document = files.read_json(tmp_path / "m" / "summary.json", files.MEASUREMENT)
    found = document["matches"]
    for name in ("autocorrelation", "autocorrelation_ci_low", "autocorrelation_ci_high"):
        assert found[name][1] == [None] * 4
    assert found["run_length"][1] == [5.0] * 4
    assert found["run_length_ci_low"][1] == [5.0] * 4
