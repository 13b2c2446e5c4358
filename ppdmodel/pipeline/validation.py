"""Predict a grid of settings, then run it, interleaved with plain decoding."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..decide.prediction import predicted_match_rate
from ..errors import InvalidInputError, RunFailedError, excerpt
from ..measure.models.loading import LoadedModel
from ..measure.options import PromptFormat
from ..measure.prompts import Prompt, token_ids_sha256
from ..measure.training.trained_exits import TrainedExits
from ..results import files
from ..results.calibration import Calibration
from ..results.compatibility import TOKEN_IDS, check_agree, check_texts
from ..results.locks import owns_out
from ..results.timing import Timing
from .devices import CPU
from .options import TWO_CPUS, WARM_UP_TOKENS, PpdSetting, Workers
from .pipeline import Pipeline
from .prediction_error import (
    Corrections,
    Prediction,
    SettingRuns,
    coverage_over_splits,
    error_row,
    errors_summary,
    excluding_prompts,
    fit_corrections,
    predict,
    predicted_ratio,
)
from .timing import timing_provenance
from .worker_pool import Run, placements

RUNS_FILE, PREDICTIONS_FILE = "runs.jsonl", "predictions.json"
#: fields of a calibration that predictions of fixed settings do not use
NOT_PREDICTIVE = ("timing", "recorded", "reliability")
#: the two parts of the runs
FIT, HELD_OUT = "fit", "held-out"
#: settings that are run between two runs of plain decoding
SETTINGS_PER_BASELINE = 2


@dataclass(frozen=True)
class ValidationGrid(PromptFormat):
    """The settings of a validation, and how they are run, besides the format of the prompts.

    Attributes:
        exit_layers: where guesses are read.
        ks: numbers of guesses, which the timing must have.
        fit_prompts: prompts for the corrections; at least 1.
        max_new_tokens: most tokens of a text.
        seed: of the order of the runs, and of the intervals.
    """

    exit_layers: Sequence[int]
    ks: Sequence[int] = (1, 3, 5)
    fit_prompts: int = 3
    max_new_tokens: int = 64
    seed: int = 0

    @property
    def settings(self) -> list[PpdSetting]:
        """Every exit layer with every k, in order."""
        exit_layers, ks = sorted(set(self.exit_layers)), sorted(set(self.ks))
        return [PpdSetting(e, k) for e in exit_layers for k in ks]

    @property
    def fitted(self) -> list[PpdSetting]:
        """Every second setting, as the squares of one colour of a chessboard."""
        columns = len(set(self.ks))
        return [s for n, s in enumerate(self.settings) if sum(divmod(n, columns)) % 2 == 0]

    def check(self, layers: int, n_prompts: int) -> list[PpdSetting]:
        """The settings; raises `InvalidInputError` unless they can be run."""
        if not 1 <= self.fit_prompts < n_prompts:
            raise InvalidInputError(
                f"fit_prompts must leave prompts to judge on; got {self.fit_prompts} of "
                f"{n_prompts}; use fewer, or give more prompts"
            )
        settings = self.settings
        if not settings:
            raise InvalidInputError("the grid must have settings; got none; give exit layers and k")
        for setting in settings:
            setting.check(layers)
        return settings


@owns_out
def validate(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    calibration: Calibration,
    timing: Timing,
    out: Path,
    grid: ValidationGrid,
    *,
    exits: TrainedExits | None = None,
    workers: Workers = TWO_CPUS,
    on_progress: Callable[[str, float], None] = lambda stage, share: None,
) -> dict[str, Any]:
    """Predict the latency of every setting, run it, and write both.

    Every second setting of the grid is run on the first `fit_prompts` prompts, and the timing is
    corrected to fit. The predictions for the other prompts are then written to `predictions.json`
    and never changed, and all settings are run on those prompts. Errors are reported for the
    settings that were not fitted. An interrupted validation resumes from its finished runs; where
    all are finished no unit is started.

    Args:
        loaded: a model of the Llama architecture, loaded on the CPU.
        prompts: to run, more than `fit_prompts`; their rates in the calibration are not used.
        calibration: match rates.
        timing: times of layers and heads on this machine.
        out: a folder.
        grid: the settings, and how they are run.
        exits: trained exits, those of the calibration.
        workers: the devices of 2 units.
        on_progress: called with the stage and the fraction of it that is done.

    Returns:
        The report, as in `validation.json`.

    Raises:
        InvalidInputError: an argument does not fit, or the folder has another validation.
        RunFailedError: a unit failed.
    """
    settings = grid.check(loaded.layers, len(prompts))
    if workers.units != 2:
        raise InvalidInputError(
            f"the formula is about 2 units; got {workers.units}; leave --units out"
        )
    others = excluding_prompts(calibration, [prompt.id for prompt in prompts])
    read = grid.encode(loaded, prompts)
    ids = {prompt.id: mine for prompt, mine in zip(prompts, read, strict=True)}
    header = _header(loaded, prompts, others, timing, grid, exits, workers)
    header[TOKEN_IDS] = token_ids_sha256(read)
    for setting in settings:  # all must be timed and measured before anything is run
        rate = predicted_match_rate(others, setting.exit_layer, setting.k)
        predicted_ratio(timing, rate, setting, {})
    log = _RunLog(out, header)
    first, rest = prompts[: grid.fit_prompts], prompts[grid.fit_prompts :]
    devices = tuple(place.device for place in placements(workers.units, device=workers.device))
    with ExitStack() as running:

        def start() -> Pipeline:
            pipeline = Pipeline(
                loaded,
                prompt_tokens=max(map(len, ids.values())),
                tokens=grid.max_new_tokens,
                k=max(grid.ks),
                workers=workers,
                exits=exits,
            )
            return running.enter_context(pipeline)

        runner = _Runner(start, ids, grid, log)
        fitted = grid.fitted
        runner.run(FIT, first, fitted, lambda share: on_progress("correcting the times", share))
        found = fit_corrections(timing, log.runs_of(FIT, first, fitted))
        predictions, corrections = log.predictions(
            found, lambda: predict(others, timing, settings, len(rest), found, seed=grid.seed)
        )
        runner.run(HELD_OUT, rest, settings, lambda share: on_progress("running the grid", share))
    runs = log.runs_of(HELD_OUT, rest, settings)
    rows = [
        error_row(prediction, run, timing, corrections) | {"held_out": run.setting not in fitted}
        for prediction, run in zip(predictions, runs, strict=True)
    ]
    report = log.document(corrections) | {
        "cells": rows,
        "held_out": errors_summary([row for row in rows if row["held_out"]]),
        "all": errors_summary(rows),
        "coverage_over_splits": coverage_over_splits(
            others, timing, runs, corrections, seed=grid.seed
        ),
        "n_runs": len(log.rows),
        "n_other_text": sum(not row["same_text"] for row in log.rows),
        "plain_latency_s": float(
            np.median([row["plain_per_token_s"] for row in log.rows if row["n_tokens"]])
        ),
        "provenance": timing_provenance(loaded, exits, devices),
    }
    files.write_json(out / files.VALIDATION_FILE, report)
    return report


def _header(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    others: Calibration,
    timing: Timing,
    grid: ValidationGrid,
    exits: TrainedExits | None,
    workers: Workers,
) -> dict[str, Any]:
    """Everything that the runs and predictions of a folder depend on."""
    return {
        "model": loaded.source.name,
        "prompts": [prompt.id for prompt in prompts],
        "fit_prompts": grid.fit_prompts,
        "cells": [setting.name for setting in grid.settings],
        "max_new_tokens": grid.max_new_tokens,
        "exits_sha256": exits.sha256 if exits else None,
        "raw": grid.raw,
        **{
            key: value for key, value in grid.provenance.items() if value and key != "prompt_format"
        },
        "seed": grid.seed,
        "units": workers.units,
        **({} if workers.device == CPU else {"device": workers.device}),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "calibration_sha256": rates_of(others),
        "timing_sha256": _sha256(asdict(timing)),
    }


def rates_of(calibration: Calibration) -> str:
    """SHA-256 of the match rates that predictions use, without times and other methods."""
    document = asdict(replace(calibration, recorded=None))
    return _sha256({name: x for name, x in document.items() if name not in NOT_PREDICTIVE})


def _sha256(document: Mapping[str, Any]) -> str:
    text = json.dumps(files.json_ready(document), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _RunLog:
    """The folder of a validation: every run is appended, predictions are written once."""

    def __init__(self, out: Path, header: Mapping[str, Any]) -> None:
        self.out, self.header = out, dict(header)
        self.rows: list[dict[str, Any]] = []
        self.path = out / RUNS_FILE
        lines = self._whole_lines()
        if not lines:
            self._append({"settings": self.header})
            return
        try:
            first, *self.rows = map(files.parse_json, lines)
        except ValueError as error:
            raise InvalidInputError(
                f"each line of {self.path} must be JSON; got {excerpt(error)}; choose another "
                "folder"
            ) from None
        self._check_same(first, "runs")
        seen: set[tuple[str, str, str]] = set()
        for number, row in enumerate(self.rows, start=2):
            where = f"line {number} of {self.path}"
            files.check_part(row, files.VALIDATION, where, "run")
            right = row["n_matched"] + row.get("n_late", 0)
            if right > row["n_tokens"]:
                raise InvalidInputError(
                    f"{where} must have no more right guesses than tokens; got {right} of "
                    f"{row['n_tokens']}; choose another folder"
                )
            if row["n_tokens"] and not (row["ppd_s"] and row["plain_per_token_s"]):
                raise InvalidInputError(
                    f"{where} must have times above 0 for its tokens; got ppd_s {row['ppd_s']} and "
                    f"plain_per_token_s {row['plain_per_token_s']}; choose another folder"
                )
            run = (row["part"], row["prompt_id"], row["cell"])
            if run in seen:
                raise InvalidInputError(
                    f"{where} must be another run than those above; got {', '.join(run)} again; "
                    "choose another folder"
                )
            seen.add(run)

    def _check_same(self, found: Mapping[str, Any], what: str) -> None:
        """Raise if the folder holds another validation."""
        theirs = found.get("settings") if isinstance(found, dict) else None
        theirs = theirs if isinstance(theirs, dict) else {}
        check_agree(
            theirs,
            self.header,
            sorted((self.header.keys() | theirs.keys()) - {TOKEN_IDS}),
            rule=f"{self.out} must hold this very validation",
            what=what,
            fix="choose another folder",
        )
        check_texts(theirs, self.header, f"{what} in {self.out}")

    def _whole_lines(self) -> list[str]:
        """The lines on file; an incomplete last line is removed from it."""
        if not self.path.exists():
            return []
        files.check_regular(self.path)
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            with files.atomic(self.path) as part:
                part.write_text(whole, encoding="utf-8")
        return whole.splitlines()

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFailedError(
                f"{self.out} must be writable; got {error.strerror}; choose another place"
            ) from error

    def keep(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add finished runs."""
        for row in rows:
            self._append(row)
            self.rows.append(row)

    def done(self, part: str, prompt_id: str) -> set[str]:
        """Names of the settings that have been run on a prompt."""
        return {r["cell"] for r in self.rows if (r["part"], r["prompt_id"]) == (part, prompt_id)}

    def runs_of(
        self, part: str, prompts: Sequence[Prompt], settings: Sequence[PpdSetting]
    ) -> list[SettingRuns]:
        """All runs of a part, by setting."""
        found = {(r["prompt_id"], r["cell"]): r for r in self.rows if r["part"] == part}
        result = []
        for setting in settings:
            rows = [found[prompt.id, setting.name] for prompt in prompts]
            runs = SettingRuns.of_rows(setting, rows)
            if not len(runs.n_tokens):
                raise RunFailedError(
                    f"setting {setting.name} must have tokens; got texts of under 3"
                )
            result.append(runs)
        return result

    def document(self, corrections: Corrections) -> dict[str, Any]:
        """What the predictions and the report begin with."""
        return {
            "schema": files.VALIDATION,
            "schema_version": files.SCHEMA_VERSION,
            "settings": self.header,
            "corrections": asdict(corrections),
        }

    def predictions(
        self, corrections: Corrections, make: Callable[[], list[Prediction]]
    ) -> tuple[list[Prediction], Corrections]:
        """The predictions on file, with their corrections; written first if there are none."""
        path = self.out / PREDICTIONS_FILE
        if not path.exists():
            rows = [
                {"cell": {"exit_layer": made.setting.exit_layer, "k": made.setting.k}}
                | {name: value for name, value in asdict(made).items() if name != "setting"}
                for made in make()
            ]
            files.write_json(path, self.document(corrections) | {"predictions": rows})
        found = files.read_json(path, files.VALIDATION)
        self._check_same(found, "predictions")
        rows = [{"match_rate": row["p_correct"]} | row for row in found.get("predictions", ())]
        predictions = [Prediction(PpdSetting(**row.pop("cell")), **row) for row in rows]
        if (names := [one.setting.name for one in predictions]) != self.header["cells"]:
            raise InvalidInputError(
                f"{path} must predict the grid's settings in order; got {names}; choose another"
            )
        return predictions, Corrections(**found["corrections"])


@dataclass(frozen=True)
class _Runner:
    """Runs settings on prompts in random order, with plain decoding before and after every two."""

    start: Callable[[], Pipeline]
    ids: Mapping[str, Sequence[int]]
    grid: ValidationGrid
    log: _RunLog

    @cached_property
    def pipeline(self) -> Pipeline:
        """The units, which are started for the first run; all of their memory is resident."""
        ids, few = next(iter(self.ids.values())), min(WARM_UP_TOKENS, self.grid.max_new_tokens)
        pipeline = self.start()
        pipeline.greedy(ids, few)
        pipeline.ppd(ids, few, PpdSetting(min(self.grid.exit_layers)))
        return pipeline

    def run(
        self,
        part: str,
        prompts: Sequence[Prompt],
        settings: Sequence[PpdSetting],
        on_progress: Callable[[float], None],
    ) -> None:
        """Run what has not been run."""
        for number, prompt in enumerate(prompts):
            rng = np.random.default_rng([self.grid.seed, number, len(part)])
            done = self.log.done(part, prompt.id)
            shuffled = [settings[n] for n in rng.permutation(len(settings))]
            left = [setting for setting in shuffled if setting.name not in done]
            if left:
                before = self._plain(prompt)
            for start in range(0, len(left), SETTINGS_PER_BASELINE):
                group = left[start : start + SETTINGS_PER_BASELINE]
                runs = [self._ppd(prompt, setting) for setting in group]
                after = self._plain(prompt)
                self.log.keep(
                    [
                        _run_row(part, prompt, setting, run, before, after)
                        for setting, run in zip(group, runs, strict=True)
                    ]
                )
                before = after
            on_progress((number + 1) / len(prompts))

    def _plain(self, prompt: Prompt) -> Run:
        return self.pipeline.greedy(self.ids[prompt.id], self.grid.max_new_tokens)

    def _ppd(self, prompt: Prompt, setting: PpdSetting) -> Run:
        return self.pipeline.ppd(self.ids[prompt.id], self.grid.max_new_tokens, setting)


def _run_row(
    part: str, prompt: Prompt, setting: PpdSetting, run: Run, before: Run, after: Run
) -> dict[str, Any]:
    """One run of PPD, and the plain runs before and after it, as a line of `runs.jsonl`."""
    times, plain = run.times_s, [before.times_s, after.times_s]
    if not all(map(len, plain)):
        times = times[:0]
    return {
        "part": part,
        "prompt_id": prompt.id,
        "cell": setting.name,
        "n_tokens": len(times),
        "n_matched": int(run.matches[: len(times)].sum()),
        "n_late": int(run.late_guesses[: len(times)].sum()),
        "ppd_s": float(times.sum()),
        "plain_per_token_s": float(np.concatenate(plain).mean()) if len(times) else None,
        "plain_before_s": float(plain[0].mean()) if len(times) else None,
        "plain_after_s": float(plain[1].mean()) if len(times) else None,
        "same_text": run.token_ids == before.token_ids,
    }
