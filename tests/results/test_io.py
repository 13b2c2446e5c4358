"""Files: there and back, atomic, and clear about what is wrong with them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ppdmodel import Calibration, fit, load, save
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.results import files
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement


def same(a: Measurement, b: Measurement) -> bool:
    arrays = ("prompt_index", "position", "token_id", "rank", "top_prob")
    plain = ("prompt_ids", "categories", "complete", "ties", "provenance")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays) and all(
        getattr(a, n) == getattr(b, n) for n in plain
    )


def test_a_measurement_there_and_back(measurement: Measurement, tmp_path: Path) -> None:
    tie = {"prompt_id": "p1", "position": 3, "rank": 2, "margin": 1e-6}
    original = replace(measurement, ties=(tie,))
    save(original, tmp_path / "m")
    found = load(tmp_path / "m")
    assert isinstance(found, Measurement)
    assert same(found, original)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["summary.json", "tokens.parquet"]


def test_the_parquet_columns_are_the_documented_ones(
    measurement: Measurement, tmp_path: Path
) -> None:
    save(measurement, tmp_path)
    table = pq.read_table(tmp_path / "tokens.parquet")
    ranks = [f"rank_0{n}" for n in range(1, 7)]
    probs = [f"prob_0{n}" for n in range(1, 7)]
    keys = ["prompt_id", "turn", "position", "token_id"]
    assert table.column_names == [*keys, *ranks, *probs]
    assert str(table.schema.field("rank_01").type) == "int32"
    assert str(table.schema.field("prob_01").type) == "float"
    assert table.column("prompt_id").to_pylist()[:2] == ["p0", "p0"]


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


def test_a_calibration_there_and_back(measurement: Measurement, tmp_path: Path) -> None:
    original = fit(measurement, k_max=5, resamples=40)
    save(original, tmp_path / "cal.json")
    found = load(tmp_path / "cal.json")
    assert isinstance(found, Calibration)
    assert found.curve == original.curve
    for name in ("tokens", "hits", "p_correct", "ci_low", "ci_high"):
        assert np.array_equal(getattr(found, name), getattr(original, name)), name
    assert found.provenance == original.provenance


def test_json_never_holds_nan_or_infinity() -> None:
    value = {"a": [math.nan, math.inf, 1.0], "b": np.array([[math.nan]]), "c": np.int64(3)}
    assert json.loads(json.dumps(files.json_ready(value), allow_nan=False)) == {
        "a": [None, None, 1.0],
        "b": [[None]],
        "c": 3,
    }


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with files.atomic(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RunFailedError, match="must be writable; got No space left on device"),
        files.atomic(tmp_path / "file"),
    ):
        raise OSError(28, "No space left on device")


def damaged(tmp_path: Path, measurement: Measurement, damage: str) -> Path:
    folder = tmp_path / damage
    save(measurement, folder)
    summary, tokens = folder / "summary.json", folder / "tokens.parquet"
    document = json.loads(summary.read_text())
    if damage == "cut-summary":
        summary.write_text(summary.read_text()[:500])
    elif damage == "cut-tokens":
        tokens.write_bytes(tokens.read_bytes()[:500])
    elif damage == "no-tokens":
        tokens.unlink()
    elif damage == "no-summary":
        summary.unlink()
    elif damage == "newer":
        summary.write_text(json.dumps(document | {"schema_version": 99}))
    elif damage == "other-kind":
        summary.write_text(json.dumps(document | {"schema": "somebody/else"}))
    elif damage == "field-lost":
        del document["hits"]
        summary.write_text(json.dumps(document))
    elif damage == "not-together":
        summary.write_text(json.dumps(document | {"n_tokens": 7}))
    elif damage == "other-table":
        pq.write_table(pq.read_table(tokens).replace_schema_metadata({}), tokens)
    return folder


DAMAGE = [
    ("cut-summary", "a result must be whole JSON; got"),
    ("cut-tokens", "must be a whole Parquet file; got"),
    ("no-tokens", "must be a whole Parquet file; got"),
    ("no-summary", "a measurement folder must hold summary.json; got"),
    ("newer", "must have schema version 1 or older; got 99; upgrade ppdmodel"),
    ("other-kind", "the file must be a ppdmodel/measurement; got 'somebody/else'"),
    ("field-lost", "must follow its schema; got a fault at the top level: 'hits' is a required"),
    ("not-together", "must belong together; got 240 tokens and 7 in the summary"),
    ("other-table", "must be the table of tokens of a ppdmodel/measurement; got another table"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_damage_is_named(measurement: Measurement, tmp_path: Path, damage: str, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load(damaged(tmp_path, measurement, damage))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="the result must exist; got"):
        load(tmp_path / "nothing.json")


BAD_CALIBRATIONS = [
    ({"p_correct": [[1.5] * 3] * 6}, "got a fault at p_correct/0/0: 1.5 is greater than"),
    ({"layers": 0}, "got a fault at layers: 0 is less than the minimum of 2"),
    ({"layers": 2.5}, "got a fault at layers: 2.5 is not of type 'integer'"),
    ({"layers": 7}, "must be 7 layers by 3 k for 12 prompts; got other sizes; fit again"),
    ({"k_max": 4}, "must be 6 layers by 4 k for 12 prompts; got other sizes; fit again"),
    ({"tokens": [0] * 12}, "got a fault at tokens/0: 0 is less than the minimum of 1"),
    ({"hits": "many"}, "got a fault at hits: 'many' is not of type 'array'"),
]


@pytest.mark.parametrize(("change", "words"), BAD_CALIBRATIONS)
def test_bad_numbers_in_a_calibration_are_named(
    measurement: Measurement, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "cal.json"
    save(fit(measurement, k_max=3, resamples=40), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidInputError) as caught:
        load(path)
    assert words in str(caught.value)
