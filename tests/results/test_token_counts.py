"""What a calibration keeps of the recorded tokens, also counted token by token."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppdmodel as ppd
from ppdmodel import compare, fit_table, load, save
from ppdmodel.errors import InvalidInputError
from ppdmodel.pipeline.prediction_error import excluding_prompts
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.measurement import Measurement
from ppdmodel.results.token_counts import (
    ARRAYS,
    DRAFT_GATES,
    DRAFTED,
    GATED_K,
    GATES,
    MAX_PAIRED_EXITS,
    PAIR_K,
    TokenCounts,
    gated_rounds_of,
    paired,
    pairs_of,
    rounds_of,
    second_half,
)
from tests.conftest import make_measurement
from tests.support.tables import repeating_guesses


def fit(*args: Any, **options: Any) -> Calibration:
    """Quick where only the counts matter."""
    return ppd.fit(*args, **options, family="rank tail", resamples=40)


def renamed(measurement: Measurement, prefix: str) -> Measurement:
    return replace(measurement, prompt_ids=tuple(prefix + name for name in measurement.prompt_ids))


def same(a: TokenCounts, b: TokenCounts) -> bool:
    names = ("tokens", *ARRAYS)
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_counts_are_those_of_their_shapes(measurement: Measurement) -> None:
    found = TokenCounts.of(measurement, repeating_guesses(measurement))
    for name, shape in found.shapes().items():
        assert getattr(found, name).shape == shape
    assert found.pair_exits == (3, 4, 5)
    assert pairs_of(3).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert TokenCounts.of(make_measurement(layers=2)).both.shape[1] == 0


def test_several_measurements_are_one(measurement: Measurement) -> None:
    """As counts, and as what `compare` makes of them."""
    halves = (renamed(measurement, "a"), renamed(make_measurement(seed=4), "b"))
    guesses = [repeating_guesses(half) for half in halves]
    together = fit(halves, guesses=guesses).recorded
    apart = [TokenCounts.of(*pair) for pair in zip(halves, guesses, strict=True)]
    assert together is not None
    assert same(together, TokenCounts.joined(apart))
    assert len(together.tokens) == 24
    assert same(together.only(range(12)), apart[0])
    assert same(together.only(range(12, 24)), apart[1])
    some = fit(halves, guesses=[guesses[0], None]).recorded
    assert some is not None
    assert some.shared is None
    with pytest.raises(InvalidInputError, match="guesses must be given for each measurement"):
        fit(halves, guesses=guesses[0])


def test_other_prompts_have_other_counts(measurement: Measurement) -> None:
    calibration = fit(measurement)
    others = excluding_prompts(calibration, measurement.prompt_ids[:5]).recorded
    assert calibration.recorded is not None
    assert others is not None
    assert same(others, calibration.recorded.only(range(5, 12)))


def test_deep_models_pair_some_of_their_exits() -> None:
    assert paired(30) == tuple(range(15, 30))
    for layers in (80, 126, 1000):
        exits = paired(layers)
        assert len(exits) == MAX_PAIRED_EXITS
        assert (exits[0], exits[-1]) == (layers // 2, layers - 1)
        assert max(np.diff(exits)) - min(np.diff(exits)) <= 1


def test_the_counts_travel(measurement: Measurement, tmp_path: Path) -> None:
    for guesses in (None, repeating_guesses(measurement)):
        calibration = fit(measurement, guesses=guesses)
        save(calibration, tmp_path / "cal.json")
        again = load(tmp_path / "cal.json")
        assert isinstance(again, Calibration)
        assert again.recorded is not None
        assert calibration.recorded is not None
        assert same(again.recorded, calibration.recorded)
        document = json.loads(calibration.to_json())
        assert document["recorded"]["rounds"]["dtype"] == "<u1"


def test_own_tables_have_none(tmp_path: Path) -> None:
    rows = [f"{e},1,{3 + e},20,p{n}" for e in (2, 3) for n in range(4)]
    path = tmp_path / "counts.csv"
    path.write_text("exit_layer,k,hits,n,prompt_id\n" + "\n".join(rows) + "\n", encoding="utf-8")
    calibration = fit_table(path, 6, resamples=40)
    assert calibration.recorded is None
    save(calibration, tmp_path / "cal.json")
    again = load(tmp_path / "cal.json")
    assert isinstance(again, Calibration)
    assert again.recorded is None
    assert "counts of the recorded tokens" in compare(again).left_out[0]


# ---------------------------------------------------------------- counted token by token


@pytest.fixture(scope="module")
def mixed() -> Measurement:
    """Two turns in one prompt, and probabilities on both sides of every gate."""
    made = make_measurement(prompts=5, tokens=13, layers=7, seed=2)
    turn = np.where((made.prompt_index == 3) & (made.position >= 8), 1, 0)
    position = np.where(turn == 1, made.position - 8, made.position)
    top_prob = np.random.default_rng(5).choice([0.05, *GATES, 0.95], made.rank.shape)
    return replace(made, turn=turn.astype(np.int16), position=position, top_prob=top_prob)


def test_rounds_by_hand(mixed: Measurement) -> None:
    """A round accepts right drafts up to the first wrong one, and adds the model's own token."""
    slow = np.zeros((5, 7, len(DRAFTED)), dtype=int)
    ends = [*np.flatnonzero(mixed.position == 0).tolist(), mixed.n_tokens]
    for start, end in pairwise(ends):
        for layer in range(7):
            for column, drafted in enumerate(DRAFTED):
                place = start
                while place < end:
                    right = 0
                    while (
                        right < drafted
                        and place + right < end
                        and mixed.rank[place + right, layer] == 1
                    ):
                        right += 1
                    place += right + 1
                    slow[mixed.prompt_index[start], layer, column] += 1
    assert np.array_equal(rounds_of(mixed), slow)
    assert np.array_equal(TokenCounts.of(mixed).rounds, slow[:, :-1])


def test_gated_rounds_by_hand(mixed: Measurement) -> None:
    """A round drafts while the gate is open, and beyond the end of a text as if it were."""
    rounds = np.zeros((5, 7, len(DRAFT_GATES), len(GATED_K)), dtype=int)
    drafts = np.zeros_like(rounds)
    for start, end in pairwise(mixed.starts().tolist()):
        prompt = mixed.prompt_index[start]
        for layer, gate, most in product(range(7), DRAFT_GATES, GATED_K):
            cell = (prompt, layer, DRAFT_GATES.index(gate), GATED_K.index(most))
            place = start
            while place < end:
                drafted, right = 0, 0
                while drafted < most:
                    at = place + drafted
                    if at < end and mixed.top_prob[at, layer] < gate:
                        break
                    if right == drafted and at < end and mixed.rank[at, layer] == 1:
                        right += 1
                    drafted += 1
                rounds[cell] += 1
                drafts[cell] += drafted
                place += right + 1
    found = gated_rounds_of(mixed)
    assert np.array_equal(found[0], rounds)
    assert np.array_equal(found[1], drafts)
    counts = TokenCounts.of(mixed)
    assert counts.gated_rounds is not None
    assert counts.gated_drafts is not None
    assert np.array_equal(counts.gated_rounds, rounds[:, :-1])
    assert np.array_equal(counts.gated_drafts, drafts[:, :-1])


def test_lookups_are_of_prompts_too_where_all_parts_have_them(mixed: Measurement) -> None:
    texts = len(mixed.starts()) - 1
    known = replace(mixed, context_ids=(mixed.token_id[:9],) * texts)
    parts = [TokenCounts.of(known), TokenCounts.of(mixed)]
    assert [part.with_contexts for part in parts] == [True, False]
    assert parts[0].lookups is not None
    assert parts[1].lookups is not None
    assert parts[0].lookups.sum() < parts[1].lookups.sum(), "more drafts, fewer rounds"
    assert TokenCounts.joined([parts[0]] * 2).with_contexts
    assert not TokenCounts.joined(parts).with_contexts


def class_of(rank: int, ks: tuple[int, ...]) -> int | None:
    """The first class is up to the first k, each other from the k before it; None beyond."""
    return next((n for n, k in enumerate(ks) if rank <= k), None)


def test_gates_by_hand(mixed: Measurement) -> None:
    counts = TokenCounts.of(mixed)
    assert counts.gated_exits.tolist() == [4, 5, 6]
    passed = np.zeros((5, 3, len(GATES)), dtype=int)
    right = np.zeros((5, 3, len(GATES), len(GATED_K)), dtype=int)
    for row, prompt in enumerate(mixed.prompt_index):
        for place, e in enumerate((4, 5, 6)):
            found = class_of(mixed.rank[row, e - 1], GATED_K)
            for number, gate in enumerate(GATES):
                if mixed.top_prob[row, e - 1] >= gate:
                    passed[prompt, place, number] += 1
                    if found is not None:
                        right[prompt, place, number, found] += 1
    assert np.array_equal(counts.passed, passed)
    assert np.array_equal(counts.right, right)


def test_pairs_of_exits_by_hand(mixed: Measurement) -> None:
    guesses = repeating_guesses(mixed)
    counts = TokenCounts.of(mixed, guesses)
    n = len(PAIR_K)
    first, both = np.zeros((5, 3, n), int), np.zeros((5, 3, n, n), int)
    shared = np.zeros_like(both)
    for row, prompt in enumerate(mixed.prompt_index):
        classes = [class_of(mixed.rank[row, e - 1], PAIR_K) for e in (4, 5, 6)]
        for place, one in enumerate(classes):
            if one is not None:
                first[prompt, place, one] += 1
        for pair, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
            a, b = classes[i], classes[j]
            if a is not None and b is not None:
                both[prompt, pair, a, b] += 1
            early, late = (guesses.ids[row, e + 3].tolist() for e in (i, j))
            for rank, token in enumerate(early, start=1):
                if token in late:
                    c, d = class_of(rank, PAIR_K), class_of(late.index(token) + 1, PAIR_K)
                    if c is not None and d is not None:
                        shared[prompt, pair, c, d] += 1
    assert np.array_equal(counts.first, first)
    assert np.array_equal(counts.both, both)
    assert counts.shared is not None
    assert np.array_equal(counts.shared, shared)


@pytest.mark.parametrize(("layers", "first"), [(2, 1), (3, 2), (4, 2), (7, 4), (30, 15)])
def test_the_second_half_begins_at_the_middle(layers: int, first: int) -> None:
    assert second_half(layers) == first


def test_guesses_of_other_tokens_are_refused(mixed: Measurement) -> None:
    guesses = repeating_guesses(mixed)
    with pytest.raises(InvalidInputError, match=r"measured tokens; got \(64, 7\) tokens and"):
        TokenCounts.of(mixed, replace(guesses, ids=guesses.ids[1:]))
    ids = guesses.ids.copy()
    rows = np.flatnonzero(mixed.rank[:, 5] <= 8)
    known = int((mixed.rank <= 8).sum())
    ids[rows[0], 5] = 9999  # one of some hundred: equal logits may stand in either order
    assert 1 / known < 0.01
    TokenCounts.of(mixed, replace(guesses, ids=ids))
    ids[rows] = 9999
    with pytest.raises(InvalidInputError, match="that are not where the tokens ranked"):
        TokenCounts.of(mixed, replace(guesses, ids=ids))
