"""The times of a run of PPD, read off its events, by hand; and where they are timed."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppdmodel as ppd
from ppdmodel.cli.time import time_command
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure.models.loading import LoadedModel, load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.pipeline import Workers, time_model
from ppdmodel.pipeline import pipeline as pipeline_module
from ppdmodel.pipeline import timing as timing_module
from ppdmodel.pipeline.options import RunOptions
from ppdmodel.pipeline.pipeline import Pipeline
from ppdmodel.pipeline.timing import (
    _filled,
    _Repetitions,
    plain_terms,
    ppd_terms,
    spread,
    timed,
    timed_exit_layers,
)
from ppdmodel.pipeline.trace import EventKind
from ppdmodel.pipeline.worker_pool import Run
from ppdmodel.results.timing import Timing
from tests.conftest import make_tiny_llama
from tests.pipeline.conftest import FAR, TWO_CPUS

LAYER, HEAD, EXIT = EventKind.LAYER, EventKind.HEAD, EventKind.EXIT


def a_run(units: list[list[Any]], verdicts: list[int], matched: list[bool]) -> Run:
    """Events as (start, end, did, token, layer, rows), in seconds."""
    events = tuple(
        np.array([[s * 10**9, e * 10**9, int(did), *what] for s, e, did, *what in unit])
        for unit in units
    )
    times = np.array(verdicts) * 10**9
    return Run((7,) * len(verdicts), times, np.array(matched), np.zeros(len(matched), bool), events)


def test_the_times_of_a_run() -> None:
    """Three layers, exit after the second: a token after a miss, and one that was guessed."""
    first = [
        (102, 105, LAYER, 2, 1, 1),  # 2 s after the verdict on token 1
        (105, 107, LAYER, 2, 2, 1),
        (108, 112, LAYER, 2, 3, 1),
        (113, 123, HEAD, 2, 0, 1),
        (131, 135, EXIT, 3, 2, 1),  # guesses for token 4
        (136, 143, LAYER, 4, 1, 4),
        (145, 152, LAYER, 4, 2, 4),  # in flight at the verdict
        (153, 154, EventKind.DROP, 4, 2, 4),
    ]
    second = [
        (109, 114, EXIT, 2, 2, 1),
        (115, 124, LAYER, 3, 1, 4),  # in flight at the verdict
        (124, 125, EventKind.PROMOTE, 3, 1, 1),
        (126, 130, LAYER, 3, 2, 1),
        (130, 137, LAYER, 3, 3, 1),
        (138, 150, HEAD, 3, 0, 1),
    ]
    run = a_run([first, second], [50, 100, 123, 150], [False, False, False, True])
    assert ppd_terms(run, layers=3, exit_layer=2) == {
        "layer_time": pytest.approx((6 + 4) / 3),  # layers 1 and 2 of token 2, layer 2 of token 3
        "busy_layer_time": (5 + 8) / 2,
        "batch_layer_time": 9,
        "head_time": (10 + 12) / 2,
        "exit_time": (5 + 4) / 2,
        "token_time": 2,
        "start_delay": (2 + 1) / 2,
        "promotion_delay": 2,
    }


def test_a_guess_of_one_row_is_no_verified_layer() -> None:
    """With k = 1 the layers of both look alike; here the guess has run them all."""
    guess = [
        (90, 95, EXIT, 1, 1, 1),
        (95, 97, LAYER, 2, 1, 1),
        (97, 99, LAYER, 2, 2, 1),
        (100, 103, EventKind.PROMOTE, 2, 2, 1),
        (104, 110, HEAD, 2, 0, 1),
    ]
    found = ppd_terms(a_run([guess], [50, 100, 110], [False, False, True]), 2, 1)
    assert found == {
        "layer_time": None,
        "busy_layer_time": None,
        "batch_layer_time": 2,
        "head_time": 6,
        "exit_time": 5,
        "token_time": None,
        "start_delay": None,
        "promotion_delay": 4,
    }


def test_an_exit_that_is_read_early_and_a_layer_that_begins_with_the_verdict() -> None:
    """Both delays are 0, whatever the clocks of two units say."""
    verified = [(100, 105, LAYER, 2, 1, 1), (105, 107, LAYER, 2, 2, 1), (108, 118, HEAD, 2, 0, 1)]
    run = a_run([verified, [(104, 106, EXIT, 2, 1, 1)]], [50, 100, 118], [False] * 3)
    assert ppd_terms(run, 2, 1) == {
        "layer_time": 5,
        "busy_layer_time": 3,
        "batch_layer_time": None,
        "head_time": 10,
        "exit_time": 2,
        "token_time": 0,
        "start_delay": 0,
        "promotion_delay": None,
    }


def test_what_never_happened_is_taken_from_the_nearest_exit() -> None:
    assert _filled("exit_time", [None, 2.0, 3.0, None]) == [2.0, 2.0, 3.0, 3.0]
    with pytest.raises(RunFailedError, match=r"PPD must show its promotion_delay .* in time"):
        _filled("promotion_delay", [None, None])


@pytest.mark.parametrize(
    ("layers", "expected"), [(3, (1, 2)), (12, (3, 6, 9, 11)), (30, (8, 15, 23, 27))]
)
def test_ppd_is_timed_at_several_depths(layers: int, expected: tuple[int, ...]) -> None:
    assert timed_exit_layers(layers) == expected


def test_the_spread_of_repetitions() -> None:
    samples = [{"layer_time_s": t} for t in (4.0, 1.0, 2.0, 3.0, 5.0)]
    assert spread(samples) == pytest.approx((4 - 2) / 3)


def test_the_terms_of_a_plain_run() -> None:
    """Two layers: 2 and 3 s, 4 and 3 s; heads of 1 and 3 s; tokens of 7 and 13 s."""
    unit = [
        (0, 9, EventKind.PROMPT, 0, 0, 3),
        (9, 10, HEAD, 0, 0, 1),
        (10, 12, LAYER, 1, 1, 1),
        (12, 15, LAYER, 1, 2, 1),
        (15, 16, HEAD, 1, 0, 1),
        (17, 21, LAYER, 2, 1, 1),
        (21, 24, LAYER, 2, 2, 1),
        (24, 27, HEAD, 2, 0, 1),
    ]
    for known, rest in (
        ([10, 16, 27, 38], 3.0),  # 11 s a token, less two layers and a head
        ([10, 16, 23, 30], 0.0),  # no less than nothing
    ):
        assert plain_terms(a_run([unit, []], known, [False] * 4), 2) == {
            "layer_time_s": 3.0,
            "head_time_s": 2.0,
            "token_time_s": rest,
            "layers_s": [3.0, 3.0],
        }


def test_the_median_of_repetitions_and_its_interval() -> None:
    found = timed([1.0, 2.0, 3.0, 10.0, 2.5])
    assert (found.value, found.n) == (2.5, 5)
    assert 1.0 <= found.ci_low < 2.5 < found.ci_high <= 10.0
    assert timed([3.0] * 4).ci_low == timed([3.0] * 4).ci_high == 3.0


@TWO_CPUS
def test_a_timing_of_the_tiny_model(deep: LoadedModel, deep_timing: Timing, tmp_path: Path) -> None:
    assert deep_timing.layers == len(deep_timing.layer_profile_s) == 12
    assert set(deep_timing.by_k) == {1, 2}
    assert deep_timing.exit_layers == (3, 6, 9, 11)
    of_ppd = [term for each in deep_timing.by_k[2].values() for term in each]
    assert len(of_ppd) == 8 * 4
    for term in (*deep_timing.terms.values(), *of_ppd):
        assert 0 <= term.ci_low <= term.value <= term.ci_high < 1
        assert term.n == 4
    about = {"exit_kind": "logit", "exits_sha256": None, "units": 2, "threads_per_unit": 1}
    assert about.items() <= deep_timing.provenance.items()
    ppd.save(deep_timing, tmp_path / "t.json")
    assert ppd.load(tmp_path / "t.json") == deep_timing


@TWO_CPUS
def test_an_unsteady_machine_is_refused(deep: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """After all repetitions were made twice."""
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 0.0)
    monkeypatch.setattr(timing_module, "TOKENS", 8)
    done: list[float] = []
    with pytest.raises(RunFailedError, match=r"must spread by at most 0% .* stop other work"):
        time_model(deep, ks=(1,), rounds=4, on_progress=done.append)
    assert done == [0.25, 0.5, 0.75, 1] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [({"ks": ()}, "k must have values"), ({"rounds": 3}, "at least 4"), ({"ks": (0,)}, "positive")],
)
def test_a_timing_of_nothing(deep: LoadedModel, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        time_model(deep, **options)


def test_timing_on_devices(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "placements", lambda units, device: FAR)
    monkeypatch.setattr(timing_module, "machine", " and ".join)
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(timing_module, "TOKENS", 8)
    monkeypatch.setattr(timing_module, "EXIT_DEPTHS", (0.5,))
    done, timed_by_layer, greedy = list[float](), list[bool](), Pipeline.greedy

    def recorded(self: Pipeline, ids: Any, tokens: int, options: RunOptions) -> Run:
        timed_by_layer.append(options.timed)
        return greedy(self, ids, tokens, options)

    monkeypatch.setattr(Pipeline, "greedy", recorded)
    timing = time_model(
        loaded, ks=(2,), rounds=4, workers=Workers(device="cuda"), on_progress=done.append
    )
    assert set(zip(timed_by_layer[::2], timed_by_layer[1::2], strict=True)) == {(False, True)}
    assert done[:4] == [0.25, 0.5, 0.75, 1]
    assert timing.provenance["machine"] == "far:0 and far:1"
    assert timing.provenance["devices"] == ["far:0", "far:1"]
    assert timing.terms["layer_time_s"].value > 0


@TWO_CPUS
def test_a_model_of_two_layers_has_no_room(tmp_path: Path) -> None:
    for layers in (2, 3):
        model = load_model(locate(str(make_tiny_llama(tmp_path / str(layers), layers=layers))))
        pipeline = Pipeline(model, prompt_tokens=8, tokens=8)
        if layers == 3:
            assert _Repetitions(pipeline, [1], (1,)).exit_layers == (1, 2)
            continue
        words = "the model must have at least 3 layers; got 2;"
        with pytest.raises(InvalidInputError, match=words):
            _Repetitions(pipeline, [1], (1,))


def test_what_is_not_given_is_what_the_command_takes() -> None:
    own, command = (inspect.signature(made).parameters for made in (time_model, time_command))
    assert ",".join(map(str, own["ks"].default)) == command["k"].default
    assert own["rounds"].default == command["rounds"].default
