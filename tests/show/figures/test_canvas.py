"""Figures as files."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from ppdmodel.errors import InvalidInputError, RunFailedError
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


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_full_disk_is_the_same_line_for_every_format(tmp_path: Path, ending: str) -> None:
    """A limit on sizes, which the system enforces, in the middle of the file."""
    out, before = tmp_path / f"figure.{ending}", resource.getrlimit(resource.RLIMIT_FSIZE)
    figure = plots.theory(layers=8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(RunFailedError, match="must be writable; got File too large; choose"):
            plots.save(figure, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"a plot must end in one of \.png, \.svg, \.pdf"):
        plots.save(plots.theory(), tmp_path / "figure.gif")
