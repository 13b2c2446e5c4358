"""Counts in a JSON document: there and back, and damaged ones refused."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdmodel import fit, load, save
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.measurement import Measurement
from ppdmodel.results.packing import (
    LABELS,
    pack_array,
    pack_token_counts,
    unpack_array,
    unpack_token_counts,
)
from ppdmodel.results.token_counts import ARRAYS, TokenCounts
from tests.support.tables import repeating_guesses

#: of counts: from bits to bytes
Damage = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize("most", [0, 255, 256, 65_535, 65_536])
def test_an_array_of_counts_comes_back(most: int) -> None:
    counts = np.array([[0, most, most // 2]])
    packed = pack_array(counts)
    assert (unpack_array(packed, (1, 3), "it") == counts).all()
    assert packed["dtype"] == ("<u1" if most < 256 else "<u2" if most < 65_536 else "<u4")


def in_base64(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw)).decode()


def test_a_small_file_cannot_fill_the_memory() -> None:
    bomb = {"dtype": "<u1", "shape": [1, 3], "data": in_base64(bytes(50_000_000))}
    with pytest.raises(InvalidInputError, match="it must be 3 bytes; got more"):
        unpack_array(bomb, (1, 3), "it")


DAMAGES: dict[str, tuple[Damage, str]] = {
    "shape": (lambda r: r["both"].update(shape=[12, 3, 4, 9]), "both of .* must have the shape"),
    "text": (lambda r: r["right"].update(data="?" * 8), "right of .* must be whole; got damaged"),
    "bytes": (lambda r: r["right"].update(data="QUJD"), "right of .* must be whole; got damaged"),
    "cut": (lambda r: r["first"].update(data=r["first"]["data"][:24]), "first of .* must be"),
    "short": (lambda r: r["passed"].update(data=in_base64(b"1")), "passed of .* must be .* bytes"),
    "type": (lambda r: r["passed"].update(dtype="<f8"), "must follow its schema"),
    "object": (lambda r: r["passed"].update(dtype="O"), "must follow its schema"),
    "missing": (lambda r: r.pop("rounds"), "must follow its schema"),
    "labels": (lambda r: r.update(pair_k=[3, 2, 1, 5]), "pair_k of .* must increase"),
    "gates of NaN": (lambda r: r.update(gates=[np.nan] * 9), "recorded/gates/0.* finite number"),
    "falling gates": (lambda r: r.update(gates=[0.5, 0.25]), "gates of .* must increase"),
    "too many": (lambda r: r.update(drafted=[*range(1, 8), 10**12]), "must follow its schema"),
    "more": (
        lambda r: r["first"].update(data=in_base64(bytes(12 * 3 * 4)) + "AAAA"),
        "first of .* must be 144 bytes; got more",
    ),
    "exits": (lambda r: r.update(pair_exits=[3, 4, 7]), "pair_exits of .* must lie in layers"),
    "fewer": (lambda r: r.update(pair_exits=[3, 4]), "must have the shape"),
    "rounds": (
        lambda r: r["rounds"].update(data=in_base64(bytes(12 * 5 * 8))),
        "rounds of self-speculation that no text takes",
    ),
    "gates": (
        lambda r: r["passed"].update(data=in_base64(bytes([200] * 12 * 3 * 9))),
        "more open gates than tokens",
    ),
    "hits": (
        lambda r: r["right"].update(data=in_base64(bytes([20] * 12 * 3 * 9 * 5))),
        "more hits behind a gate than tokens that passed it",
    ),
    "at one": (
        lambda r: r["first"].update(data=in_base64(bytes([9] * 12 * 3 * 4))),
        "more hits of an exit than tokens",
    ),
    "at both": (
        lambda r: r["both"].update(data=in_base64(bytes([9] * 12 * 3 * 16))),
        "more hits at both of two exits than at one",
    ),
    "guesses": (
        lambda r: r["shared"].update(data=in_base64(bytes([99] * 12 * 3 * 16))),
        "more shared guesses than guesses",
    ),
    "rounds of lookups": (
        lambda r: r["lookups"].update(data=in_base64(bytes(12 * 3 * 8 * 11))),
        "rounds of prompt lookup that no text takes",
    ),
    "drafts of lookups": (
        lambda r: r["lookups"].update(data=in_base64(bytes([1] * 12 * 3 * 8 * 11))),
        "more tokens looked up than a round drafts",
    ),
    "lookups": (lambda r: r.update(looked_up=[1, 2, 3]), "lookups of .* must have the shape"),
    "gated rounds": (
        lambda r: r["gated_rounds"].update(data=in_base64(bytes([21] * 12 * 5 * 5 * 5))),
        "rounds of gated drafts that no text takes",
    ),
    "gated drafts": (
        lambda r: r["gated_drafts"].update(data=in_base64(bytes([99] * 12 * 5 * 5 * 5))),
        "more gated drafts than rounds of them allow",
    ),
    "falling draft gates": (
        lambda r: r.update(draft_gates=[0.5, 0.25]), "draft_gates of .* must increase",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def document(measurement: Measurement, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A calibration with counts, as its file holds it."""
    path = tmp_path_factory.mktemp("calibration") / "cal.json"
    options: dict[str, Any] = {"k_max": 3, "family": "rank tail", "resamples": 40}
    save(fit(measurement, guesses=repeating_guesses(measurement), **options), path)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_counts_are_one_clear_error(
    document: dict[str, Any], tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    broken = copy.deepcopy(document)
    damage(broken["recorded"])
    path = tmp_path / "cal.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        load(path)


def test_counts_are_packed_and_unpacked(measurement: Measurement, tmp_path: Path) -> None:
    for guesses in (None, repeating_guesses(measurement)):
        counts = TokenCounts.of(measurement, guesses)
        packed = json.loads(json.dumps(pack_token_counts(counts)))
        found = unpack_token_counts(packed, counts.layers, counts.tokens, tmp_path)
        for name in ("layers", "with_contexts", *LABELS):
            assert getattr(found, name) == getattr(counts, name)
        for name in ARRAYS:
            assert np.array_equal(getattr(found, name), getattr(counts, name)), name


def test_counts_of_an_older_version_are_read(document: dict[str, Any], tmp_path: Path) -> None:
    """Those of `compare` that it did not have are not there, also after another saving."""
    older, path = copy.deepcopy(document), tmp_path / "cal.json"
    newer = ("draft_gates", "gated_rounds", "gated_drafts", "ngrams", "looked_up", "lookups")
    for name in (*newer, "with_contexts"):
        del older["recorded"][name]
    path.write_text(json.dumps(older), encoding="utf-8")
    for _ in range(2):
        found = load(path)
        assert isinstance(found, Calibration)
        assert found.recorded is not None
        assert found.recorded.lookups is found.recorded.gated_rounds is None
        assert not found.recorded.with_contexts
        save(found, path)


#: the largest count that a text of 20 tokens allows, and one more
LIMITS = {
    "rounds": (20, "rounds of self-speculation"),
    "passed": (20, "more open gates"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_counts_at_their_limits_are_taken(
    measurement: Measurement, tmp_path: Path, name: str
) -> None:
    most, words = LIMITS[name]
    counts = TokenCounts.of(measurement)
    assert set(counts.tokens) == {20}

    def read(value: int) -> TokenCounts:
        changed: Any = {name: np.full_like(getattr(counts, name), value)}
        packed = pack_token_counts(replace(counts, **changed))
        return unpack_token_counts(packed, counts.layers, counts.tokens, tmp_path)

    assert getattr(read(most), name).max() == most
    with pytest.raises(InvalidInputError, match=words):
        read(most + 1)


def test_rounds_are_at_least_one(measurement: Measurement, tmp_path: Path) -> None:
    counts = TokenCounts.of(measurement)
    one = replace(counts, rounds=np.ones_like(counts.rounds))
    packed = pack_token_counts(one)
    unpack_token_counts(packed, counts.layers, counts.tokens, tmp_path)


def test_pairs_lie_in_the_second_half(measurement: Measurement, tmp_path: Path) -> None:
    """Of 6 layers: exits 3 to 5."""
    counts = TokenCounts.of(measurement)
    packed = pack_token_counts(counts)
    for exits in ([2, 4, 5], [3, 4, 6]):
        with pytest.raises(InvalidInputError, match="must lie in layers 3 to 5"):
            unpack_token_counts(
                packed | {"pair_exits": exits}, counts.layers, counts.tokens, tmp_path
            )


def test_shared_guesses_are_at_most_the_smaller_number_per_token(
    measurement: Measurement, tmp_path: Path
) -> None:
    counts = TokenCounts.of(measurement, repeating_guesses(measurement))
    assert counts.shared is not None
    tokens = counts.tokens
    most = np.zeros_like(counts.shared)
    most[:, :, 0, 0] = tokens[:, None]  # one guess each: shared at every token
    packed = pack_token_counts(replace(counts, shared=most))
    unpack_token_counts(packed, counts.layers, tokens, tmp_path)
    packed = pack_token_counts(replace(counts, shared=most + 0 * most + (most > 0)))
    with pytest.raises(InvalidInputError, match="more shared guesses"):
        unpack_token_counts(packed, counts.layers, tokens, tmp_path)


def test_data_is_as_long_as_its_shape(tmp_path: Path) -> None:
    counts = np.array([[1, 2, 300]])
    packed = pack_array(counts)
    assert packed["shape"] == [1, 3]
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    assert np.frombuffer(raw, "<u2").tolist() == [1, 2, 300]
    for cut in (raw[:-1], raw[:-2], b""):
        with pytest.raises(InvalidInputError, match=f"it must be 6 bytes; got {len(cut)}"):
            unpack_array(packed | {"data": in_base64(cut)}, (1, 3), "it")
    with pytest.raises(InvalidInputError, match=r"it must have the shape \(3, 1\)"):
        unpack_array(packed, (3, 1), "it")
