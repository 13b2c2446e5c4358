"""`ppdmodel optimize`: what is refused, and what it says in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ppdmodel.cli.optimize import _beside_split, sentence
from ppdmodel.decide.optimize import optimize
from ppdmodel.decide.outcomes import Decision
from ppdmodel.results.io import load_calibration
from tests.support.commands import DATA, document, refused, said


def test_a_budget_without_a_setting_that_pays_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = DATA / "smollm2-135m.calibration.json"
    command = ("optimize", source, "--max-compute", "1.000001")
    decision = document(capsys, *command)
    assert [choice["setting"] for choice in decision["choices"]] == [None]
    assert "PPD does not pay" in said(capsys, *command)


def test_units_and_prices_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    source = DATA / "smollm2-135m-trained.calibration.json"
    decision = document(capsys, "optimize", source, "--price", "3", "--max-units", "4")
    assert [choice["price"] for choice in decision["choices"] if choice["price"]] == [3]
    assert all(choice["setting"]["k"] < 4 for choice in decision["choices"])


@pytest.fixture(scope="module")
def decision() -> Decision:
    calibration = load_calibration(DATA / "smollm2-135m-trained.calibration.json")
    return optimize(calibration, max_compute=2, ideal=True)


def test_a_choice_in_words(decision: Decision) -> None:
    (choice,) = [c for c in decision.choices if c.max_compute == 2]
    setting = choice.setting
    assert setting is not None
    deeper = replace(setting, depth=setting.depth + 1)
    words = sentence(replace(choice, runner_up=deeper, chosen_share=0.5), decision)
    assert "; it is the best in 50% of the resamples" in words
    second = f"then layer {deeper.exit_layer} with k = {deeper.k} and depth {deeper.depth}."
    assert words.endswith(second)
    alone = sentence(replace(choice, runner_up=None, chosen_share=None), decision)
    assert "resamples" not in alone
    assert "then layer" not in alone


def test_no_choice_in_words(decision: Decision) -> None:
    (choice,) = [c for c in decision.choices if c.max_compute == 2]
    none = replace(choice, setting=None, runner_up=None)
    for share, words in (
        (1.0, "PPD does not pay: no setting is better than plain decoding (100% of the resamples"),
        (0.4, "it is open whether PPD pays: no setting is better here (40% of the resamples say"),
        (None, "PPD does not pay: no setting is better than plain decoding."),
    ):
        assert words in sentence(replace(none, chosen_share=share), decision)
    nothing = sentence(none, replace(decision, settings=0))
    assert nothing.endswith("no setting of PPD fits within the units.")


def test_splitting_is_compared_with_the_interval(decision: Decision) -> None:
    plain = replace(decision, plain_latency_s=0.01, split_latency=0.8)
    (choice,) = [c for c in decision.choices if c.max_compute == 2]
    setting = choice.setting
    assert setting is not None
    for low, high, words in (
        (0.7, 0.9, "the interval does not tell them apart."),
        (0.7, 0.75, "PPD is faster."),
        (0.85, 0.9, "splitting is faster."),
    ):
        latency = replace(
            setting.normalized_latency, value=(low + high) / 2, ci_low=low, ci_high=high
        )
        one = replace(choice, setting=replace(setting, normalized_latency=latency))
        said_of = _beside_split(replace(plain, choices=(one,)))
        assert said_of.startswith("\nThe same units with every product split over all of them")
        assert said_of.endswith(f"take 8.0 ms, 0.800 of plain decoding: {words}")
    none = replace(plain, choices=())
    assert _beside_split(none).endswith("splitting pays.")
    assert _beside_split(replace(none, split_latency=1.0)).endswith("neither pays here.")


BAD: list[tuple[list[str], str]] = [
    (["optimize", "{tmp}/none"], "the result must exist; got"),
    (["optimize", "{tmp}/text"], "a result must be whole JSON; got"),
    (["optimize", "{folder}"], "optimize must be given a calibration"),
    (["optimize", "{folder}", "--device", "L40S"], "--device must come with --roofline; got"),
    (["optimize", "{folder}", "--link-time-s", "0"], "--link-time-s must come with --roofline"),
    (["optimize", "{folder}", "--ideal", "--roofline", "x"], "ideal counts layers, and roofline"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    folder: Path,
    timed: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    (tmp_path / "text").write_text("not json")
    refused(capsys, command, message, tmp=tmp_path, folder=folder, timing=timed[1])
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
