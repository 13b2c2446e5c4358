"""Prompt lookup beside an exit's guesses, and the committed results."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from experiments import prompt_lookup
from ppdmodel import Measurement
from ppdmodel.results.prompt_lookup import LOOKED_UP, NGRAMS, joined_hits, lookup_rounds
from tests.support.tables import repeating_guesses


@pytest.fixture
def repeating(measurement: Measurement) -> Measurement:
    """A made-up measurement of few tokens, which come again, with prompts."""
    tokens = measurement.token_id % 4
    return replace(measurement, token_id=tokens, context_ids=(tokens[:7],) * 12)


def test_rounds_with_the_place_that_is_taken_and_with_the_first(repeating: Measurement) -> None:
    rows = prompt_lookup.rounds(repeating)
    assert len(rows) == 2 * len(NGRAMS) * len(LOOKED_UP)
    row = next(
        r for r in rows if (r["searched"], r["n"], r["drafted"]) == ("prompt and text", 2, 3)
    )
    made = lookup_rounds(repeating)[:, 1, 2].sum(axis=0)
    assert row["tokens_per_round"][0] == pytest.approx(240 / made.sum(), abs=5e-5)
    drafted = made @ np.arange(len(made))
    assert row["compute"][0] == pytest.approx((made.sum() + drafted) / 240, abs=5e-5)
    rounds = 0
    for start, end in pairwise(repeating.starts().tolist()):
        text, place = repeating.token_id[start:end].tolist(), 0
        while place < len(text):
            draft = prompt_lookup.first_place([*repeating.token_id[:7], *text[:place]], 2, 3)
            same = [a == b for a, b in zip(draft, text[place:], strict=False)]
            place += 1 + (same.index(False) if False in same else len(same))
            rounds += 1
    assert row["tokens_per_round_first_place"] == pytest.approx(240 / rounds, abs=5e-5)


def test_the_first_place_is_that_of_transformers() -> None:
    assert prompt_lookup.first_place([6, 1, 2, 6, 3, 4, 6], 2, 2) == [1, 2]
    assert prompt_lookup.first_place([5, 6, 1, 6, 2, 5, 6], 2, 2) == [1, 6]
    assert prompt_lookup.first_place([1, 2, 3], 2, 2) == []


def test_gains_are_paired(repeating: Measurement) -> None:
    guesses = repeating_guesses(repeating)
    rates, best = prompt_lookup.joined(repeating, guesses)
    for row in rates:
        at = (slice(None), row["exit_layer"] - 1, row["k"] - 1)
        with_draft = joined_hits(repeating, guesses, row["n"])[at].sum() / 240
        alone = repeating.hits_by_prompt(8)[at].sum() / 240
        found: dict[str, Any] = {"exit": alone, "joined": with_draft, "gain": with_draft - alone}
        for name, value in found.items():
            assert row[name][0] == pytest.approx(value, abs=5e-5)
            assert row[name][1] <= row[name][0] <= row[name][2]
    assert [row["guesses"] for row in best][:2] == ["exit", "exit and n-grams of up to 1"]


def test_what_the_pages_say_is_in_the_committed_results() -> None:
    text = prompt_lookup.OUT.read_text("utf-8")
    document = json.loads(text)
    assert prompt_lookup.written(document) == text
    page = " ".join((prompt_lookup.DATA.parent / "docs" / "decoding.md").read_text("utf-8").split())
    rates = {
        (r["exit_layer"], r["k"]): r
        for r in document["match_rates"]
        if (r["exits"], r["n"]) == ("trained", 3)
    }
    for layer in (15, 20):
        row = rates[layer, 3]
        value, low, high = row["gain"]
        said = "at exit {} from {:.3f} to {:.3f}, by {:.3f} [{:.3f}, {:.3f}]"
        assert said.format(layer, row["exit"][0], row["joined"][0], value, low, high) in page
    assert "at exit 24 by {:.3f} [{:.3f}, {:.3f}]".format(*rates[24, 3]["gain"]) in page
    for place, words in (((27, 3), "at exit 27 by"), ((24, 1), "gives way, at exit 24 by")):
        value, low, high = rates[place]["gain"]
        assert f"{words} {-value:.3f} [{-high:.3f}, {-low:.3f}]" in page
    best = {(r["exits"], r["guesses"]): r["held_out"] for r in document["best"]}
    joined = best["trained", "exit and n-grams of up to 3"]
    assert "takes {:.3f} [{:.3f}, {:.3f}] of plain".format(*joined) in page
    assert "instead of {:.3f}".format(best["trained", "exit"][0]) in page
    page = " ".join((prompt_lookup.DATA.parent / "docs" / "deciding.md").read_text("utf-8").split())
    rounds = {(r["searched"], r["n"], r["drafted"]): r for r in document["rounds"]}
    found = rounds["prompt and text", 3, 3]["tokens_per_round"]
    alone = rounds["text", 3, 3]["tokens_per_round"][0]
    said = "{:.2f} tokens per round [{:.2f}, {:.2f}] instead of {:.2f}, hence {:.2f} of the latency"
    assert said.format(*found, alone, 1 / found[0]) in page
