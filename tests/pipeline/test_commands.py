"""`time`, `validate` and `decode` as users type them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import ppdmodel as ppd
from ppdmodel.cli import run as run_command
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.pipeline import timing as timing_module
from ppdmodel.pipeline import worker_pool
from ppdmodel.results.compatibility import MODEL_KEYS
from ppdmodel.results.io import load_timing
from ppdmodel.results.locks import LOCK_FILE
from ppdmodel.results.timing import Timing
from tests.conftest import make_measurement
from tests.pipeline.conftest import TWO_CPUS
from tests.pipeline.test_prediction_error import a_timing
from tests.pipeline.test_random_weights import written
from tests.support.runs import before_changes, replace_folder, snapshot, write_prompts

pytestmark = TWO_CPUS
#: sizes of a shape whose layers are so slow that guesses are in time while other tests run
SLOW = {"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 1024}
DATA = Path(__file__).parents[2] / "data"
CALIBRATION = DATA / "smollm2-135m.calibration.json"
#: commands as far as their last option, a file
RUNS = {
    "decode": ["--exit-layer", "2", "--prompt", "x", "--trace"],
    "time": ["--out"],
    "validate": ["--calibration", "data/smollm2-135m.json", "--out"],
}


def test_the_default_model_from_time_to_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts, four settings, by the commands that users type, on processes that they spawn."""
    monkeypatch.setattr(worker_pool, "START_METHOD", "spawn")
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(timing_module, "EXIT_DEPTHS", (0.5, 0.9))
    monkeypatch.setattr(timing_module, "TOKENS", 6)
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
        "--fit-prompts", "1", "--max-new-tokens", "16", "--exit-layers", "20,25", "--k", "1,3",
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
        assert row["right_rate"] == pytest.approx(row["match_rate"] + row["late_rate"])
        assert row["predicted_match_rate"] <= row["predicted_right_rate"]
    runs = (out / "runs.jsonl").read_text()
    written = (out / "predictions.json").read_bytes()
    assert run_command(command) == 0, "all is done: nothing is run again"
    assert "settings not fitted" in capsys.readouterr().out
    assert (out / "runs.jsonl").read_text() == runs
    assert (out / "predictions.json").read_bytes() == written
    figure = tmp_path / "f.png"
    assert run_command(["plot", str(out), "--kind", "predicted", "--out", str(figure)]) == 0
    assert figure.stat().st_size > 10_000


def test_a_place_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "x.json")
    for command in (
        ["time", "--out", place],
        ["decode", "--exit-layer", "2", "--prompt", "x", "--trace", place],
    ):
        assert run_command([*command, "--model", "no such model"]) == 2
        assert "got Not a directory for" in capsys.readouterr().err
    new = tmp_path / "new" / "x.json"
    assert run_command(["time", "--out", str(new), "--model", "no such model"]) != 0
    assert not new.parent.exists(), "nothing is left of the trial"


def test_results_of_something_else_are_refused(
    deep: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ppd.save(a_timing(), tmp_path / "other.json")
    common = ["decode", "--model", str(deep.source.folder), "--prompt", "x", "--exit-layer", "3"]
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
    deep: LoadedModel, deep_timing: Timing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {**deep_timing.provenance, "machine": "an abacus, 10 CPUs"}
    ppd.save(replace(deep_timing, provenance=about), tmp_path / "t.json")
    command = ["decode", "--model", str(deep.source.folder), "--prompt", "a fox", "--raw"]
    command += ["--exit-layer", "8", "--k", "2", "--max-new-tokens", "8", "--json"]
    assert run_command([*command, "--timing", str(tmp_path / "t.json")]) == 0
    said = capsys.readouterr()
    assert "WARNING: the timing is of another machine (an abacus, 10 CPUs)" in said.err
    assert json.loads(said.out)["match_rate"] is not None


def test_decode_by_command(
    deep: LoadedModel, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = str(deep.source.folder)
    common = ["decode", "--model", folder, "--prompt", "the fox", "--max-new-tokens", "12"]
    assert run_command([*common, "--exit-layer", "3", "--k", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = (
        "token_ids text match_rate latency_per_token_s predicted_match_rate "
        "predicted_latency_per_token_s greedy_latency_per_token_s "
        "greedy_same_units_latency_per_token_s"
    )
    assert set(names.split()) <= set(found)
    assert len(found["token_ids"]) == 12
    assert found["n_matched"] + found["n_late"] + found["n_wrong"] == found["n_trials"] == 10
    assert found["match_rate"] == found["n_matched"] / 10
    assert found["right_rate"] == (found["n_matched"] + found["n_late"]) / 10
    assert run_command([*common, "--exit-layer", "3", "--trace", str(tmp_path / "t.json")]) == 0
    shown = capsys.readouterr().out
    assert "plain decoding, tensor parallel" in shown
    assert "12 tokens, the same as plain decoding's" in shown


def test_a_shape_without_weights_from_time_to_a_planted_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(timing_module, "EXIT_DEPTHS", (0.25,))
    config, timing = written(tmp_path, **SLOW), str(tmp_path / "timing.json")
    shape = ["--config", config, "--random-weights"]
    command = ["time", *shape, "--k", "2", "--rounds", "4", "--out", timing]
    assert run_command(command) == 0
    said = capsys.readouterr()
    assert "RANDOM WEIGHTS: times of this shape" in said.out
    assert f"RANDOM WEIGHTS: {tmp_path.name} with random weights has times" in said.err
    assert load_timing(timing).has_random_weights
    run = ["--exit-layer", "6", "--k", "2", "--max-new-tokens", "12", "--json"]
    run += ["--planted", "0.5", "--timing", timing]
    assert run_command(["decode", *shape, *run]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["right_rate"], found["n_trials"], found["planted"]) == (0.5, 10, 0.5)
    assert found["random_weights"] is True
    assert found["text"] == " ".join(map(str, found["token_ids"]))
    assert found["predicted_latency_per_token_s"] > 0
    assert run_command(["decode", "--prompt", "x", *run]) == 2
    words = "random weights must not be mixed with those of a model; got a timing of "
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--exit-layer", "12"], "that is plain greedy decoding"),
        (["--exit-layer", "13"], "exit_layer must not exceed layers"),
        (["--exit-layer", "2", "--units", "4096"], "units must not exceed the CPUs"),
        (["--exit-layer", "2", "--units", "1"], "units must be at least 2"),
        (["--exit-layer", "2", "--max-new-tokens", "99999999"], "must fit the model's context"),
        (["--exit-layer", "2", "--calibration", "nowhere.json"], "the result must exist"),
        (["--exit-layer", "2", "--prompt", " "], "the prompt must have text"),
        (["--exit-layer", "2", "--k", "0"], "k must be a positive integer"),
        (["--exit-layer", "2", "--k", "999"], "k must not exceed the vocabulary"),
    ],
)
def test_bad_commands(
    deep: LoadedModel,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    command = ["decode", "--model", str(deep.source.folder), "--prompt", "x", *arguments]
    assert run_command(command) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line != "loading ..."]
    assert words in error[-1]


@pytest.mark.parametrize("command", ["decode", "time", "validate"])
def test_more_units_than_there_could_be(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for device in ("cpu", "cuda"):
        words = [*RUNS[command], str(tmp_path / "x"), "--units", str(10**12), "--device", device]
        assert run_command([command, *words]) == 2
        assert "units must not exceed the CPUs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["decode", "time", "validate"])
def test_a_device_that_is_not_there(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*RUNS[command], str(tmp_path / "x"), "--device", "cuda:0,cuda:99"]
    assert run_command([command, *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "units must not exceed the CUDA devices; got cuda:0, cuda:99" in error[0]


@pytest.mark.parametrize(
    ("words", "changes", "names"),
    [
        ("time --model {model} --k 1 --rounds 4 --out {out}/t.json", 1, {"t.json"}),
        (
            "decode --model {model} --prompt x --raw --exit-layer 8 --max-new-tokens 4 "
            "--trace {out}/t.json",
            1,
            {"t.json"},
        ),
        (
            "validate --model {model} --raw --prompts {prompts} --limit 2 --fit-prompts 1 --k 1 "
            "--exit-layers 6,9 --max-new-tokens 5 --calibration {rates} --timing {timing} "
            "--out {out}",
            2,
            {"predictions.json", "runs.jsonl", "validation.json"},
        ),
    ],
    ids=["time", "decode", "validate"],
)
def test_killed_before_a_file_gets_its_name_the_same_command_ends_as_if_it_had_not_been(
    deep: LoadedModel,
    deep_timing: Timing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    changes: int,
    names: set[str],
) -> None:
    """A copy of the folder made then is what SIGKILL leaves: a part of a file, which goes."""
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(timing_module, "EXIT_DEPTHS", (0.25,))
    about = {name: deep_timing.provenance.get(name) for name in MODEL_KEYS}
    made = make_measurement(prompts=8, tokens=6, layers=deep.layers)
    made = replace(made, provenance={**made.provenance, **about})
    rates = ppd.fit(made, k_max=2, family="rank tail", resamples=400)
    out = tmp_path / "out"
    places = {"rates": tmp_path / "rates.json", "timing": tmp_path / "timing.json"}
    ppd.save(rates, places["rates"])
    ppd.save(deep_timing, places["timing"])
    prompts = write_prompts(tmp_path / "prompts.jsonl", 2)
    command = words.format(model=deep.source.folder, out=out, prompts=prompts, **places).split()
    copies: list[Path] = []
    watching = [True]

    def copy(number: int) -> None:
        if watching[0] and len(list(out.glob(".*.part-*"))) == 1:
            copies.append(Path(shutil.copytree(out, tmp_path / f"copy-{number}")))

    out.mkdir()
    before_changes(out, copy)
    assert run_command(command) == 0
    watching[0] = False
    assert len(copies) == changes
    for left in copies:
        replace_folder(out, left)
        kept = {name: data for name, data in snapshot(left).items() if name in names}
        assert run_command(command) == 0
        after = snapshot(out)
        assert after.keys() - {LOCK_FILE} == names
        assert all(after[name].startswith(data) for name, data in kept.items()), "it is kept"
