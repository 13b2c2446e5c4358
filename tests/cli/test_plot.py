"""`ppdmodel plot`: figures by kind, and options that belong to others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppdmodel.cli import run
from tests.support.commands import DATA, document, refused


@pytest.mark.parametrize("kind", ["match-rate", "trade-off", "compare"])
def test_a_figure_of_a_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    source, out = DATA / "smollm2-135m-trained.calibration.json", tmp_path / "figure.svg"
    assert run(["plot", str(source), "--kind", kind, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "smollm2-135m, trained exits" in out.read_text("utf-8")


def test_validations_are_drawn_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(DATA / f"smollm2-135m{name}-validation") for name in ("", "-trained")]
    out = tmp_path / "figure.svg"
    found = document(capsys, "plot", ",".join(folders), "--kind", "predicted", "--out", out)
    assert found == {"out": str(out), "kind": "predicted"}
    assert all(f"{kind} exits, fitted" in out.read_text("utf-8") for kind in ("logit", "trained"))


def test_the_threshold_rule_is_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figure.svg"
    found = document(capsys, "plot", folder, "--kind", "threshold", "--out", out)
    assert found == {"out": str(out), "kind": "threshold"}
    assert out.read_text("utf-8").count("<path") > 20


BAD: list[tuple[list[str], str]] = [
    (["plot", "--out", "{tmp}/a.png"], "this figure must have a RESULT; got none;"),
    (
        ["plot", "{tmp}/text", "--kind", "theory", "--out", "{tmp}/a.png"],
        "the theory figure must have no RESULT",
    ),
    (
        ["plot", "--kind", "theory", "--out", "{tmp}/a.gif"],
        "a plot must end in one of .png, .svg, .pdf",
    ),
    (["plot", "--kind", "pie", "--out", "{tmp}/a.png"], "Invalid value for '--kind'"),
    (
        ["plot", "--kind", "theory", "--layers", "no", "--out", "{tmp}/a.png"],
        "layers must be a positive integer; got no",
    ),
    (
        ["plot", "{tmp}/text", "--matches", "1,0", "--out", "{tmp}/a.png"],
        "--matches must come with --kind timeline; got 1,0 without it;",
    ),
    (
        ["plot", "{tmp}/text", "--kind", "compare", "--k", "1", "--out", "{tmp}/a.png"],
        "--k must come with --kind theory or timeline; got 1 without it;",
    ),
    (
        ["plot", "--kind", "theory", "--exit-layer", "3", "--out", "{tmp}/a.png"],
        "--exit-layer must come with --kind timeline; got 3 without it;",
    ),
    *(
        (
            ["plot", "--kind", kind, "--out", "{tmp}/a.png"],
            f"this figure must have a RESULT; got none; give {what}",
        )
        for kind, what in (
            ("match-rate", "a calibration, or use --kind theory"),
            ("predicted", "a folder of ppdmodel validate"),
            ("compare", "a measurement or a calibration"),
            ("threshold", "a measurement folder"),
        )
    ),
    (
        ["plot", "{rates}", "--kind", "threshold", "--out", "{tmp}/a.png"],
        "this figure must have a measurement folder; got {rates}; give one",
    ),
    (
        ["plot", "{predictions}", "--kind", "predicted", "--out", "{tmp}/a.png"],
        "a validation must have been run; got {predictions}, predictions only; give its folder",
    ),
    (["plot", "{folder}", "--kind", "compare", "--out", "{folder}"], "{folder} must be a file"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    (tmp_path / "text").write_text("not json")
    places = {
        "rates": DATA / "smollm2-135m.calibration.json",
        "predictions": DATA / "smollm2-135m-validation" / "predictions.json",
    }
    refused(capsys, command, message, tmp=tmp_path, folder=folder, **places)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
