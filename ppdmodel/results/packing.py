"""Counts in a JSON document: the bytes of an array, compressed, as text.

Sizes are checked before and during decompression, so that a small file cannot exhaust the
memory.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from .token_counts import ARRAYS, TokenCounts, second_half, up_to

if TYPE_CHECKING:
    from pathlib import Path

    from .._types import Bools, Ints

#: types that counts are stored in, the smallest that holds them
TYPES = ("<u1", "<u2", "<u4")
#: attributes of `TokenCounts` that label the axes of its arrays
LABELS = (
    "drafted",
    "gates",
    "gated_k",
    "pair_k",
    "pair_exits",
    "draft_gates",
    "ngrams",
    "looked_up",
)


def pack_array(counts: Ints) -> dict[str, Any]:
    """An array of counts as `{dtype, shape, data}`."""
    most = int(counts.max(initial=0))
    dtype = next(name for name in TYPES if most <= np.iinfo(name).max)
    raw = np.ascontiguousarray(counts, dtype=dtype).tobytes()
    data = base64.b64encode(zlib.compress(raw, 9)).decode("ascii")
    return {"dtype": dtype, "shape": list(counts.shape), "data": data}


def unpack_array(document: Mapping[str, Any], shape: tuple[int, ...], name: str) -> Ints:
    """Read the result of `pack_array`, which must have this shape.

    Raises:
        InvalidInputError: it has another shape, or the data is damaged or of another size.
    """
    dtype = np.dtype(document["dtype"])
    if tuple(document["shape"]) != shape:
        raise InvalidInputError(
            f"{name} must have the shape {shape}; got {tuple(document['shape'])}; fit again"
        )
    expected = math.prod(shape) * dtype.itemsize
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(base64.b64decode(document["data"], validate=True), expected + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise InvalidInputError(f"{name} must be whole; got damaged data ({error})") from None
    if len(raw) != expected or not stream.eof or stream.unused_data:
        size = "more" if len(raw) >= expected else len(raw)
        raise InvalidInputError(f"{name} must be {expected} bytes; got {size}; fit again")
    return np.frombuffer(raw, dtype=dtype).reshape(shape).astype(np.int64)


def pack_token_counts(recorded: TokenCounts) -> dict[str, Any]:
    """The counts as stored in a calibration file, which has layers and tokens elsewhere."""
    labels = {name: list(getattr(recorded, name)) for name in LABELS}
    counts = {name: getattr(recorded, name) for name in ARRAYS}
    packed = {n: None if array is None else pack_array(array) for n, array in counts.items()}
    return labels | packed | {"with_contexts": recorded.with_contexts}


def unpack_token_counts(
    document: Mapping[str, Any], layers: int, tokens: Ints, path: Path
) -> TokenCounts:
    """Read the counts of a calibration with so many layers and tokens by prompt.

    Raises:
        InvalidInputError: they are damaged, or do not fit the rest of the file.
    """
    labels: dict[str, Any] = {name: tuple(document.get(name, ())) for name in LABELS}
    nothing: dict[str, Any] = dict.fromkeys(ARRAYS, np.zeros(0, dtype=np.int64))
    labels["with_contexts"] = document.get("with_contexts", False)
    empty = TokenCounts(layers=layers, tokens=tokens, **labels, **nothing)
    for name in LABELS:
        values = labels[name]
        if not all(a < b for a, b in pairwise((0, *values))):  # NaN too is refused
            raise InvalidInputError(f"{name} of {path} must increase; got {values}; fit again")
    first, last = second_half(layers), layers - 1
    if not first <= labels["pair_exits"][0] <= labels["pair_exits"][-1] <= last:
        raise InvalidInputError(
            f"pair_exits of {path} must lie in layers {first} to {last}; got "
            f"{labels['pair_exits']}; fit again"
        )
    arrays: dict[str, Any] = {
        name: None
        if document.get(name) is None
        else unpack_array(document[name], shape, f"{name} of {path}")
        for name, shape in empty.shapes().items()
    }
    found = replace(empty, **arrays)
    fault = _fault(found)
    if fault:
        raise InvalidInputError(f"the counts of {path} must fit together; got {fault}; fit again")
    return found


def _fault(recorded: TokenCounts) -> str:
    """An inconsistency in counts of the right sizes; empty if there is none."""
    tokens, pairs = recorded.tokens[:, None, None], recorded.pairs
    held = recorded.first.cumsum(axis=2)
    early, late = held[:, pairs[:, 0], :, None], held[:, pairs[:, 1], None, :]
    rounds, passed, both = recorded.rounds, recorded.passed, up_to(recorded.both)
    ks = np.array(recorded.pair_k)
    shared = 0 if recorded.shared is None else up_to(recorded.shared)
    faults: dict[str, Bools] = {
        "rounds of self-speculation that no text takes": (rounds < 1) | (rounds > tokens),
        "more open gates than tokens": passed > tokens,
        "more hits behind a gate than tokens that passed it": recorded.right.sum(axis=3) > passed,
        "more hits of an exit than tokens": held > tokens,
        "more hits at both of two exits than at one": both > np.minimum(early, late),
        "more shared guesses than guesses": shared > tokens[..., None] * np.minimum.outer(ks, ks),
    }
    if recorded.gated_rounds is not None and recorded.gated_drafts is not None:
        made, drafts = recorded.gated_rounds, recorded.gated_drafts
        faults["rounds of gated drafts that no text takes"] = _impossible(made, drafts, tokens)
        most = made * np.array(recorded.gated_k)
        faults["more gated drafts than rounds of them allow"] = drafts > most
    if recorded.lookups is not None:
        number = np.arange(recorded.lookups.shape[-1])
        made, drafts = recorded.lookups.sum(axis=-1), recorded.lookups @ number
        faults["rounds of prompt lookup that no text takes"] = _impossible(made, drafts, tokens)
        beyond = number > np.array(recorded.looked_up)[:, None]
        faults["more tokens looked up than a round drafts"] = recorded.lookups * beyond > 0
    return next((words for words, wrong in faults.items() if wrong.any()), "")


def _impossible(rounds: Ints, drafts: Ints, tokens: Ints) -> Bools:
    """Whether rounds [prompts, ...] and their drafts cannot make so many tokens [prompts, 1, 1]."""
    tokens = tokens.reshape(-1, *[1] * (rounds.ndim - 1))
    wrong: Bools = (rounds < 1) | (rounds > tokens) | (rounds + drafts < tokens)
    return wrong
