"""The folder for files that can be made again: who names it, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.models.cache import cache_dir


@pytest.mark.parametrize(
    ("ours", "base", "expected"),
    [
        ("/a/b", "/xdg", "/a/b"),
        ("", "/xdg", "/xdg/ppdmodel"),
        (None, "relative", "/mine/.cache/ppdmodel"),
        (None, "", "/mine/.cache/ppdmodel"),
        (None, None, "/mine/.cache/ppdmodel"),
    ],
)
def test_the_cache_is_per_user(
    monkeypatch: pytest.MonkeyPatch, ours: str | None, base: str | None, expected: str
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/mine"))
    for name, value in (("PPDMODEL_CACHE", ours), ("XDG_CACHE_HOME", base)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_no_home_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("PPDMODEL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(InvalidInputError, match="got no home directory; set PPDMODEL_CACHE"):
        cache_dir()


def test_a_relative_folder_is_taken_from_where_the_command_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPDMODEL_CACHE", os.path.join("a", "b"))
    found = cache_dir()
    monkeypatch.chdir(tmp_path.parent)
    assert found == tmp_path / "a" / "b"


def test_asking_makes_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PPDMODEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "ppdmodel"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["PPDMODEL_CACHE", "XDG_CACHE_HOME"])
def test_no_home_is_needed_where_a_variable_names_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(Path, "home", lambda: 1 / 0)
    for other in ("PPDMODEL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    assert cache_dir() in (tmp_path, tmp_path / "ppdmodel")
