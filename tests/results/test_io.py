"""Results saved and loaded, and damaged ones refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ppdmodel import Calibration, fit, load, load_guesses, save
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.calibration import Reliability
from ppdmodel.results.io import load_calibration, load_rates, load_timing
from ppdmodel.results.measurement import Measurement
from ppdmodel.results.timing import Timed, Timing
from tests.pipeline.test_prediction_error import a_timing


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


def test_a_calibration_there_and_back(measurement: Measurement, tmp_path: Path) -> None:
    original = fit(measurement, k_max=5, resamples=40)
    save(original, tmp_path / "cal.json")
    found = load(tmp_path / "cal.json")
    assert isinstance(found, Calibration)
    assert found.curve == original.curve
    for name in ("tokens", "hits", "p_correct", "ci_low", "ci_high"):
        assert np.array_equal(getattr(found, name), getattr(original, name)), name
    assert found.provenance == original.provenance


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


@pytest.fixture(scope="module")
def stored(measurement: Measurement, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A calibration as its file holds it."""
    path = tmp_path_factory.mktemp("calibration") / "cal.json"
    save(fit(measurement, k_max=3, family="rank tail", resamples=40), path)
    found: dict[str, object] = json.loads(path.read_text())
    return found


BAD_CALIBRATIONS = [
    ({"p_correct": [[1.5] * 3] * 6}, "got a fault at p_correct/0/0: 1.5 is greater than"),
    ({"layers": 0}, "got a fault at layers: 0 is less than the minimum of 2"),
    ({"layers": 2.5}, "got a fault at layers: 2.5 is not of type 'integer'"),
    (
        {"layers": 7},
        "must be 7 layers by 3 k for 12 prompts; got other sizes in p_correct; fit again",
    ),
    (
        {"k_max": 4},
        "must be 6 layers by 4 k for 12 prompts; got other sizes in p_correct; fit again",
    ),
    ({"tokens": [0] * 12}, "got a fault at tokens/0: 0 is less than the minimum of 1"),
    ({"hits": "many"}, "got a fault at hits: 'many' is not of type 'array'"),
]


@pytest.mark.parametrize(("change", "words"), BAD_CALIBRATIONS)
def test_bad_numbers_in_a_calibration_are_named(
    stored: dict[str, object], tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "cal.json"
    path.write_text(json.dumps(stored | change))
    with pytest.raises(InvalidInputError) as caught:
        load(path)
    assert words in str(caught.value)


CALIBRATIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "hits beyond tokens": (
        lambda c: c["hits"][2][3].__setitem__(2, 10**6),
        "more hits than tokens at exit layer 4 and k = 3",
    ),
    "hits that fall": (
        lambda c: c["hits"][2][3].__setitem__(1, 0),
        "hits that fall with k at exit layer 4 and k = 2",
    ),
    "hits of others": (
        lambda c: c["p_correct"][3].__setitem__(0, 0.123),
        "a match rate that is not hits by tokens at exit layer 4 and k = 1",
    ),
    "upside down": (
        lambda c: (c["ci_low"][5].__setitem__(1, 1), c["ci_high"][5].__setitem__(1, 0.5)),
        "an interval upside down at exit layer 6 and k = 2",
    ),
    "exit layers": (lambda c: c.update(exit_layers=[2, 7]), "exit layers that are not there"),
    "order of layers": (lambda c: c.update(exit_layers=[4, 2]), "exit layers that are not there"),
    "ks": (lambda c: c.update(ks=[1, 4]), "ks that are not there"),
    "reliability": (
        lambda c: c.update(reliability=[_reliability(7)]), "reliability of a layer that is not"
    ),
    "a layer twice": (
        lambda c: c.update(reliability=[_reliability(3), _reliability(3)]), "reliability of a layer"
    ),
    "residual": (
        lambda c: c["curve"].update(largest_residual_layer=7), "the largest residual at a layer"
    ),
    "residual's k": (lambda c: c["curve"].update(largest_residual_k=4), "the largest residual at"),
    "parameter": (
        lambda c: c["curve"]["parameters"]["tail"].update(ci_low=2.0, ci_high=1.0),
        "a parameter's interval upside down",
    ),
    "covariance": (lambda c: c["curve"]["covariance"].pop(), "a covariance of another size"),
    "covariance's row": (
        lambda c: c["curve"]["covariance"][1].pop(), "a covariance of another size"
    ),
    "timing": (
        lambda c: c.update(timing={**_DOCUMENT_OF_TIMING}), "a timing of another number of layers"
    ),
}  # fmt: skip


def _reliability(layer: int) -> dict[str, float]:
    return {"exit_layer": layer, "scale": 1.0, "shift": 0.0, "error_raw": 0.1, "error": 0.05}


_DOCUMENT_OF_TIMING: dict[str, Any] = json.loads(
    json.dumps({"schema": "ppdmodel/timing", "schema_version": 1, **asdict(a_timing())})
)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_a_calibration_that_does_not_fit_together_is_refused(
    stored: dict[str, Any], tmp_path: Path, name: str
) -> None:
    change, words = CALIBRATIONS[name]
    broken = copy.deepcopy(stored)
    change(broken)
    path = tmp_path / "cal.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=f"must fit together; got {words}.*; fit again"):
        load(path)


SUMMARIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "layers": (lambda s: s.update(layers=7), "6 layers and 7"),
    "a prompt more": (
        lambda s: s["prompts"].append({"id": "p99", "category": "", "n_tokens": 4}),
        "prompts or their tokens otherwise",
    ),
    "a prompt less": (lambda s: s["prompts"].pop(), "prompts or their tokens otherwise"),
    "tokens of a prompt": (
        lambda s: s["prompts"][3].update(n_tokens=10**6), "prompts or their tokens otherwise"
    ),
    "hits": (lambda s: s["hits"][2].__setitem__(4, 0), "hits otherwise"),
    "a row of hits less": (lambda s: s["hits"].pop(), "hits otherwise"),
    "k": (lambda s: s.update(k_max=3), "hits otherwise"),
    "upside down": (
        lambda s: (s["ci_low"][2].__setitem__(4, 1), s["ci_high"][2].__setitem__(4, 0.5)),
        "an interval upside down",
    ),
    "an end less": (lambda s: s["ci_low"][2].pop(), "an interval upside down"),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_that_contradicts_its_table_is_refused(
    measurement: Measurement, tmp_path: Path, name: str
) -> None:
    change, words = SUMMARIES[name]
    save(measurement, tmp_path)
    path = tmp_path / "summary.json"
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=f"must belong together; got {words}"):
        load(tmp_path)


def test_a_prompt_without_tokens_is_in_the_summary_only(
    measurement: Measurement, tmp_path: Path
) -> None:
    """One that ended at once has a row in the summary, and none in the table."""
    save(measurement, tmp_path)
    path = tmp_path / "summary.json"
    document = json.loads(path.read_text("utf-8"))
    document["prompts"].append({"id": "silent", "category": "", "n_tokens": 0})
    path.write_text(json.dumps(document), encoding="utf-8")
    assert isinstance(load(tmp_path), Measurement)


VALUE = '"value": 0.0013'
NUMBERS = {
    "NaN": "must be whole JSON; .*nan at terms/layer_time_s/value, which must be a finite number",
    "Infinity": "inf at terms/layer_time_s/value, which must be a finite number",
    "-Infinity": "-inf at terms/layer_time_s/value, which must be a finite number",
    "1e999": "inf at terms/layer_time_s/value, which must be a finite number",
    "9" * 400: "terms/layer_time_s/value: 9999.* is not of type 'number'",
    "9" * 5000: "must be whole JSON; .*digits",
    "true": "terms/layer_time_s/value: True is not of type 'number'",
    '0.1, "value": 0.2': "the key 'value' twice in one object",
    "[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12])
def test_what_is_no_number_is_refused_with_its_place(tmp_path: Path, number: str) -> None:
    path = tmp_path / "t.json"
    save(a_timing(), path)
    text = path.read_text("utf-8")
    assert VALUE in text
    path.write_text(text.replace(VALUE, f'"value": {number}', 1), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=NUMBERS[number]) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def timing_document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("timing") / "t.json"
    save(a_timing(), path)
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_a_timing_there_and_back(tmp_path: Path) -> None:
    timing = a_timing()
    save(timing, tmp_path / "t.json")
    found = load(tmp_path / "t.json")
    assert found == timing
    assert isinstance(found, Timing)
    assert isinstance(found.by_k[3]["layer_time_s"][1], Timed)


def without_last(document: dict[str, Any], *path: Any) -> None:
    """Shorten a list somewhere in the document by one."""
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = document[path[-1]][:-1]


TIMINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "order": (lambda t: t.update(exit_layers=[26, 10]), "exit layers that do not ascend below"),
    "last layer": (
        lambda t: t.update(exit_layers=[10, 30]), "exit layers that do not ascend below layer 30"
    ),
    "profile": (lambda t: without_last(t, "layer_profile_s"), "a profile of 29 layers, not 30"),
    "samples": (
        lambda t: without_last(t, "samples", "terms", "head_time_s"), "not 8 samples of head_time_s"
    ),
    "no samples": (lambda t: t["samples"]["terms"].pop("head_time_s"), "not 8 samples of head"),
    "text": (
        lambda t: t["samples"]["terms"].update(head_time_s=[0.008, 7.0] * 4),
        "head_time_s of 0.008 s, which is not the median of its samples",
    ),
    "values": (
        lambda t: without_last(t, "by_k", "3", "exit_time_s"),
        "1 values of exit_time_s for k = 3, not one per exit layer",
    ),
    "samples by k": (
        lambda t: without_last(t, "samples", "by_k", "3", "exit_time_s", 1),
        "not 8 samples of exit_time_s for k = 3 at exit layer 26",
    ),
    "an exit more": (
        lambda t: t["samples"]["by_k"]["3"]["exit_time_s"].append([1.0] * 8),
        "not 8 samples of exit_time_s for k = 3 at exit layer None",
    ),
    "repetitions": (lambda t: t["terms"]["head_time_s"].update(n=7), "not 8 samples of head"),
    "above its interval": (
        lambda t: t["terms"]["head_time_s"].update(ci_low=0.001, ci_high=0.002),
        "head_time_s of 0.008 s outside its interval 0.001 to 0.002",
    ),
    "below its interval": (
        lambda t: t["by_k"]["1"]["exit_time_s"][1].update(ci_low=1, ci_high=2),
        "exit_time_s for k = 1 at exit layer 26 of 0.0085 s outside its interval 1 to 2",
    ),
    "k": (lambda t: t["samples"]["by_k"].pop("3"), "not 8 samples of layer_time_s for k = 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMINGS)
def test_a_timing_that_does_not_fit_together_is_refused(
    timing_document: dict[str, Any], tmp_path: Path, name: str
) -> None:
    damage, words = TIMINGS[name]
    broken = copy.deepcopy(timing_document)
    damage(broken)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=f"must be whole; got {words}.*; time again"):
        load(path)


def test_an_exit_at_the_layer_before_the_last_is_taken(
    timing_document: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(timing_document | {"exit_layers": [10, 29]}), encoding="utf-8")
    assert load_timing(path).exit_layers == (10, 29)


def test_a_calibration_keeps_its_timing_and_its_reliability(
    measurement: Measurement, tmp_path: Path
) -> None:
    reliability = (Reliability(3, 0.9, 0.1, 0.05, 0.01), Reliability(4, 1.1, 0.0, 0.04, 0.02))
    original = replace(
        fit(measurement, k_max=2, family="rank tail", resamples=40),
        timing=replace(a_timing(), layers=6, exit_layers=(2, 4), layer_profile_s=(1.3e-3,) * 6),
        reliability=reliability,
        exit_layers=(2, 4),
        ks=(1, 2),
    )
    save(original, tmp_path / "cal.json")
    found = load_calibration(tmp_path / "cal.json")
    for name in ("timing", "reliability", "exit_layers", "ks", "prompt_ids", "seed", "resamples"):
        assert getattr(found, name) == getattr(original, name), name
    document = json.loads((tmp_path / "cal.json").read_text("utf-8"))
    document["timing"]["schema_version"] = 9
    (tmp_path / "cal.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="must have schema version 1 or older; got 9"):
        load(tmp_path / "cal.json")


def test_each_loader_takes_its_own_kind(
    measurement: Measurement, stored: dict[str, object], tmp_path: Path
) -> None:
    save(measurement, tmp_path / "m")
    save(a_timing(), tmp_path / "t.json")
    (tmp_path / "c.json").write_text(json.dumps(stored))
    assert isinstance(load_rates(tmp_path / "m"), Measurement)
    assert isinstance(load_rates(tmp_path / "c.json"), Calibration)
    with pytest.raises(InvalidInputError, match="the file must be a ppdmodel/calibration; got"):
        load_rates(tmp_path / "t.json")
    with pytest.raises(InvalidInputError, match="the file must be a ppdmodel/timing; got"):
        load_timing(tmp_path / "c.json")
    with pytest.raises(InvalidInputError, match=r"the measurement must hold guesses\.parquet; got"):
        load_guesses(tmp_path / "m")
