"""The timeline shows what the schedule did, cell by cell, and says it in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ppdmodel import Policy, replay
from ppdmodel.cli import run
from ppdmodel.errors import InvalidInputError
from ppdmodel.show.timeline import DROPPED, KEPT, KNOWN, timeline


def cells(ax: Axes, color: str) -> int:
    """Layer times that are drawn in a colour."""
    bars = [bar for bar in ax.patches if to_hex(bar.get_facecolor()).upper() == color]
    return round(sum(bar.get_width() for bar in bars))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("exit_layer", "k", "depth"), [(4, 2, 1), (2, 1, 1), (2, 1, 2), (3, 2, None), (8, 3, 1)]
)
def test_every_layer_that_is_run_is_a_cell(exit_layer: int, k: int, depth: int | None) -> None:
    matches = [True, False, True, True]
    (ax,) = timeline(matches, layers=8, exit_layer=exit_layer, k=k, depth=depth).axes
    ran = replay(matches, Policy(exit_layer, k, depth), layers=8).generations[0]
    assert cells(ax, KNOWN) + cells(ax, KEPT) == 8 * 5
    assert cells(ax, KNOWN) + cells(ax, KEPT) + cells(ax, DROPPED) == ran.work_done[-1]
    assert cells(ax, KEPT) <= 40 - ran.finish_times[-1]
    if exit_layer >= 4:
        assert cells(ax, KEPT) == 40 - ran.finish_times[-1], "what is run ahead is what is saved"


def test_words_beside_the_picture() -> None:
    (ax,) = timeline([True, False], layers=8, exit_layer=4, k=2).axes
    assert ax.get_title(loc="left") == ("PPD takes 20 layer times, plain decoding 24, for 3 tokens")
    said = [text.get_text() for text in ax.texts]
    assert said.count("match") == said.count("miss: start afresh") == 1
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "plain decoding", "token 1", "token 2, right guess", "wrong guess",
        "token 3", "wrong guess", "wrong guess",
    ]  # fmt: skip
    arrows = [text for text in ax.texts if text.get_text() == ""]
    assert len(arrows) == 4, "each guess has an arrow from the exit that it was read at"


def test_given_axes() -> None:
    figure = Figure()
    assert timeline(layers=30, exit_layer=20, ax=figure.subplots()) is figure


def test_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "timeline.svg"
    command = ["plot", "--kind", "timeline", "--layers", "8", "--k", "2", "--out", str(out)]
    assert run(command) == 0
    assert "PPD takes 28 layer times, plain decoding 40" in out.read_text("utf-8")
    committed = Path(__file__).parents[2] / "docs" / "images" / "timeline.svg"
    assert out.read_text("utf-8") == committed.read_text("utf-8"), "make data draws it again"
    assert run([*command, "--matches", "1,2"]) == 2
    assert "matches must be 1 (match) or 0 (miss) for each token" in capsys.readouterr().err
    assert run([*command, "--exit-layer", "9"]) == 2
    assert "exit_layer must not exceed layers" in capsys.readouterr().err
    assert run(["plot", "x.json", *command[1:]]) == 2
    assert "the timeline figure must have no RESULT" in capsys.readouterr().err


def test_too_much_to_draw_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"at most 60 processes; got 402; lower k"):
        timeline([True] * 3 + [False], layers=8, exit_layer=4, k=100)
