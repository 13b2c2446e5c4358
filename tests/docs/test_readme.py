"""What the README and other pages say of the committed data is in them."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import rivals, shortlist
from ppdmodel import Calibration, Measurement, load, optimize
from ppdmodel.pipeline.options import PpdSetting
from ppdmodel.pipeline.prediction_error import (
    SettingRuns,
    coverage_over_splits,
    excluding_prompts,
    fit_corrections,
    predict,
)
from ppdmodel.results.io import load_calibration, load_timing

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_gain_of_trained_exits_is_what_the_optimizer_says() -> None:
    for name in ("smollm2-135m", "smollm2-135m-trained"):
        calibration = load(ROOT / "data" / f"{name}.calibration.json")
        assert isinstance(calibration, Calibration)
        (choice,) = optimize(calibration, max_compute=[2]).choices
        assert choice.setting is not None
        latency = choice.setting.normalized_latency
        saved, low, high = (100 * (1 - x) for x in (latency.value, latency.ci_high, latency.ci_low))
        assert f"{saved:.1f}% [{low:.1f}, {high:.1f}]" in README


@pytest.mark.parametrize("model", ["smollm2-135m", "gemma3-270m"])
def test_the_tables_of_trained_exits_are_the_committed_ones(model: str) -> None:
    page = (ROOT / "docs" / "measuring.md").read_text("utf-8")
    document = json.loads((ROOT / "data" / f"{model}-exits.json").read_text("utf-8"))
    for row in document["rows"]:
        if row["k"] == 5:
            for name in ("logit", "trained"):
                p, low, high = row[name]
                assert f" {p:.3f} [{low:.3f}, {high:.3f}] |" in page
            assert f" {row['training_tokens']} tokens |" in page
    logit, trained = (load(ROOT / "data" / f"{model}{kind}") for kind in ("", "-trained"))
    assert isinstance(logit, Measurement)
    assert isinstance(trained, Measurement)
    assert trained.provenance["exit_kind"] == "trained"
    assert logit.token_id.tolist() == trained.token_id.tolist()
    most = max(row["training_tokens"] for row in document["rows"])
    for row in document["rows"]:
        layer, k = row["exit_layer"], row["k"]
        assert row["logit"][0] == pytest.approx((logit.rank[:, layer - 1] <= k).mean(), abs=1e-4)
        if row["training_tokens"] == most:
            rate = (trained.rank[:, layer - 1] <= k).mean()
            assert row["trained"][0] == pytest.approx(rate, abs=1e-4)


def test_the_tables_of_rivals_are_the_committed_ones() -> None:
    page = (ROOT / "docs" / "decoding.md").read_text("utf-8")
    for path in (ROOT / "data").glob("*-rivals*.json"):
        document = json.loads(path.read_text("utf-8"))
        assert rivals.table(document) in page
        assert document["made_by"] in page


def test_the_table_of_shortlists_is_the_committed_one() -> None:
    page = (ROOT / "docs" / "measuring.md").read_text("utf-8")
    document = json.loads((ROOT / "data" / "smollm2-135m-shortlist.json").read_text("utf-8"))
    assert document["made_by"] in page
    assert shortlist.table(document, "trained") in page
    for kind, reading in (("trained", "own text 8192"), ("logit", "own text 2048")):
        (loss,) = (
            row["loss"] for row in document["rows"]
            if (row["exits"], row["reading"], row["exit_layer"], row["k"]) == (kind, reading, 24, 5)
        )  # fmt: skip
        assert "loses {:.3f} [{:.3f}, {:.3f}]".format(*loss) in page


def test_the_table_of_sampled_text_is_the_committed_one() -> None:
    page = (ROOT / "docs" / "measuring.md").read_text("utf-8")
    summary = json.loads((ROOT / "data" / "smollm2-135m-sampled" / "summary.json").read_text())
    for layer in (10, 15, 20, 24, 27, 30):
        cells = []
        for k in (1, 5):
            for kind in (summary, summary["coupled"]):
                at = layer - 1, k - 1
                hits, low, high = (kind[n][at[0]][at[1]] for n in ("hits", "ci_low", "ci_high"))
                cells.append(f"{hits / summary['n_tokens']:.3f} [{low:.3f}, {high:.3f}]")
        assert f"| {layer} | {' | '.join(cells)} |" in page
    assert f"{summary['n_tokens']} tokens" in page


def test_links_and_pictures_are_there() -> None:
    folders = ("theory", "docs", "data")
    pages = [page for folder in folders for page in (ROOT / folder).glob("*.md")]
    for page in [ROOT / "README.md", *pages]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_functions_and_tests_named_in_the_theory_exist() -> None:
    import ppdmodel

    for page in (ROOT / "theory").glob("*.md"):
        text = page.read_text("utf-8")
        for name in re.findall(r"`ppdmodel\.(\w+)`", text):
            assert hasattr(ppdmodel, name), name
        for path, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
            assert f"def {test}" in (ROOT / path).read_text("utf-8"), (path, test)


def test_the_committed_data_belong_together() -> None:
    measurement = load(ROOT / "data" / "smollm2-135m")
    calibration = load(ROOT / "data" / "smollm2-135m.calibration.json")
    assert isinstance(measurement, Measurement)
    assert isinstance(calibration, Calibration)
    assert measurement.complete
    assert measurement.layers == calibration.layers == 30
    assert len(measurement.prompt_ids) >= 60
    assert calibration.provenance["measurement"] == measurement.provenance
    hits = measurement.hits_by_prompt(calibration.k_max)
    assert hits.tolist() == calibration.hits.tolist()
    ties = {(tie["prompt_id"], tie["position"]) for tie in measurement.ties}
    assert int((measurement.rank[:, -1] != 1).sum()) == len(ties)
    size = sum(p.stat().st_size for p in (ROOT / "data" / "smollm2-135m").iterdir())
    assert size < 10_000_000


def validation_row(name: str) -> str:
    """The line of docs/decoding.md that a committed validation comes to."""
    report = json.loads((ROOT / "data" / f"{name}-validation" / "validation.json").read_text())
    held, splits = report["held_out"], report["coverage_over_splits"]
    cells = report["cells"]
    best = min(cells, key=lambda row: row["measured"])
    kind = report["provenance"]["exit_kind"]
    return (
        f"| {kind} | {len(cells)}, {held['n_cells']} | {held['median_error']:.1%} | "
        f"{held['p90_error']:.1%} | {held['median_match_part']:.1%}, "
        f"{held['median_latency_part']:.1%} | {held['median_error_uncalibrated']:.1%} | "
        f"{held['within']} of {held['n_cells']}, {report['all']['within']} of {len(cells)} | "
        f"{splits['within']} of {splits['n']} | exit {best['exit_layer']}, k = {best['k']}: "
        f"{1 / best['measured']:.2f} |"
    )


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-trained"])
def test_the_validation_shown_is_the_committed_one(name: str) -> None:
    folder = ROOT / "data" / f"{name}-validation"
    page = (ROOT / "docs" / "decoding.md").read_text("utf-8")
    assert validation_row(name) in page
    report = json.loads((folder / "validation.json").read_text("utf-8"))
    written = json.loads((folder / "predictions.json").read_text("utf-8"))
    # the predictions are those that were written before the runs, cell by cell
    for row, before in zip(report["cells"], written["predictions"], strict=True):
        assert (row["exit_layer"], row["k"]) == tuple(before["cell"].values())
        assert row["predicted"] == before["ratio"]
    # and the errors follow from the runs on file
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()[1:]]
    for row in report["cells"]:
        cell = f"e{row['exit_layer']}-k{row['k']}"
        own = [r for r in runs if (r["part"], r["cell"]) == ("held-out", cell) and r["n_tokens"]]
        plain = sum(r["plain_per_token_s"] * r["n_tokens"] for r in own)
        assert row["measured"] == pytest.approx(sum(r["ppd_s"] for r in own) / plain)
    assert report["n_other_text"] == sum(not r["same_text"] for r in runs)


def test_what_is_said_about_the_validations_is_in_them() -> None:
    page = " ".join((ROOT / "docs" / "decoding.md").read_text("utf-8").split())
    match, late, scatter, plain, errors = [], [], [], [], []
    by_level, measured, rounds = [], [], set()
    for name in ("smollm2-135m", "smollm2-135m-trained"):
        timing = json.loads((ROOT / "data" / f"{name}.timing.json").read_text("utf-8"))
        rounds.add(timing["provenance"]["rounds"])
        folder = ROOT / "data" / f"{name}-validation"
        report = json.loads((folder / "validation.json").read_text("utf-8"))
        cells = report["cells"]
        errors += [abs(row["error"]) for row in cells if row["held_out"]]
        level = statistics.mean(row["measured"] for row in cells if not row["held_out"])
        by_level += [abs(level / row["measured"] - 1) for row in cells if row["held_out"]]
        measured += [row["measured"] for row in cells]
        match += [abs(row["match_part"]) for row in cells]
        late += [row["latency_part"] for row in cells]
        judged_on = {row["n_prompts"] for row in cells}
        assert judged_on == {len(report["settings"]["prompts"]) - report["settings"]["fit_prompts"]}
        fitted_on = report["settings"]["fit_prompts"]
        assert (
            f"kind of exits {fitted_on} prompts corrected the times and {judged_on.pop()}" in page
        )
        assert (report["n_other_text"], report["n_runs"]) == (0, 306)
        runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()[1:]]
        by_cell: dict[str, list[float]] = {}
        own = [1e3 * row["plain_per_token_s"] for row in runs if row["n_tokens"]]
        plain += own
        assert f"{min(own):.0f} to {max(own):.0f} ms" in page
        for row in runs:
            if row["part"] == "held-out" and row["n_tokens"]:
                ratio = row["ppd_s"] / row["n_tokens"] / row["plain_per_token_s"]
                by_cell.setdefault(row["cell"], []).append(ratio)
        scatter.append(statistics.mean(statistics.stdev(ratios) for ratios in by_cell.values()))
    assert f"adds at most {max(match):.1%} to an error" in page
    assert f"up to {max(late):.1%} above the runs, as with most settings" in page
    assert f"and up to {-min(late):.1%} below" in page
    assert sum(x > 0 for x in late) > len(late) / 2
    median, p90 = statistics.median(errors), float(np.percentile(errors, 90))
    assert median <= 0.03
    assert p90 <= 0.06
    assert f"{len(errors)} settings of both kinds" in page
    assert (
        f"All {len(measured)} settings take {min(measured):.2f} to {max(measured):.2f} times"
        in page
    )
    assert f"misses the others by {statistics.median(by_level):.1%} in the median" in page
    assert f"it is met: {median:.1%} and {p90:.1%}. By kind, the median of the trained" in page
    assert f"and {rounds.pop()} repetitions of the timing" in page
    assert not rounds
    low, high = min(scatter), max(scatter)
    assert f"scatters by {100 * low:.0f} to {high:.0%}" in page
    assert f"took {min(plain):.0f} to {max(plain):.0f} ms per token" in page
    assert "0 of 306 texts with logit exits and 0 of 306 with trained ones differ" in page


def test_what_is_said_about_the_times_is_in_them() -> None:
    page = " ".join((ROOT / "docs" / "decoding.md").read_text("utf-8").split())
    folder = ROOT / "data" / "smollm2-135m-trained-validation"
    cells = json.loads((folder / "validation.json").read_text("utf-8"))["cells"]
    timing = json.loads((ROOT / "data" / "smollm2-135m-trained.timing.json").read_text("utf-8"))
    terms = {name: term["value"] for name, term in timing["terms"].items()}
    split = terms["plain_latency_s"] / terms["split_latency_s"]
    assert f"make plain decoding {split:.2f} times as fast" in page
    assert f"Tensor parallelism over both cores gives {split:.2f}" in " ".join(README.split())
    layer, of_ppd = terms["layer_time_s"], timing["by_k"]["3"]
    reading, guesses = (of_ppd[n][1]["value"] for n in ("exit_time_s", "batch_layer_time_s"))
    assert f"reading an exit takes as long as {reading / layer:.1f} layers" in page
    assert f"a layer of three guesses as long as {guesses / layer:.1f}" in page
    assert f"pay, as long as {terms['head_time_s'] / layer:.1f}" in page
    profile = timing["layer_profile_s"]
    first, *others = (time / statistics.median(profile) for time in profile)
    assert f"the first takes {first:.2f} times as long as the median one" in page
    assert f"every other at most {max(others):.2f} times" in page
    best = min(cells, key=lambda row: row["measured"])
    said = (
        f"(exit {best['exit_layer']}, k = {best['k']}) is {1 / best['measured']:.2f} times as fast"
    )
    assert said in " ".join(README.split())
    assert f"predicted {1 / best['predicted']:.2f}." in README
    assert f"The fastest setting is {1 / best['measured']:.2f} times as fast" in page


def test_what_is_said_about_another_day_is_in_its_data() -> None:
    page = " ".join((ROOT / "docs" / "decoding.md").read_text("utf-8").split())
    said = page[page.index("**On another day**") : page.index("**The same text.**")]
    folder = ROOT / "data" / "smollm2-135m-another-day-validation"
    report = json.loads((folder / "validation.json").read_text("utf-8"))
    written = json.loads((folder / "predictions.json").read_text("utf-8"))["predictions"]
    timing_file = ROOT / "data" / "smollm2-135m-another-day.timing.json"
    timing = json.loads(timing_file.read_text("utf-8"))
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()[1:]]
    cells, splits = report["cells"], report["coverage_over_splits"]
    assert [row["predicted"] for row in cells] == [row["ratio"] for row in written]
    plain = [1e3 * row["plain_per_token_s"] for row in runs]
    assert f"took {min(plain):.0f} to {max(plain):.0f} ms" in said
    layer = timing["terms"]["layer_time_s"]["value"]
    reading = statistics.median(term["value"] for term in timing["by_k"]["1"]["exit_time_s"])
    assert f"as long as {reading / layer:.1f} layers" in said
    for words, name in (("predicted", "predicted"), ("measured", "measured")):
        speeds = [1 / row[name] for row in cells]
        assert f"{words} {min(speeds):.2f} to {max(speeds):.2f}" in said
    errors = [-row["error"] for row in cells]
    assert min(errors) > 0
    assert (
        f"by {min(errors):.1%} to {max(errors):.1%} (median {statistics.median(errors):.1%}, "
        in said
    )
    assert f"{report['all']['median_match_part']:.1%} of it match rate)" in said
    assert f"only {report['all']['within']} of {len(cells)} lay within" in said
    assert f"of the prompts {splits['within']} of {splits['n']}." in said
    assert report["n_other_text"] == 0
    assert f"{timing['provenance']['rounds']} repetitions of the timing" in said
    judged, fitted = cells[0]["n_prompts"], report["settings"]["fit_prompts"]
    assert f"{fitted} prompts to correct, {judged} to judge" in said
    before, after, within, again = intervals_made_again("another-day", "-trained")
    assert f"reaches {after} to either side instead of {before}" in said
    assert f"after the fact, {within} of {len(cells)} and {again} of {splits['n']} hold" in said


def test_what_the_scatter_of_texts_does_to_the_other_intervals() -> None:
    page = " ".join((ROOT / "docs" / "decoding.md").read_text("utf-8").split())
    found = [intervals_made_again(name.strip("-"), name) for name in ("", "-trained")]
    ends = [[half.split(" to ") for half in row[:2]] for row in found]

    def reach(kind: int) -> str:
        low, high = ([int(row[kind][end].rstrip("%")) for row in ends] for end in (0, 1))
        return f"{min(low)}% to {max(high)}%"

    assert f"would reach {reach(1)} instead of {reach(0)}" in page
    assert all(row[2:] == (18, 720) for row in found)


def intervals_made_again(name: str, kind: str) -> tuple[str, str, int, int]:
    """How far intervals reach without and with the scatter of texts; how many hold with it."""
    stem = "-".join(filter(None, ("smollm2-135m", name)))
    folder = ROOT / "data" / f"{stem}-validation"
    timing = load_timing(ROOT / "data" / f"{stem}.timing.json")
    calibration = load_calibration(ROOT / "data" / f"smollm2-135m{kind}.calibration.json")
    head, *rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    settings = head["settings"]
    others = excluding_prompts(calibration, settings["prompts"])
    fitted, judged = (
        [found for cell in settings["cells"] if (found := runs_of_cell(rows, part, cell))]
        for part in ("fit", "held-out")
    )
    corrections = fit_corrections(timing, fitted)
    alike = replace(corrections, n_texts=0, run_scatter=0.0)
    reach, within = [], 0
    for kept in (alike, corrections):
        made = predict(others, timing, [r.setting for r in judged], len(judged[0].n_tokens), kept)
        half = [(p.ci_high - p.ci_low) / p.ratio / 2 for p in made]
        reach.append(f"{min(half):.0%} to {max(half):.0%}")
        within = sum(p.ci_low <= r.ratio <= p.ci_high for p, r in zip(made, judged, strict=True))
    splits = coverage_over_splits(others, timing, judged, corrections)
    return reach[0], reach[1], within, splits["within"]


def runs_of_cell(rows: list[dict[str, Any]], part: str, name: str) -> SettingRuns | None:
    """The runs of a cell on file, if there are any."""
    exit_layer, k = (int(number[1:]) for number in name.split("-"))
    own = [r for r in rows if (r["part"], r["cell"]) == (part, name)]
    return SettingRuns.of_rows(PpdSetting(exit_layer, k), own) if own else None


def test_the_texts_of_real_ppd_are_those_of_plain_decoding() -> None:
    found = json.loads((ROOT / "data" / "smollm2-135m-exactness.json").read_text("utf-8"))
    page = (ROOT / "docs" / "decoding.md").read_text("utf-8")
    assert found["n_texts"] == len(found["rows"])
    assert found["n_different"] == sum(not row["same"] for row in found["rows"])
    assert f"{found['n_different']} of {found['n_texts']} texts differ" in page
    assert f"Of {found['n_prompts']} prompts" in page
    assert {row["way"] for row in found["rows"]} == {"generate", "e20-k5", "sampled-e20-k5"}
