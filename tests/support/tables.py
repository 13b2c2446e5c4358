"""Made-up measurements and guesses of texts of given lengths, for the tests of their files."""

from __future__ import annotations

from dataclasses import fields
from itertools import chain
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from ppdmodel.results.measurement import Guesses, Measurement
from tests.conftest import make_measurement

#: lengths of texts: of each prompt, of each of its turns
Lengths = list[list[int]]
SHAPES = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=5)
QUICK = settings(max_examples=40, deadline=None)


def keys_of(lengths: Lengths) -> dict[str, Any]:
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


def made_measurement(
    lengths: Lengths,
    layers: int = 3,
    seed: int = 0,
    coupled: bool = False,
    top: int = 13,
    contexts: bool = False,
) -> Measurement:
    """A made-up measurement of texts of these lengths, with ties, and ranks up to `top`."""
    rng, rows = np.random.default_rng(seed), sum(map(sum, lengths))
    place = keys_of(lengths)
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
        context_ids=(
            tuple(rng.integers(0, 2**31 - 1, rng.integers(1, 9)) for _ in chain(*lengths))
            if contexts
            else None
        ),
    )


def made_guesses(lengths: Lengths, layers: int, vocabulary: int, seed: int = 0) -> Guesses:
    """Made-up guesses, the largest ids of the vocabulary among them."""
    rng, rows = np.random.default_rng(seed), sum(map(sum, lengths))
    shape = (rows, layers, 8)
    step = max(1, vocabulary // 8)  # eight places apart differ, unless there are fewer
    ids = (rng.integers(0, vocabulary, (rows, layers, 1)) + step * np.arange(8)) % vocabulary
    ids[0, 0] = vocabulary - 1 - np.arange(8) * step
    probs = -np.sort(-(rng.random(shape) ** 9), axis=2)
    probs /= np.maximum(probs.sum(axis=2, keepdims=True), 1)
    return Guesses(**keys_of(lengths), vocabulary=vocabulary, ids=ids, probs=probs)


def assert_equal(found: Measurement | Guesses, original: Measurement | Guesses) -> None:
    for field in fields(original):
        a, b = getattr(found, field.name), getattr(original, field.name)
        if field.name == "context_ids" and a is not None and b is not None:
            a, b = ([ids.tolist() for ids in each] for each in (a, b))
        same = np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b
        assert same, field.name


def repeating_guesses(measurement: Measurement) -> Guesses:
    """Eight distinct ids per exit, of few tokens so that exits repeat each other."""
    rng = np.random.default_rng(8)
    n, layers = measurement.rank.shape
    ids = np.argsort(rng.random((n, layers, 12)), axis=2)[:, :, :8] + 1000
    for row in range(n):
        for layer in range(layers):
            rank = measurement.rank[row, layer]
            if rank <= 8:
                ids[row, layer, rank - 1] = measurement.token_id[row]
    return Guesses(
        prompt_ids=measurement.prompt_ids,
        prompt_index=measurement.prompt_index,
        turn=measurement.turn,
        position=measurement.position,
        vocabulary=2000,
        ids=ids,
        probs=np.full(ids.shape, 0.1, dtype=np.float32),
    )
