"""Prompt lookup on texts, against the search as it is described and as Transformers does it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from ppdmodel.results.measurement import Measurement
from ppdmodel.results.prompt_lookup import (
    LOOKED_UP,
    NGRAMS,
    NgramIndex,
    joined_guesses,
    joined_hits,
    lookup_rounds,
    prompt_lookup,
)
from tests.support.tables import QUICK, made_measurement, repeating_guesses

#: few tokens, so that they come again
TEXT = st.lists(st.integers(0, 3), min_size=1, max_size=14)
LIMITS = st.integers(1, 4), st.integers(1, 6)


@pytest.mark.parametrize(
    ("ids", "n", "m", "draft"),
    [
        ([], 2, 3, []),
        ([7], 2, 3, []),
        ([7, 8], 2, 3, []),
        ([7, 7], 1, 3, [7]),
        ([5, 6, 7, 8, 5, 6], 2, 3, [7, 8, 5]),
        ([5, 6, 1, 9, 6, 2, 9, 9, 5, 6], 2, 2, [1, 9]),  # the longer n-gram
        ([5, 6, 1, 9, 6, 2, 9, 9, 5, 6], 1, 2, [2, 9]),  # the later place
        ([6, 1, 2, 3, 6, 4, 6], 1, 2, [4, 6]),
        ([6, 1, 2, 3, 6, 4, 6], 1, 3, [1, 2, 3]),  # an earlier place that enough tokens follow
        ([6, 1, 6, 4, 6], 1, 9, [1, 6, 4, 6]),  # none has enough: the most
        ([3, 3, 3, 3], 2, 2, [3, 3]),  # places may overlap the end
    ],
)
def test_the_draft_by_hand(ids: list[int], n: int, m: int, draft: list[int]) -> None:
    assert prompt_lookup(ids, n, m) == draft
    assert prompt_lookup(tuple(ids), n, m) == draft


@QUICK
@given(TEXT, *LIMITS)
def test_the_draft_as_it_is_described(ids: list[int], n: int, m: int) -> None:
    end = len(ids)
    for length in range(min(n, end - 1), 0, -1):
        places = [p for p in range(length, end) if ids[p - length : p] == ids[end - length :]]
        if places:
            full = [p for p in places if p + m <= end]
            place = max(full) if full else min(places)
            assert prompt_lookup(ids, n, m) == ids[place : place + m]
            return
    assert prompt_lookup(ids, n, m) == []


@QUICK
@given(TEXT, *LIMITS)
def test_a_draft_of_transformers_is_one_of_the_same_n_gram(ids: list[int], n: int, m: int) -> None:
    """Transformers takes the first place: as many tokens, and the same where it is alone."""
    theirs = PromptLookupCandidateGenerator(
        num_output_tokens=m, max_matching_ngram_size=n, max_length=len(ids) + m + 1
    )
    found, _ = theirs.get_candidates(torch.tensor([ids]))
    draft, ours = found[0, len(ids) :].tolist(), prompt_lookup(ids, n, m)
    assert len(draft) == len(ours)
    for length in range(min(n, len(ids) - 1), 0, -1):
        end = ids[len(ids) - length :]
        places = [p for p in range(length, len(ids)) if ids[p - length : p] == end]
        if places:
            assert draft == ours or len(places) > 1
            return


@QUICK
@given(st.lists(TEXT, min_size=1, max_size=4), *LIMITS)
def test_the_index_finds_the_same_at_every_place(texts: list[list[int]], n: int, m: int) -> None:
    index = NgramIndex([np.array(text) for text in texts], n)
    for shorter in range(1, n + 1):
        source = index.sources(m)[shorter - 1]
        drafted, accepted = index.drafts(source, m)
        place = 0
        for text in texts:
            for number in range(len(text)):
                draft, rest = prompt_lookup(text[:number], shorter, m), text[number:]
                right = [a == b for a, b in zip(draft, rest, strict=False)]
                assert drafted[place] == len(draft)
                assert accepted[place] == (right.index(False) if False in right else len(right))
                place += 1


def repeating(contexts: bool) -> Measurement:
    """Texts of few tokens, two turns in one prompt."""
    made = made_measurement([[9], [1, 12], [4]], layers=2)
    rng = np.random.default_rng(1)
    read = tuple(rng.integers(0, 3, n) for n in (5, 1, 7, 2)) if contexts else None
    return replace(made, token_id=rng.integers(0, 3, made.n_tokens), context_ids=read)


@pytest.mark.parametrize("contexts", [False, True])
def test_rounds_by_hand(contexts: bool) -> None:
    measurement = repeating(contexts)
    slow = np.zeros((3, len(NGRAMS), len(LOOKED_UP), max(LOOKED_UP) + 1), dtype=int)
    for text, (start, end) in enumerate(pairwise(measurement.starts().tolist())):
        prompt = measurement.prompt_index[start]
        read = [] if measurement.context_ids is None else measurement.context_ids[text].tolist()
        made = measurement.token_id[start:end].tolist()
        for row, n in enumerate(NGRAMS):
            for column, m in enumerate(LOOKED_UP):
                done = 0
                while done < len(made):
                    draft, right = prompt_lookup(read + made[:done], n, m), 0
                    while right < min(len(draft), len(made) - done):
                        if draft[right] != made[done + right]:
                            break
                        right += 1
                    slow[prompt, row, column, len(draft)] += 1
                    done += right + 1
    assert np.array_equal(lookup_rounds(measurement), slow)
    if not contexts:
        assert (slow[:, :, :, 0].sum(axis=0) >= 4).all(), "each text's first token has no draft"


@pytest.mark.parametrize("contexts", [False, True])
def test_joined_guesses_on_recorded_texts(contexts: bool) -> None:
    measurement = repeating(contexts)
    guesses = repeating_guesses(replace(measurement, token_id=measurement.token_id))
    # among the guesses, tokens of the text, so that a draft is often one of them
    ids = np.where(guesses.ids >= 1000, guesses.ids % 1000 % 6 + 3, guesses.ids)
    ids[:, :, ::3] = np.random.default_rng(3).integers(0, 3, ids[:, :, ::3].shape)
    true = measurement.token_id[:, None, None] == ids
    rank = np.where(true.any(axis=2), true.argmax(axis=2) + 1, 99)
    measurement, guesses = replace(measurement, rank=rank), replace(guesses, ids=ids)
    slow = np.zeros((3, 2, 8), dtype=int)
    for text, (start, end) in enumerate(pairwise(measurement.starts().tolist())):
        read = [] if measurement.context_ids is None else measurement.context_ids[text].tolist()
        for row in range(start, end):
            draft = prompt_lookup([*read, *measurement.token_id[start:row].tolist()], 2, 1)
            for layer in range(2):
                for k in range(1, 9):
                    joined = joined_guesses(ids[row, layer, :k].tolist(), draft)
                    hit = measurement.token_id[row] in joined
                    slow[measurement.prompt_index[row], layer, k - 1] += hit
    assert np.array_equal(joined_hits(measurement, guesses, 2), slow)


def test_a_text_that_repeats_itself_takes_few_rounds() -> None:
    made = made_measurement([[101]], layers=2)
    rounds = lookup_rounds(replace(made, token_id=np.full(101, 7)))[0, 0]
    for column, m in enumerate(LOOKED_UP):
        # without a draft, then drafts that grow by what the round before has made
        assert rounds[column].sum() <= 4 + m + 100 / (m + 1)
        assert rounds[column, m + 1 :].sum() == 0
