"""Notebooks are thin, hold no outputs, and say whose numbers they show; nbmake runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ppdmodel.cli.plot import Kind

ROOT = Path(__file__).parents[2]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", BOOKS, ids=[path.stem for path in BOOKS])
def test_a_notebook_is_thin_and_has_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells)
    assert "its tables are not reproduced" in text
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            source = "".join(cell["source"])
            assert not re.search(r"^(def|class) ", source, flags=re.MULTILINE)
    figures = re.findall(r"\bplots\.\w+\(", text)
    kinds = re.findall(r"`ppdmodel plot [^`]*--kind (\S+) [^`]+`", text)
    assert len(figures) == len(kinds), "each figure is also written by a command"
    assert set(kinds) <= {kind.value for kind in Kind}


def test_all_five_are_there() -> None:
    assert [path.stem[:2] for path in BOOKS] == ["01", "02", "03", "04", "05"]
