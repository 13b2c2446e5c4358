"""`time` and `validate` for real: on the default model, and stopped and resumed on a tiny one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ppdmodel as ppd
from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure import load_model, locate
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.measure.prompts import Prompt
from ppdmodel.pipeline import time_model, validate
from ppdmodel.pipeline import timing as timing_module
from ppdmodel.pipeline import validation as validating
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.io import load_timing
from ppdmodel.results.timing import Timing
from tests.conftest import TEXT, make_tiny_llama
from tests.pipeline.test_prediction_error import a_timing

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="two units need two CPUs, and this machine has one"
)
DATA = Path(__file__).parents[2] / "data"
CALIBRATION = DATA / "smollm2-135m.calibration.json"
PROMPTS = [Prompt(f"v{n}", TEXT[n : n + 9]) for n in range(4)]
STEADY: dict[str, Any] = {"raw": True, "max_new_tokens": 10, "ks": (1, 2), "exit_layers": (5, 8)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny"), layers=12)
    return load_model(locate(str(folder)))


def tiny_rates() -> Calibration:
    """A calibration of twelve layers, from the committed one."""
    found = ppd.load(CALIBRATION)
    assert isinstance(found, Calibration)
    hits = found.hits[:, 17:29]
    rates = hits.sum(0) / found.tokens.sum()
    return replace(found, layers=12, hits=hits, p_correct=rates, ci_low=rates, ci_high=rates)


@pytest.fixture(scope="module")
def tiny_timing(tiny: LoadedModel) -> Timing:
    steady = timing_module.MAX_SPREAD
    timing_module.MAX_SPREAD = 10.0  # other tests may share this machine
    try:
        return time_model(tiny, ks=(1, 2), rounds=4)
    finally:
        timing_module.MAX_SPREAD = steady


def test_the_default_model_from_time_to_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts, 32 tokens, four settings, by the commands that users type."""
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(timing_module, "EXIT_DEPTHS", (0.5, 0.9))
    monkeypatch.setattr(timing_module, "TOKENS", 12)
    monkeypatch.setattr(timing_module, "CONTEXT", 16)
    timing, out = tmp_path / "timing.json", tmp_path / "v"
    assert run_command(["time", "--k", "1,3", "--rounds", "4", "--out", str(timing)]) == 0
    assert "guesses' layer" in capsys.readouterr().out
    terms = load_timing(timing).terms
    assert 2 < terms["head_time_s"].value / terms["layer_time_s"].value < 20
    parts = 30 * terms["layer_time_s"].value + terms["head_time_s"].value
    assert parts + terms["token_time_s"].value == pytest.approx(
        terms["plain_latency_s"].value, rel=0.3
    )
    command = [
        "validate", "--calibration", str(CALIBRATION), "--timing", str(timing), "--limit", "2",
        "--fit-prompts", "1", "--max-new-tokens", "32", "--exit-layers", "20,25", "--k", "1,3",
        "--out", str(out),
    ]  # fmt: skip
    assert run_command([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["cells"]) == 4
    assert report["held_out"]["n_cells"] == 2
    assert report["n_other_text"] == 0, "the same tokens as plain decoding"
    for row in report["cells"]:
        assert 0.2 < row["measured"] < 5
        assert row["predicted"] == pytest.approx(row["measured"] * (1 + row["error"]))
    runs = (out / "runs.jsonl").read_text()
    written = (out / "predictions.json").read_bytes()
    assert run_command(command) == 0, "all is done: nothing is run again"
    assert "settings not fitted" in capsys.readouterr().out
    assert (out / "runs.jsonl").read_text() == runs
    assert (out / "predictions.json").read_bytes() == written
    figure = tmp_path / "f.png"
    assert run_command(["plot", str(out), "--kind", "predicted", "--out", str(figure)]) == 0
    assert figure.stat().st_size > 10_000


def test_a_timing_of_the_tiny_model(tiny: LoadedModel, tiny_timing: Timing, tmp_path: Path) -> None:
    assert tiny_timing.layers == len(tiny_timing.layer_profile_s) == 12
    assert set(tiny_timing.by_k) == {1, 2}
    assert tiny_timing.exit_layers == (3, 6, 9, 11)
    of_ppd = [term for each in tiny_timing.by_k[2].values() for term in each]
    assert len(of_ppd) == 8 * 4
    for term in (*tiny_timing.terms.values(), *of_ppd):
        assert 0 <= term.ci_low <= term.value <= term.ci_high < 1
        assert term.n == 4
    ppd.save(tiny_timing, tmp_path / "t.json")
    assert ppd.load(tmp_path / "t.json") == tiny_timing


def test_an_unsteady_machine_is_refused(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 0.0)
    with pytest.raises(RunFailedError, match=r"must spread by at most 0% .* stop other work"):
        time_model(tiny, ks=(1,), rounds=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"ks": ()}, "k must have values"), ({"rounds": 3}, "at least 4"), ({"ks": (0,)}, "positive")],
)
def test_a_timing_of_nothing(tiny: LoadedModel, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        time_model(tiny, **options)


def test_a_stopped_validation_goes_on(
    tiny: LoadedModel, tiny_timing: Timing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, out = tiny_rates(), tmp_path / "v"

    def run(**changes: Any) -> dict[str, Any]:
        options = {"fit_prompts": 1} | STEADY | changes
        return validate(tiny, PROMPTS, rates, tiny_timing, out, **options)

    keep = validating._RunLog.keep
    kept: list[int] = []

    def stopping(after: int) -> Callable[..., None]:
        def wrapped(book: Any, rows: Any) -> None:
            keep(book, rows)
            kept.append(len(rows))
            if len(kept) == after:
                raise KeyboardInterrupt

        return wrapped

    monkeypatch.setattr(validating._RunLog, "keep", stopping(3))
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(validating._RunLog, "keep", keep)
    before = (out / "runs.jsonl").read_text()
    with (out / "runs.jsonl").open("a") as file:
        file.write('{"part": "held-out", "prompt_id": "v')  # killed in the middle of a line
    predicted = (out / "predictions.json").read_bytes()
    report = run()
    after = (out / "runs.jsonl").read_text()
    assert after.startswith(before)
    assert (out / "predictions.json").read_bytes() == predicted
    # two of four cells on one prompt to correct, then all four on three prompts
    assert report["n_runs"] == 2 + 4 * 3
    with pytest.raises(InvalidInputError, match="must hold this very validation"):
        run(max_new_tokens=11)


def test_every_second_setting_corrects(
    tiny: LoadedModel, tiny_timing: Timing, tmp_path: Path
) -> None:
    timing = replace(tiny_timing, by_k={**tiny_timing.by_k, 3: tiny_timing.by_k[2]})
    samples = {**timing.samples["by_k"], "3": timing.samples["by_k"]["2"]}
    timing = replace(timing, samples={**timing.samples, "by_k": samples})
    report = validate(
        tiny, PROMPTS[:2], tiny_rates(), timing, tmp_path / "v", fit_prompts=1, raw=True,
        max_new_tokens=4, exit_layers=(5, 8), ks=(1, 2, 3),
    )  # fmt: skip
    fitted = [(row["exit_layer"], row["k"]) for row in report["cells"] if not row["held_out"]]
    assert fitted == [(5, 1), (5, 3), (8, 2)]


def test_a_new_timing_is_another_validation(
    tiny: LoadedModel, tiny_timing: Timing, tmp_path: Path
) -> None:
    out = tmp_path / "v"
    options = {"fit_prompts": 1} | STEADY | {"max_new_tokens": 4}
    validate(tiny, PROMPTS[:2], tiny_rates(), tiny_timing, out, **options)
    other = replace(tiny_timing, units=3)
    with pytest.raises(InvalidInputError, match="must hold this very validation"):
        validate(tiny, PROMPTS[:2], tiny_rates(), other, out, **options)
    (out / "runs.jsonl").unlink()
    with pytest.raises(InvalidInputError, match=r"predictions.json must be of this very"):
        validate(tiny, PROMPTS[:2], tiny_rates(), other, out, **options)


def test_bad_validations(tiny: LoadedModel, tiny_timing: Timing, tmp_path: Path) -> None:
    for options, words in (
        ({"fit_prompts": 4}, "fit_prompts must leave prompts to judge on; got 4 of 4; use fewer"),
        ({"exit_layers": ()}, "the grid must have cells"),
        ({"exit_layers": (12,)}, "that is plain greedy decoding"),
        ({"ks": (1, 3)}, "k must be one that was timed"),
        ({"units": 3}, "the formula is about 2 units"),
    ):
        given = {"fit_prompts": 1} | STEADY | options
        with pytest.raises(InvalidInputError, match=words):
            validate(tiny, PROMPTS, tiny_rates(), tiny_timing, tmp_path / "v", **given)


def test_a_place_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "x.json")
    for command in (
        ["time", "--out", place],
        ["decode", "--exit-layer", "2", "--prompt", "x", "--trace", place],
    ):
        assert run_command([*command, "--model", "no such model"]) == 1
        assert "x.json must be writable" in capsys.readouterr().err
    new = tmp_path / "new" / "x.json"
    assert run_command(["time", "--out", str(new), "--model", "no such model"]) != 0
    assert not new.parent.exists(), "nothing is left of the trial"


def test_results_of_something_else_are_refused(
    tiny: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ppd.save(a_timing(), tmp_path / "other.json")
    common = ["decode", "--model", str(tiny.source.folder), "--prompt", "x", "--exit-layer", "3"]
    for option, words in (
        (
            ["--calibration", str(CALIBRATION)],
            "the calibration must be of the model, number type and exits that run; got",
        ),
        (
            ["--timing", str(tmp_path / "other.json")],
            "the timing must be of the model, number type and exits that run; got",
        ),
        (["--timing", str(CALIBRATION)], "the file must be a ppdmodel/timing"),
    ):
        assert run_command([*common, *option]) == 2
        assert words in capsys.readouterr().err
    trained = CALIBRATION.with_name("smollm2-135m-trained.calibration.json")
    command = ["decode", "--prompt", "x", "--exit-layer", "20", "--calibration", str(trained)]
    assert run_command(command) == 2
    words = "a calibration with exit_kind 'trained' instead of 'logit'; make one of these"
    assert words in capsys.readouterr().err


def test_a_timing_of_another_machine_is_used_with_a_warning(
    tiny: LoadedModel, tiny_timing: Timing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {**tiny_timing.provenance, "machine": "an abacus, 10 CPUs"}
    ppd.save(replace(tiny_timing, provenance=about), tmp_path / "t.json")
    command = ["decode", "--model", str(tiny.source.folder), "--prompt", "a fox", "--raw"]
    command += ["--exit-layer", "8", "--k", "2", "--max-new-tokens", "8", "--json"]
    assert run_command([*command, "--timing", str(tmp_path / "t.json")]) == 0
    said = capsys.readouterr()
    assert "WARNING: the timing is of another machine (an abacus, 10 CPUs)" in said.err
    assert json.loads(said.out)["match_rate"] is not None


def test_a_validation_is_of_the_rates_that_its_predictions_rest_on() -> None:
    """A timing counts apart, and what other methods were counted to do does not count."""
    calibration = ppd.load(CALIBRATION)
    assert isinstance(calibration, Calibration)
    assert calibration.recorded is not None
    other = replace(calibration, recorded=None, timing=a_timing())
    assert validating.rates_of(other) == validating.rates_of(calibration)
    less = replace(calibration, hits=calibration.hits - 1)
    assert validating.rates_of(less) != validating.rates_of(calibration)
