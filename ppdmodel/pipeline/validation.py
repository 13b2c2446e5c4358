"""Predict a grid of settings, then run it for real, plain decoding interleaved."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError, RunFailedError
from ..measure.models.loading import LoadedModel
from ..measure.prompts import Prompt
from ..measure.training.train import TrainedExits
from ..results.calibration import Calibration
from ..results.compatibility import check_agree
from ..results.files import (
    SCHEMA_VERSION,
    VALIDATION,
    VALIDATION_FILE,
    atomic,
    json_ready,
    read_json,
    write_json,
)
from ..results.timing import Timing
from .devices import CPU
from .pipeline import Pipeline, check_setting
from .prediction_error import (
    Cell,
    CellRuns,
    Corrections,
    Prediction,
    coverage_over_splits,
    errors_summary,
    fit_corrections,
    judged,
    predict,
    without,
)
from .timing import timing_provenance
from .worker_pool import Run

RUNS_FILE, PREDICTIONS_FILE = "runs.jsonl", "predictions.json"
#: parts of a calibration that predictions of one exit do not rest on
UNHASHED = ("timing", "recorded", "reliability")
FIT, HELD_OUT = "fit", "held-out"
#: settings between two runs of plain decoding
BETWEEN = 2


def validate(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    calibration: Calibration,
    timing: Timing,
    out: Path,
    *,
    exit_layers: Sequence[int],
    ks: Sequence[int] = (1, 3, 5),
    fit_prompts: int = 3,
    max_new_tokens: int = 64,
    units: int = 2,
    exits: TrainedExits | None = None,
    raw: bool = False,
    seed: int = 0,
    device: str = CPU,
    on_progress: Callable[[str, float], None] = lambda stage, share: None,
) -> dict[str, Any]:
    """Predict the latency of every setting, run it, and write both.

    Every second cell of the grid is run on the first `fit_prompts` prompts, which corrects the
    times. Then the predictions for the other prompts are written to `predictions.json`, and never
    changed; then all cells are run on those prompts. Errors are judged on the cells that were not
    fitted. A stopped run goes on where it was.

    Args:
        loaded: a model of Llama's build, loaded on the CPU.
        prompts: to run; at least `fit_prompts` + 1. Their own rates in the calibration are not
            used.
        calibration: match rates.
        timing: what layers and heads cost here.
        out: a folder.
        exit_layers: where guesses are read.
        ks: numbers of guesses; all timed.
        fit_prompts: prompts for the corrections; at least 1.
        max_new_tokens: most tokens of a text.
        units: 2; each has a CPU of its own.
        exits: trained exits, those of the calibration.
        raw: whether to leave out the chat template.
        seed: of the order of the runs, and of the intervals.
        device: as in `Pipeline`.
        on_progress: called with the stage and the share of it.

    Returns:
        The report, as in `validation.json`.

    Raises:
        InvalidInputError: an argument does not fit, or the folder has another validation.
        RunFailedError: a unit failed.
    """
    if not 1 <= fit_prompts < len(prompts):
        raise InvalidInputError(
            f"fit_prompts must leave prompts to judge on; got {fit_prompts} of {len(prompts)}; "
            "use fewer, or give more prompts"
        )
    cells = [Cell(e, k) for e in sorted(set(exit_layers)) for k in sorted(set(ks))]
    if not cells:
        raise InvalidInputError("the grid must have cells; got none; give exit layers and k")
    if units != 2:
        raise InvalidInputError(f"the formula is about 2 units; got {units}; leave --units out")
    fitted = [c for n, c in enumerate(cells) if sum(divmod(n, len(set(ks)))) % 2 == 0]
    others = without(calibration, [prompt.id for prompt in prompts])
    settings = {
        "model": loaded.source.name,
        "prompts": [prompt.id for prompt in prompts],
        "fit_prompts": fit_prompts,
        "cells": [cell.name for cell in cells],
        "max_new_tokens": max_new_tokens,
        "exits_sha256": exits.sha256 if exits else None,
        "raw": raw,
        "seed": seed,
        "units": units,
        **({} if device == CPU else {"device": device}),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "calibration_sha256": rates_of(others),
        "timing_sha256": _sha256(asdict(timing)),
    }
    for cell in cells:  # all must be possible, timed and measured before anything is run
        check_setting(loaded.layers, cell.exit_layer, cell.k)
        predict(others, timing, [cell], 1, Corrections({}, 0.0), resamples=1)
    book = _Book(out, settings)
    ids = {prompt.id: loaded.encode(prompt.turns[:1], not raw) for prompt in prompts}
    first, rest = prompts[:fit_prompts], prompts[fit_prompts:]
    with Pipeline(
        loaded,
        units=units,
        prompt_tokens=max(map(len, ids.values())),
        tokens=max_new_tokens,
        k=max(ks),
        exits=exits,
        device=device,
    ) as pipeline:
        runner = _Runner(pipeline, ids, max_new_tokens, book, seed)
        runner.warm(prompts[0])
        runner.run(FIT, first, fitted, lambda share: on_progress("correcting the times", share))
        corrections = fit_corrections(timing, book.cells(FIT, first, fitted))
        predictions = book.predictions(
            lambda: predict(others, timing, cells, len(rest), corrections, seed=seed), corrections
        )
        runner.run(HELD_OUT, rest, cells, lambda share: on_progress("running the grid", share))
    runs = book.cells(HELD_OUT, rest, cells)
    kept = book.corrections()
    rows = [
        judged(prediction, run, timing, kept) | {"held_out": run.cell not in fitted}
        for prediction, run in zip(predictions, runs, strict=True)
    ]
    report = {
        "schema": VALIDATION,
        "schema_version": SCHEMA_VERSION,
        "settings": settings,
        "corrections": asdict(kept),
        "cells": rows,
        "held_out": errors_summary([row for row in rows if row["held_out"]]),
        "all": errors_summary(rows),
        "coverage_over_splits": coverage_over_splits(others, timing, runs, kept, seed=seed),
        "n_runs": len(book.runs),
        "n_other_text": sum(not run["same_text"] for run in book.runs),
        "plain_latency_s": float(
            np.median([run["plain_per_token_s"] for run in book.runs if run["n_tokens"]])
        ),
        "provenance": timing_provenance(loaded, exits, pipeline.devices),
    }
    write_json(out / VALIDATION_FILE, report)
    return report


def rates_of(calibration: Calibration) -> str:
    """Hash of what predictions rest on: neither times, which count apart, nor other methods."""
    document = asdict(replace(calibration, recorded=None))
    kept = {name: value for name, value in document.items() if name not in UNHASHED}
    return _sha256(kept)


def _sha256(document: Mapping[str, Any]) -> str:
    text = json.dumps(json_ready(document), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Book:
    """The folder: runs as they come, predictions once."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out, self.settings = out, dict(settings)
        self.runs: list[dict[str, Any]] = []
        self.path = out / RUNS_FILE
        lines = self._whole_lines()
        if not lines:
            self._append({"settings": self.settings})
            return
        try:
            header, *self.runs = [json.loads(line) for line in lines]
        except ValueError:
            header = {}
        self._check_same(header, "runs")

    def _check_same(self, found: Mapping[str, Any], what: str) -> None:
        """Refuse what another validation left in the folder."""
        theirs = found.get("settings", {})
        check_agree(
            theirs,
            self.settings,
            [*self.settings, *(theirs.keys() - self.settings.keys())],
            rule=f"{self.out} must hold this very validation",
            what=what,
            fix="choose another folder",
        )

    def _whole_lines(self) -> list[str]:
        """What is on file; a line that was cut off in the middle is taken away."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            with atomic(self.path) as part:
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
            self.runs.append(row)

    def done(self, part: str, prompt_id: str) -> set[str]:
        """Cells of a prompt that have been run."""
        return {r["cell"] for r in self.runs if (r["part"], r["prompt_id"]) == (part, prompt_id)}

    def cells(self, part: str, prompts: Sequence[Prompt], cells: Sequence[Cell]) -> list[CellRuns]:
        """All runs of a part, by cell."""
        found = {(r["prompt_id"], r["cell"]): r for r in self.runs if r["part"] == part}
        result = []
        for cell in cells:
            runs = CellRuns.of_rows(cell, [found[prompt.id, cell.name] for prompt in prompts])
            if not len(runs.n_tokens):
                raise RunFailedError(f"cell {cell.name} must have tokens; got texts of under 3")
            result.append(runs)
        return result

    def predictions(
        self, make: Callable[[], list[Prediction]], corrections: Corrections
    ) -> list[Prediction]:
        """The predictions on file; made now, if there are none."""
        path = self.out / PREDICTIONS_FILE
        if not path.exists():
            document = {
                "schema": VALIDATION,
                "schema_version": SCHEMA_VERSION,
                "settings": self.settings,
                "corrections": asdict(corrections),
                "predictions": [asdict(prediction) for prediction in make()],
            }
            write_json(path, document)
        found = read_json(path, VALIDATION)
        self._check_same(found, "predictions")
        rows = found["predictions"]
        return [Prediction(**{**row, "cell": Cell(**row["cell"])}) for row in rows]

    def corrections(self) -> Corrections:
        """Those of the predictions on file."""
        return Corrections(**read_json(self.out / PREDICTIONS_FILE, VALIDATION)["corrections"])


class _Runner:
    """Runs cells on prompts in a random order, plain decoding before and after every two."""

    def __init__(
        self,
        pipeline: Pipeline,
        ids: Mapping[str, Sequence[int]],
        max_new_tokens: int,
        book: _Book,
        seed: int,
    ) -> None:
        self.pipeline, self.ids, self.max_new_tokens = pipeline, ids, max_new_tokens
        self.book, self.seed = book, seed

    def warm(self, prompt: Prompt) -> None:
        """Let every unit touch its memory once."""
        few = min(8, self.max_new_tokens)
        self.pipeline.greedy(self.ids[prompt.id], few)
        self.pipeline.ppd(self.ids[prompt.id], few, exit_layer=1, k=1)

    def run(
        self,
        part: str,
        prompts: Sequence[Prompt],
        cells: Sequence[Cell],
        on_progress: Callable[[float], None],
    ) -> None:
        """Run what has not been run."""
        for number, prompt in enumerate(prompts):
            order = np.random.default_rng([self.seed, number, len(part)]).permutation(len(cells))
            done = self.book.done(part, prompt.id)
            left = [cells[n] for n in order if cells[n].name not in done]
            before = self._plain(prompt) if left else None
            for start in range(0, len(left), BETWEEN):
                group = left[start : start + BETWEEN]
                runs = [self._ppd(prompt, cell) for cell in group]
                after = self._plain(prompt)
                assert before is not None
                self.book.keep(
                    [
                        self._row(part, prompt, cell, run, before, after)
                        for cell, run in zip(group, runs, strict=True)
                    ]
                )
                before = after
            on_progress((number + 1) / len(prompts))

    def _plain(self, prompt: Prompt) -> Run:
        return self.pipeline.greedy(self.ids[prompt.id], self.max_new_tokens)

    def _ppd(self, prompt: Prompt, cell: Cell) -> Run:
        return self.pipeline.ppd(
            self.ids[prompt.id], self.max_new_tokens, exit_layer=cell.exit_layer, k=cell.k
        )

    def _row(
        self, part: str, prompt: Prompt, cell: Cell, run: Run, before: Run, after: Run
    ) -> dict[str, Any]:
        times, plain = run.times_s, [before.times_s, after.times_s]
        if not all(map(len, plain)):
            times = times[:0]
        return {
            "part": part,
            "prompt_id": prompt.id,
            "cell": cell.name,
            "n_tokens": len(times),
            "n_matched": int(run.matches[: len(times)].sum()),
            "ppd_s": float(times.sum()),
            "plain_per_token_s": float(np.concatenate(plain).mean()) if len(times) else None,
            "plain_before_s": float(plain[0].mean()) if len(times) else None,
            "plain_after_s": float(plain[1].mean()) if len(times) else None,
            "same_text": run.token_ids == before.token_ids,
        }
