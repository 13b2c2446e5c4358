"""What a calibration says of the guesses' probabilities."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdmodel import fit, load, save, threshold_report
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.guess_reliability import reliability_of
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.measurement import Guesses, Measurement
from tests.decide.test_threshold_rule import made_up


def quick(*args: object, **options: object) -> Calibration:
    return fit(*args, **options, family="rank tail", resamples=100)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_temperature_is_found(temperature: float) -> None:
    """Probabilities that were made too even or too sharp are made true again, exit by exit."""
    measurement, guesses = made_up(temperature)
    found = quick(measurement, guesses=guesses).reliability
    assert [one.exit_layer for one in found] == [3, 4, 5]
    for one in found:
        assert one.scale == pytest.approx(temperature, rel=0.1)
        assert one.shift == pytest.approx(0, abs=0.1)
        assert one.error < 0.02


def test_it_is_what_the_threshold_rule_uses() -> None:
    measurement, guesses = made_up(2.0)
    report = threshold_report(measurement, guesses, [2.0])
    assert quick(measurement, guesses=guesses).reliability == report.reliability


def some(measurement: Measurement, guesses: Guesses, prompts: range) -> tuple[Measurement, Guesses]:
    """A measurement of some of the prompts, with its guesses."""
    rows = np.isin(measurement.prompt_index, prompts)
    names = [measurement.prompt_ids[n] for n in prompts]
    mine: dict[str, Any] = {
        n: getattr(measurement, n)[rows] for n in ("token_id", "rank", "top_prob")
    }
    both: dict[str, Any] = {
        "prompt_ids": tuple(names),
        "prompt_index": measurement.prompt_index[rows] - prompts.start,
        "turn": measurement.turn[rows],
        "position": measurement.position[rows],
    }
    categories = tuple(measurement.categories[n] for n in prompts)
    theirs = replace(guesses, **both, ids=guesses.ids[rows], probs=guesses.probs[rows])
    return replace(measurement, **both, **mine, categories=categories), theirs


def test_several_measurements_are_taken_together() -> None:
    measurement, guesses = made_up(2.0)
    middle, end = 15, len(measurement.prompt_ids)
    halves = [some(measurement, guesses, r) for r in (range(middle), range(middle, end))]
    parts, theirs = ([half[n] for half in halves] for n in (0, 1))
    whole = quick(measurement, guesses=guesses).reliability
    assert quick(parts, guesses=theirs).reliability == whole
    assert quick(parts, guesses=[theirs[0], None]).reliability == ()
    assert quick(measurement).reliability == ()


def test_too_few_prompts_hold_none_out() -> None:
    measurement, guesses = made_up(2.0)
    assert reliability_of([some(measurement, guesses, range(9))]) == ()
    assert reliability_of([some(measurement, guesses, range(10))]) != ()


def test_it_is_kept_in_the_file(tmp_path: Path) -> None:
    calibration = quick(*made_up(2.0)[:1], guesses=made_up(2.0)[1])
    path = tmp_path / "calibration.json"
    save(calibration, path)
    again = load(path)
    assert isinstance(again, Calibration)
    assert again.reliability == calibration.reliability
    document = json.loads(path.read_text())
    for damage in ({"scale": -1.0}, {"error": 2}, {"shift": "x"}, {"more": 1}):
        broken = [document["reliability"][0] | damage]
        path.write_text(json.dumps(document | {"reliability": broken}))
        with pytest.raises(InvalidInputError, match="reliability"):
            load(path)
    del document["reliability"]  # older files
    path.write_text(json.dumps(document))
    older = load(path)
    assert isinstance(older, Calibration)
    assert older.reliability == ()
    assert np.array_equal(older.hits, calibration.hits)
