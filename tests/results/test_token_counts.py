"""What a calibration keeps of the recorded tokens: together, apart, deep models, damaged files."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppdmodel as ppd
from ppdmodel import compare, fit_table, load, save
from ppdmodel.errors import InvalidInputError
from ppdmodel.pipeline.prediction_error import without
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.measurement import Measurement
from ppdmodel.results.packing import pack, unpack
from ppdmodel.results.token_counts import COUNTS, MOST_PAIRED, TokenCounts, paired, pairs_of
from tests.conftest import make_measurement
from tests.decide.test_methods import made_guesses

#: of counts: from bits to bytes
Damage = Callable[[dict[str, Any]], None]


def fit(*args: Any, **options: Any) -> Calibration:
    """Quick where only the counts matter."""
    return ppd.fit(*args, **options, family="rank tail", resamples=100)


def renamed(measurement: Measurement, prefix: str) -> Measurement:
    return replace(measurement, prompt_ids=tuple(prefix + name for name in measurement.prompt_ids))


def same(a: TokenCounts, b: TokenCounts) -> bool:
    names = ("tokens", *COUNTS, "shared")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_counts_are_those_of_their_shapes(measurement: Measurement) -> None:
    found = TokenCounts.of(measurement, made_guesses(measurement))
    for name, shape in found.shapes().items():
        assert getattr(found, name).shape == shape
    assert found.pair_exits == (3, 4, 5)
    assert pairs_of(3).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert TokenCounts.of(make_measurement(layers=2)).both.shape[1] == 0


def test_several_measurements_are_one(measurement: Measurement) -> None:
    """As counts, and as what `compare` makes of them."""
    halves = (renamed(measurement, "a"), renamed(make_measurement(seed=4), "b"))
    guesses = [made_guesses(half) for half in halves]
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
    others = without(calibration, measurement.prompt_ids[:5]).recorded
    assert calibration.recorded is not None
    assert others is not None
    assert same(others, calibration.recorded.only(range(5, 12)))


def test_deep_models_pair_some_of_their_exits() -> None:
    assert paired(30) == tuple(range(15, 30))
    for layers in (80, 126, 1000):
        exits = paired(layers)
        assert len(exits) == MOST_PAIRED
        assert (exits[0], exits[-1]) == (layers // 2, layers - 1)
        assert max(np.diff(exits)) - min(np.diff(exits)) <= 1


def test_the_counts_travel(measurement: Measurement, tmp_path: Path) -> None:
    for guesses in (None, made_guesses(measurement)):
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
    calibration = fit_table(path, 6, resamples=100)
    assert calibration.recorded is None
    save(calibration, tmp_path / "cal.json")
    again = load(tmp_path / "cal.json")
    assert isinstance(again, Calibration)
    assert again.recorded is None
    assert "counts of the recorded tokens" in compare(again).left_out[0]


@pytest.mark.parametrize("most", [0, 255, 256, 65_535, 65_536])
def test_an_array_of_counts_comes_back(most: int) -> None:
    counts = np.array([[0, most, most // 2]])
    packed = pack(counts)
    assert (unpack(packed, (1, 3), "it") == counts).all()
    assert packed["dtype"] == ("<u1" if most < 256 else "<u2" if most < 65_536 else "<u4")


def in_base64(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw)).decode()


def test_a_small_file_cannot_fill_the_memory() -> None:
    bomb = {"dtype": "<u1", "shape": [1, 3], "data": in_base64(bytes(50_000_000))}
    with pytest.raises(InvalidInputError, match="it must be 3 bytes; got more"):
        unpack(bomb, (1, 3), "it")


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
    "gates of NaN": (lambda r: r.update(gates=[np.nan] * 9), "gates of .* must increase"),
    "no gate": (lambda r: r.update(gates=[np.nan]), "gates of .* must increase"),
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
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_counts_are_one_clear_error(
    measurement: Measurement, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    path = tmp_path / "cal.json"
    save(fit(measurement, guesses=made_guesses(measurement), k_max=3), path)
    document = json.loads(path.read_text("utf-8"))
    damage(document["recorded"])
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        load(path)
