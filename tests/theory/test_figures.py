"""The figures of the pages can be drawn, and the committed ones are all of them."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from tests.theory.latex import THEORY


def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", THEORY / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DRAWN = figures()


def test_each_figure_is_committed_and_shown() -> None:
    assert {path.stem for path in (THEORY / "images").iterdir()} == set(DRAWN.FIGURES)
    text = "".join(page.read_text("utf-8") for page in THEORY.glob("*.md"))
    for name in DRAWN.FIGURES:
        assert f"](images/{name}.svg)" in text


#: the others simulate for seconds: `make figures`
@pytest.mark.parametrize(
    "name", ["01-pipeline", "02-latency", "07-best-exit", "08-methods", "11-regimes"]
)
def test_it_can_be_drawn(name: str) -> None:
    with DRAWN.style():
        figure = DRAWN.FIGURES[name]()
    assert all(ax.has_data() for ax in figure.axes)
