"""A measurement's counts, by a slow way round; and its titles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.results.measurement import Measurement, titled
from tests.support.tables import made_measurement


@pytest.fixture(scope="module")
def made() -> Measurement:
    return made_measurement([[3, 2], [4], [1, 1, 1]], layers=3, coupled=True)


def test_sizes(made: Measurement) -> None:
    assert (made.layers, made.n_tokens) == (3, 12)
    assert made.tokens_by_prompt().tolist() == [5, 4, 3]
    assert made.starts().tolist() == [0, 3, 5, 9, 10, 11, 12]


def test_hits_are_counted_token_by_token(made: Measurement) -> None:
    hits = made.hits_by_prompt(6)
    assert hits.shape == (3, 3, 6)
    for prompt in range(3):
        for layer in range(3):
            for k in range(1, 7):
                mine = made.rank[made.prompt_index == prompt, layer]
                assert hits[prompt, layer, k - 1] == sum(rank <= k for rank in mine.tolist())
                at = made.hits_by_prompt_at(layer + 1, k)
                assert at.tolist() == hits[:, layer, k - 1].tolist()


def test_a_prompt_without_hits_or_tokens_has_zeros() -> None:
    made = made_measurement([[2], [2]], layers=1)
    last = replace(made, rank=np.array([[1], [1], [9], [9]]))
    assert last.hits_by_prompt_at(1, 1).tolist() == [2, 0]
    more = replace(last, prompt_ids=("a", "b", "c"))
    assert more.tokens_by_prompt().tolist() == [2, 2, 0]
    assert more.hits_by_prompt(2)[:, 0, 1].tolist() == [2, 0, 0]


def test_coupled_ranks_take_the_place_of_the_plain_ones(made: Measurement) -> None:
    coupled = made.coupled()
    assert made.coupled_rank is not None
    assert np.array_equal(coupled.rank, made.coupled_rank)
    assert coupled.coupled_rank is None
    assert coupled.provenance["ranks"] == "coupled"
    assert "ranks" not in made.provenance
    with pytest.raises(InvalidInputError, match="coupled guesses need sampled text"):
        coupled.coupled()


def test_how_far_ranks_were_recorded(made: Measurement) -> None:
    assert made.recorded_k is None
    for stored, most in ((31, 31), (None, None), ("all", None)):
        about = {**made.provenance, "k_max": stored}
        assert replace(made, provenance=about).recorded_k == most


@pytest.mark.parametrize(
    ("about", "title"),
    [
        ({}, "m"),
        ({"exit_kind": "logit", "decoding": "greedy"}, "m"),
        ({"exit_kind": "trained"}, "m, trained exits"),
        ({"decoding": "sampled", "temperature": 0.70}, "m, sampled at temperature 0.7"),
        ({"decoding": "sampled"}, "m, sampled"),
        ({"decoding": "sampled", "temperature": "x"}, "m, sampled"),
        ({"ranks": "coupled"}, "m, coupled guesses"),
    ],
)
def test_titles_say_what_is_out_of_the_ordinary(about: dict[str, object], title: str) -> None:
    assert titled("m", about) == title
