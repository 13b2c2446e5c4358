"""What a summary counts: hits, autocorrelations and run lengths, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdmodel import save
from ppdmodel.results import files
from ppdmodel.results.intervals import RATE_METHOD
from ppdmodel.results.measurement import Measurement
from ppdmodel.results.summary import DETAILED_K, Tally, summarize
from tests.conftest import make_measurement
from tests.support.tables import SHAPES, Lengths, made_measurement


def test_the_summary_counts_what_the_ranks_say(measurement: Measurement, tmp_path: Path) -> None:
    save(measurement, tmp_path)
    summary = files.read_json(tmp_path / "summary.json", files.MEASUREMENT)
    for layer in (1, 4, 6):
        for k in (1, 3, 100):
            expected = int((measurement.rank[:, layer - 1] <= k).sum())
            assert summary["hits"][layer - 1][k - 1] == expected
            rate = expected / measurement.n_tokens
            assert summary["ci_low"][layer - 1][k - 1] <= rate + 1e-5
            assert rate - 1e-5 <= summary["ci_high"][layer - 1][k - 1]
    assert summary["n_tokens"] == 240
    assert [p["n_tokens"] for p in summary["prompts"]] == [20] * 12


def test_one_prompt_has_a_summary_without_intervals(tmp_path: Path) -> None:
    save(make_measurement(prompts=1), tmp_path)
    assert files.read_json(tmp_path / "summary.json")["ci_low"] is None


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
    whole = made_measurement(lengths, 3, seed, coupled)
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
    whole = made_measurement(lengths, 2, seed, top=top)
    found = files.json_ready(summarize(whole)["matches"])
    assert found["k"] == list(DETAILED_K)
    for layer in range(2):
        for column, k in enumerate(DETAILED_K):
            correlation, run, pairs, runs = followed(whole, layer, k)
            assert found["n_pairs"] == pairs
            assert found["n_runs"][layer][column] == runs
            for name, value in (("autocorrelation", correlation), ("run_length", run)):
                got = found[name][layer][column]
                assert (got is None) == (value is None), name
                assert value is None or got == pytest.approx(value, abs=1e-4), name


def test_texts_are_never_joined() -> None:
    """Matches from end to start: of two turns of one prompt, and of two prompts."""
    whole = replace(made_measurement([[3, 2], [4]], 1), rank=np.ones((9, 1), np.int32))
    found = summarize(whole)["matches"]
    assert found["n_pairs"] == 2 + 1 + 3
    assert files.json_ready(found["n_runs"]) == [[3] * 4]
    assert files.json_ready(found["run_length"]) == [[3.0] * 4]
    alternating = replace(whole, rank=np.array([[1], [99], [1], [1], [99], [99], [1], [99], [1]]))
    found = files.json_ready(summarize(alternating)["matches"])
    assert found["autocorrelation"][0][0] == pytest.approx(-1), "all six pairs differ"
    assert found["n_runs"][0][0] == 5


def test_texts_of_one_token_have_no_pairs() -> None:
    whole = made_measurement([[1], [1, 1], [1]], 2)
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
    return replace(
        made_measurement([[tokens]] * prompts, len(stay)), rank=rank, ties=(), near_ties=()
    )


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
    low, high = (np.array(summary[end]) for end in ("ci_low", "ci_high"))
    rates = np.array(summary["hits"]) / summary["n_tokens"]
    assert (low < rates).all(), "equal prompts show no spread; what their tokens are worth is left"
    assert (rates < high).sum() == (rates < 1).sum()
    assert summary["interval"]["method"] == RATE_METHOD


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
