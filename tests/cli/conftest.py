"""Results on disk that commands of several files read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import a_measurement, a_timed_measurement


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measurement with guesses."""
    return a_measurement(tmp_path_factory.mktemp("m") / "m")


@pytest.fixture(scope="session")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A measurement, and a timing of the same model."""
    return a_timed_measurement(tmp_path_factory.mktemp("t"))
