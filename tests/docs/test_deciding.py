"""What docs/deciding.md says in its text and its table is in the committed data."""

from __future__ import annotations

import json
from pathlib import Path

from experiments import coverage
from ppdmodel import Measurement, compare, load, load_guesses, threshold_report
from ppdmodel.decide.hardware import shape
from ppdmodel.results.intervals import Interval
from ppdmodel.results.timing import Timing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deciding.md").read_text("utf-8")


def test_what_is_said_of_several_exits() -> None:
    """What the rule and fixed settings take off at equal compute, here and in the README."""
    name = ROOT / "data" / "smollm2-135m-trained"
    measurement = load(name)
    assert isinstance(measurement, Measurement)
    guesses = load_guesses(name)
    (row,) = threshold_report(measurement, guesses, prices=(4,)).prices
    compared = compare(measurement, guesses=guesses, max_compute=1.2)
    fixed = {method.name: 1 - method.latency.value for method in compared.methods}
    assert percent(row.several_latency, row.several_compute) == (21, 20)
    assert round(100 * fixed["PPD"]) == 13
    assert percent(row.two_latency, row.two_compute) == (18, 21)
    words = " ".join(PAGE.split())
    assert "takes 21% off the latency for 20% more layer executions" in words
    assert "at that compute one exit with a fixed k takes 13% off" in words
    assert "The best two exits with a fixed k each take 18% off for 21% more" in words
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert "takes 21% off the latency for 20% more layer executions; at that compute" in readme
    assert "one exit with a fixed k takes 13% off" in readme
    big = shape("Llama 2 70B")
    assert f"{big.head_weights / big.layer_weights:.1f} of a layer" in PAGE


def test_what_is_said_of_reading_exits() -> None:
    """What it costs on the timed machine, and what is then left of the rule over several exits."""
    name = ROOT / "data" / "smollm2-135m-trained"
    measurement, timing = load(name), load(f"{name}.timing.json")
    assert isinstance(measurement, Measurement)
    assert isinstance(timing, Timing)
    guesses, words = load_guesses(name), " ".join(PAGE.split())
    report = threshold_report(measurement, guesses, prices=(4,), timing=timing)
    (row,) = report.prices
    assert f"reading an exit costs {report.exit_cost:.1f} layers and the head" in words
    assert f"the head {report.head_cost:.1f}, and at price 4" in words
    assert percent(row.several_latency, row.several_compute) == (9, 24)
    assert percent(row.fixed_latency, row.fixed_compute) == (10, 21)
    assert row.several_gain.ci_high < 0
    assert "9% off for 24% more compute, against 10% for 21%" in words
    (cheap,) = threshold_report(measurement, guesses, prices=(4,), exit_cost=0.3).prices
    assert percent(cheap.several_latency, cheap.several_compute) == (20, 24)
    assert "with `--exit-cost 0.3` the rule takes 20% off for 24% more" in words


def percent(latency: Interval, compute: Interval) -> tuple[int, int]:
    """What is taken off the latency, and what comes to the compute."""
    return round(100 * (1 - latency.value)), round(100 * (compute.value - 1))


def test_the_tables_of_coverage_are_the_committed_ones() -> None:
    document = json.loads((ROOT / "data" / "interval-coverage.json").read_text("utf-8"))
    rows, words = document["rows"], " ".join(PAGE.split())
    for prompts in (coverage.FEW, coverage.PROMPTS):
        assert coverage.table(rows, prompts) in PAGE
    assert f"({rows[0]['n']} measurements each; standard error at most 0.003)" in words
    many = [row for row in rows if row["prompts"] in coverage.PROMPTS]
    assert max(row["standard_error"] for row in many) < 0.0035
    assert f"it is down to {min(row['coverage'] for row in many):.3f}" in words
    for name, some in (("bootstrap", {12}), ("bootstrap", {60}), ("wilson", {12, 24, 60})):
        found = [row[name] for row in rows if row["prompts"] in some]
        assert f"in {100 * min(found):.0f}% to {100 * max(found):.0f}%" in words
    measured = document["measured_correlations"]
    low, high = min(row["p5"] for row in measured), max(row["p95"] for row in measured)
    assert f"a correlation of {low:.3f} to {high:.3f}" in words
    medians = [row["median"] for row in measured]
    assert f"medians {min(medians):.2f} to {max(medians):.2f}" in words
