"""Figures as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.show import plots


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_files_are_the_same_each_time(tmp_path: Path, ending: str) -> None:
    contents = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.{ending}"
        plots.save(plots.theory(layers=8), out)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]
    assert len(contents[0]) > 5000


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"a plot must end in one of \.png, \.svg, \.pdf"):
        plots.save(plots.theory(), tmp_path / "figure.gif")
