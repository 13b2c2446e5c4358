"""Validations of a tiny model: stopped and resumed, of other inputs, and of none that fit."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppdmodel as ppd
from ppdmodel.cli.validate import validate_command
from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.measure.prompts import Prompt
from ppdmodel.pipeline import PpdSetting, ValidationGrid, Workers, validate
from ppdmodel.pipeline import validation as validating
from ppdmodel.pipeline.validation import RUNS_FILE, _run_row, _RunLog
from ppdmodel.pipeline.worker_pool import Run
from ppdmodel.results.calibration import Calibration
from ppdmodel.results.locks import owned
from ppdmodel.results.timing import Timing
from tests.conftest import TEXT
from tests.pipeline.test_prediction_error import a_timing

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="two units need two CPUs, and this machine has one"
)
DATA = Path(__file__).parents[2] / "data"
CALIBRATION = DATA / "smollm2-135m.calibration.json"
#: only the first turn of each is answered
PROMPTS = [Prompt(f"v{n}", TEXT[n : n + 9], later_turns=("and then?",)) for n in range(4)]
GRID = ValidationGrid(exit_layers=(5, 8), ks=(1, 2), fit_prompts=1, max_new_tokens=10, raw=True)


def tiny_rates() -> Calibration:
    """A calibration of twelve layers, from the committed one."""
    found = ppd.load(CALIBRATION)
    assert isinstance(found, Calibration)
    hits = found.hits[:, 17:29]
    rates = hits.sum(0) / found.tokens.sum()
    return replace(found, layers=12, hits=hits, p_correct=rates, ci_low=rates, ci_high=rates)


def test_a_stopped_validation_goes_on(
    deep: LoadedModel, deep_timing: Timing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, out = tiny_rates(), tmp_path / "new" / "v"

    def run(**changes: Any) -> dict[str, Any]:
        return validate(deep, PROMPTS, rates, deep_timing, out, replace(GRID, **changes))

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
    assert len([json.loads(line) for line in after.splitlines()]) == 1 + report["n_runs"]
    assert report["n_other_text"] == 0
    assert (out / "predictions.json").read_bytes() == predicted
    # two of four cells on one prompt to correct, then all four on three prompts
    assert report["n_runs"] == 2 + 4 * 3
    with pytest.raises(InvalidInputError, match="must hold this very validation"):
        run(max_new_tokens=11)
    monkeypatch.delattr(validating, "Pipeline")
    again = run()  # all is done: no unit is started
    assert again.pop("provenance").keys() == report.pop("provenance").keys()
    assert again == report


def test_every_second_setting_corrects(
    deep: LoadedModel, deep_timing: Timing, tmp_path: Path
) -> None:
    timing = replace(deep_timing, by_k={**deep_timing.by_k, 3: deep_timing.by_k[2]})
    samples = {**timing.samples["by_k"], "3": timing.samples["by_k"]["2"]}
    timing = replace(timing, samples={**timing.samples, "by_k": samples})
    done = []
    report = validate(
        deep, PROMPTS[:2], tiny_rates(), timing, tmp_path / "v",
        replace(GRID, max_new_tokens=4, ks=(1, 2, 3)),
        on_progress=lambda stage, share: done.append((stage, share)),
    )  # fmt: skip
    assert [share for _, share in done] == [1, 1], "a prompt corrects, and one judges"
    assert len({stage for stage, _ in done}) == 2
    fitted = [(row["exit_layer"], row["k"]) for row in report["cells"] if not row["held_out"]]
    assert fitted == [(5, 1), (5, 3), (8, 2)]


def test_a_new_timing_is_another_validation(
    deep: LoadedModel, deep_timing: Timing, tmp_path: Path
) -> None:
    out = tmp_path / "v"
    grid = replace(GRID, max_new_tokens=4)
    validate(deep, PROMPTS[:2], tiny_rates(), deep_timing, out, grid)
    other = replace(deep_timing, units=3)
    with pytest.raises(InvalidInputError, match="must hold this very validation"):
        validate(deep, PROMPTS[:2], tiny_rates(), other, out, grid)
    (out / "runs.jsonl").unlink()
    with pytest.raises(InvalidInputError, match="must hold this very validation; got predictions"):
        validate(deep, PROMPTS[:2], tiny_rates(), other, out, grid)


def test_bad_validations(deep: LoadedModel, deep_timing: Timing, tmp_path: Path) -> None:
    for options, words in (
        ({"fit_prompts": 4}, "fit_prompts must leave prompts to judge on; got 4 of 4; use fewer"),
        ({"fit_prompts": 0}, "fit_prompts must leave prompts to judge on; got 0 of 4"),
        ({"exit_layers": ()}, "the grid must have settings"),
        ({"exit_layers": (12,)}, "that is plain greedy decoding"),
        ({"ks": (1, 3)}, "k must be one that was timed"),
    ):
        grid = replace(GRID, **options)
        with pytest.raises(InvalidInputError, match=words):
            validate(deep, PROMPTS, tiny_rates(), deep_timing, tmp_path / "v", grid)
    with pytest.raises(InvalidInputError, match="the formula is about 2 units; got 3"):
        validate(deep, PROMPTS, tiny_rates(), deep_timing, tmp_path / "v", GRID, workers=Workers(3))
    few = tiny_rates()
    few = replace(few, hits=few.hits[..., :1], p_correct=few.p_correct[..., :1])
    with pytest.raises(InvalidInputError, match="it has layers 1 to 12 and k to 1"):
        validate(deep, PROMPTS, few, deep_timing, tmp_path / "v", GRID)
    assert not (tmp_path / "v").exists(), "nothing is written before all is checked"
    with (
        owned(tmp_path / "v"),
        pytest.raises(InvalidInputError, match=f"v, which process {os.getpid()} on .* is using"),
    ):
        validate(deep, PROMPTS, tiny_rates(), deep_timing, tmp_path / "v", GRID)


def test_what_is_not_given_is_what_the_command_takes() -> None:
    grid, command = ValidationGrid((3,)), inspect.signature(validate_command).parameters
    assert command["k"].default == ",".join(map(str, grid.ks))
    for name in ("fit_prompts", "max_new_tokens", "raw", "seed"):
        assert command[name].default == getattr(grid, name)


def test_every_second_square_of_the_grid_is_fitted() -> None:
    for exit_layers, ks in (((3, 1, 2, 2), (1, 2, 4)), ((1, 2, 3), (5, 2)), ((4,), (1, 3))):
        grid = ValidationGrid(exit_layers, ks)
        rows, columns = sorted(set(exit_layers)), sorted(ks)
        assert grid.settings == [PpdSetting(e, k) for e in rows for k in columns]
        chessboard = [
            PpdSetting(e, k)
            for y, e in enumerate(rows)
            for x, k in enumerate(columns)
            if (x + y) % 2 == 0
        ]
        assert grid.fitted == chessboard


def test_a_line_of_the_runs_by_hand() -> None:
    def run(*times: int, ids: tuple[int, ...] = ()) -> Run:
        known = np.cumsum((0, 5, *times)) * 10**9
        matched = np.arange(len(known)) % 2 == 1
        late = np.arange(len(known)) % 4 == 2
        return Run(ids or tuple(range(len(known))), known, matched, late, ())

    prompt, setting = Prompt("a", "text"), PpdSetting(3, 2)
    row = _run_row("fit", prompt, setting, run(1, 2, 3), run(4, 4, 7), run(5, 5, 5))
    assert row == {
        "part": "fit",
        "prompt_id": "a",
        "cell": "e3-k2",
        "n_tokens": 3,
        "n_matched": 1,  # tokens 2, 3 and 4
        "n_late": 1,
        "ppd_s": 6.0,
        "plain_per_token_s": 5.0,
        "plain_before_s": 5.0,
        "plain_after_s": 5.0,
        "same_text": True,
    }
    other = _run_row("fit", prompt, setting, run(1, 2, ids=(0, 1, 2, 9)), run(3, 4), run(5, 6))
    assert (other["plain_before_s"], other["plain_after_s"]) == (3.5, 5.5)
    assert other["plain_per_token_s"] == 4.5
    assert not other["same_text"]
    short = _run_row("fit", prompt, setting, run(1), run(), run(1))
    assert (short["n_tokens"], short["n_matched"], short["plain_per_token_s"]) == (0, 0, None)


def test_a_validation_is_of_the_rates_that_its_predictions_rest_on() -> None:
    """A timing counts apart, and what other methods were counted to do does not count."""
    calibration = ppd.load(CALIBRATION)
    assert isinstance(calibration, Calibration)
    assert calibration.recorded is not None
    other = replace(calibration, recorded=None, timing=a_timing())
    assert validating.rates_of(other) == validating.rates_of(calibration)
    less = replace(calibration, hits=calibration.hits - 1)
    assert validating.rates_of(less) != validating.rates_of(calibration)
    assert validating._sha256({"a": 1, "b": 2}) == validating._sha256({"b": 2, "a": 1})


def test_folders_of_cpus_name_no_device(deep: LoadedModel) -> None:
    for workers, named in ((Workers(), None), (Workers(device="cuda"), "cuda")):
        header = validating._header(deep, PROMPTS, tiny_rates(), a_timing(), GRID, None, workers)
        assert header.get("device") == named
        assert "device" not in header or named


def test_a_file_of_runs_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUNS_FILE).write_text('{"settings": \n')
    with pytest.raises(InvalidInputError, match=r"each line of .* must be JSON; got Expecting"):
        _RunLog(tmp_path, {"model": "m"})
    for first in ("[]", "{}", '{"settings": []}', '{"settings": {"model": "other"}}'):
        (tmp_path / RUNS_FILE).write_text(first + "\n")
        with pytest.raises(InvalidInputError, match="must hold this very validation; got runs"):
            _RunLog(tmp_path, {"model": "m"})


RUN = {"part": "fit", "prompt_id": "a", "cell": "e3-k2", "n_tokens": 3, "n_matched": 1}
RUN |= {"ppd_s": 6.0, "plain_per_token_s": 5.0, "same_text": True}
BAD_RUNS: list[tuple[dict[str, Any], str]] = [
    ({"n_tokens": -1}, "n_tokens: -1 is less than the minimum"),
    ({"n_tokens": 3.0}, "n_tokens: 3.0 is not of type 'integer'"),
    ({"n_matched": 4}, "no more right guesses than tokens; got 4 of 3"),
    ({"n_late": 3}, "no more right guesses than tokens; got 4 of 3"),
    ({"n_late": -1}, "n_late: -1 is less than the minimum"),
    ({"ppd_s": -6.0}, "ppd_s: -6.0 is less than the minimum"),
    ({"ppd_s": "6"}, "ppd_s: '6' is not of type 'number'"),
    ({"plain_per_token_s": -1}, "plain_per_token_s: -1 is less than"),
    ({"cell": None}, "cell: None is not of type 'string'"),
    ({"prompt_id": 3}, "prompt_id: 3 is not of type 'string'"),
    ({"same_text": None}, "same_text: None is not of type 'boolean'"),
    ({"ppd_s": 0}, "times above 0 for its tokens; got ppd_s 0 and plain_per_token_s 5.0"),
    ({"plain_per_token_s": None}, "times above 0 for its tokens; got ppd_s 6.0 and .* None"),
    ({"n_matched": 0}, "be another run than those above; got fit, a, e3-k2 again"),
]


@pytest.mark.parametrize(("change", "words"), BAD_RUNS)
def test_a_run_that_cannot_have_been_is_refused_with_its_line(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    rows = [{"settings": {"model": "m"}}, RUN, RUN | change]
    (tmp_path / RUNS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidInputError, match=f"line 3 of .*{RUNS_FILE} must .*{words}"):
        _RunLog(tmp_path, {"model": "m"})


def test_times_of_runs_are_finite(tmp_path: Path) -> None:
    rows = [json.dumps({"settings": {"model": "m"}}), json.dumps(RUN | {"ppd_s": float("nan")})]
    (tmp_path / RUNS_FILE).write_text("\n".join(rows) + "\n")
    with pytest.raises(InvalidInputError, match="nan at ppd_s, which must be a finite number"):
        _RunLog(tmp_path, {"model": "m"})


def test_a_place_that_cannot_be_written_and_texts_without_tokens(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFailedError, match="must be writable; got Not a directory; choose"):
        _RunLog(tmp_path / "file" / "v", {"model": "m"})
    log = _RunLog(tmp_path / "v", {"model": "m"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.keep([{"part": "held-out", "ppd_s": float("nan")}])
    setting = PpdSetting(3, 1)
    times = dict.fromkeys(("plain_per_token_s", "plain_before_s", "plain_after_s"))
    row = {"part": "held-out", "prompt_id": PROMPTS[0].id, "cell": setting.name, "n_tokens": 0}
    log.keep([row | {"n_matched": 0, "ppd_s": 0.0, "same_text": True} | times])
    with pytest.raises(RunFailedError, match=r"must have tokens; got texts of under 3"):
        log.runs_of("held-out", PROMPTS[:1], [setting])
