"""`decode`: a text, its latencies, its prediction, and where it differs from plain decoding."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppdmodel.cli.decode import decode_command
from ppdmodel.decide.prediction import predicted_latency_s
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.measure.options import PromptFormat
from ppdmodel.pipeline import PpdSetting, Workers, decode
from ppdmodel.pipeline import pipeline as pipeline_module
from ppdmodel.pipeline.decoding import _prediction, first_difference, plant, speed
from ppdmodel.pipeline.worker_pool import Run
from tests.conftest import TEXT
from tests.pipeline.conftest import FAR, TOKENS, TWO_CPUS
from tests.pipeline.test_prediction_error import a_calibration, a_timing


def generated(loaded: LoadedModel, ids: list[int], tokens: int) -> tuple[int, ...]:
    """What Transformers makes of it."""
    given = torch.tensor([ids])
    made = loaded.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(made[0, len(ids) :].tolist())


def test_speeds_of_a_run() -> None:
    times = np.cumsum([9, 9, 1, 2, 3, 10]) * 10**9
    none = np.zeros(6, dtype=bool)
    run = Run((1, 2, 3, 4, 5, 6), times, none, none, ())
    found = speed(run)
    assert found is not None
    assert (found.mean_s, found.median_s) == (4.0, 2.5)
    assert found.p95_s == pytest.approx(8.95)  # 0.85 of the way from 3 to 10
    short = Run((1, 2), times[:2], none[:2], none[:2], ())
    assert speed(short) is None


def test_what_is_predicted() -> None:
    calibration, timing = a_calibration(4), a_timing()
    setting, two = PpdSetting(20, 3), Workers()
    rate = float(calibration.p_correct[19, 2])
    seconds = predicted_latency_s(timing, rate, 20, 3)
    assert _prediction(setting, two, calibration, timing) == (rate, rate, seconds)
    assert _prediction(setting, two, None, timing) == (None, None, None)
    assert _prediction(setting, two, calibration, None) == (rate, None, None)
    assert _prediction(setting, Workers(3), calibration, timing) == (rate, None, None)
    one_by_one = replace(setting, row_by_row=True)
    assert _prediction(one_by_one, two, calibration, timing) == (rate, None, None)


def test_a_prediction_is_of_the_guesses_that_run() -> None:
    calibration = a_calibration(4)
    joined = replace(calibration, provenance={"measurement": {"ngrams": 2}})
    with_lookup = PpdSetting(20, 3, ngrams=2)
    assert _prediction(with_lookup, Workers(), joined, None)[0] is not None
    for one, other in ((PpdSetting(20, 3), joined), (with_lookup, calibration)):
        with pytest.raises(InvalidInputError, match="the calibration must be of the guesses that"):
            _prediction(one, Workers(), other, None)


def test_guesses_that_come_too_late_are_predicted_to_match_nothing() -> None:
    """Reading the exit takes 8.5 ms; from layer 29 on 8.1 ms of the head and 1.35 are left."""
    calibration, timing = a_calibration(4), a_timing()
    for exit_layer, share in ((29, 1), (30, 0)):
        right = float(calibration.p_correct[exit_layer - 1, 0])
        found = _prediction(PpdSetting(exit_layer, 1), Workers(), calibration, timing)
        assert found == (right, right * share, predicted_latency_s(timing, right, exit_layer, 1))
    (without, with_matches) = (predicted_latency_s(timing, p, 30, 1) for p in (0, 1))
    assert without == with_matches, "and so to save nothing"


def test_a_difference_is_named_with_its_margin(deep: LoadedModel) -> None:
    ids = deep.encode([TEXT[:4]], chat=False)
    plain = generated(deep, ids, 24)
    assert first_difference(deep, ids, plain, plain) is None
    logits = deep.model(torch.tensor([[*ids, *plain[:3]]])).logits[0, -1]
    other = int(logits.topk(2).indices[1])
    found = first_difference(deep, ids, [*plain[:3], other], plain)
    assert found is not None
    assert (found.position, found.token_id, found.plain_token_id) == (3, other, plain[3])
    assert found.dtype == "float32"
    expected = float(logits[plain[3]] - logits[other])
    assert found.margin == pytest.approx(expected, rel=1e-3, abs=1e-5)
    with pytest.raises(RunFailedError, match="must end alike"):
        first_difference(deep, ids, plain[:3], plain)


@TWO_CPUS
def test_decode(deep: LoadedModel, tmp_path: Path) -> None:
    trace, said = tmp_path / "trace.json", list[int]()
    result = decode(
        deep,
        "the quick",
        PpdSetting(3, 2),
        max_new_tokens=16,
        trace=trace,
        on_token=said.append,
    )
    plain = generated(deep, deep.encode(["the quick"]), 16)
    assert result.token_ids == plain == tuple(said)
    assert result.difference is None
    assert [rival.units for rival in result.rivals] == [1, 2, 1, 2]
    assert all(rival.same and rival.latency for rival in result.rivals)
    assert result.text == deep.decode(plain)
    assert result.predicted_match_rate is None
    assert result.n_trials == 14 == result.n_matched + result.n_late + result.n_wrong
    assert result.match_rate == result.n_matched / 14
    assert result.right_rate == (result.n_matched + result.n_late) / 14
    assert json.loads(trace.read_text())["traceEvents"]


def test_what_is_predicted_of_a_planted_rate() -> None:
    timing, setting = a_timing(), PpdSetting(20, 3)
    seconds = predicted_latency_s(timing, 0.25, 20, 3)
    assert _prediction(setting, Workers(), 0.25, timing) == (0.25, 0.25, seconds)
    assert _prediction(setting, Workers(), 0.0, None) == (0.0, None, None)


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.25, 2), (0.5, 5), (0.96, 10), (1, 10)])
def test_as_many_guesses_are_planted_as_the_share_says(share: float, count: int) -> None:
    """Of 12 tokens 10 could match: token t by the guess of token t - 1."""
    found = plant(range(100, 112), share)
    assert found.token_ids == tuple(range(100, 112))
    assert sum(found.hits) == count
    assert not found.hits[0], "token 1 has no guesses before it"
    assert not found.hits[11], "nothing comes after the last token"
    assert plant(range(100, 112), share) == found
    assert plant([7, 8], share).hits == (False, False)


@TWO_CPUS
@pytest.mark.parametrize(("share", "count"), [(0.5, 11), (0, 0)])
def test_planted_guesses_are_right_exactly_as_often_and_the_text_is_the_same(
    deep: LoadedModel, share: float, count: int
) -> None:
    result = decode(deep, "the quick", PpdSetting(8, 3), max_new_tokens=24, planted=share)
    assert result.token_ids == generated(deep, deep.encode(["the quick"]), 24)
    assert result.difference is None
    assert (result.planted, result.n_trials) == (share, 22)
    assert result.n_matched + result.n_late == count
    assert result.predicted_right_rate == share
    assert result.latency is not None
    assert result.greedy is not None


@TWO_CPUS
def test_token_ids_are_read_as_they_are(deep: LoadedModel) -> None:
    ids = [5, 9, 14]
    result = decode(deep, ids, PpdSetting(8), max_new_tokens=8)
    assert result.token_ids == generated(deep, ids, 8)
    for wrong, words in (([], "got none"), ([5, -1], "got -1"), ([10**6], "got 1000000")):
        with pytest.raises(InvalidInputError, match=f"below the vocabulary of .*; {words}; give"):
            decode(deep, wrong, PpdSetting(8))


@TWO_CPUS
def test_a_text_shorter_than_the_probe(deep: LoadedModel) -> None:
    result = decode(
        deep, "a", PpdSetting(2), prompt_format=PromptFormat(raw=True), max_new_tokens=2
    )
    assert result.token_ids == generated(deep, deep.encode(["a"], False), 2)
    assert result.latency is None
    assert (result.n_trials, result.match_rate, result.right_rate) == (0, None, None)


def test_what_is_not_given_is_what_the_command_takes() -> None:
    own, command = (inspect.signature(made).parameters for made in (decode, decode_command))
    assert own["max_new_tokens"].default == command["max_new_tokens"].default
    assert own["prompt_format"].default == PromptFormat(
        raw=command["raw"].default, system=command["system"].default
    )


def test_a_setting_that_the_model_has_not_is_refused_first(deep: LoadedModel) -> None:
    with pytest.raises(InvalidInputError, match="that is plain greedy decoding"):
        decode(deep, "a", PpdSetting(12))


def test_decode_on_devices(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline_module, "placements", lambda units, device: FAR)
    trace = tmp_path / "trace.json"
    found = decode(
        loaded,
        "the fox",
        PpdSetting(2, 3),
        max_new_tokens=TOKENS,
        workers=Workers(device="cuda"),
        trace=trace,
    )
    assert found.difference is None
    assert found.greedy is not None
    assert found.greedy_same_units is not None
    assert json.loads(trace.read_text())["traceEvents"]
