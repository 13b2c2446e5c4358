"""The plan of the package: its rooms, their tests, imports one way, no symbolic links."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ppdmodel"
ROOMS = [
    "formulas",
    "results",
    "simulation",
    "fitting",
    "decide",
    "measure",
    "pipeline",
    "show",
    "cli",
]
BESIDE = 6
FILE_LINES = 450
# modules that need no test file of their own, and why
UNTESTED = {
    "__main__.py": "one call of cli.main; tests/cli runs it as a process",
    "_types.py": "names of array types, which mypy checks",
}


def modules() -> list[str]:
    """Every module as its path in the package; `__init__` files only hand names on."""
    found = (path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py")))
    return [path for path in found if not path.endswith("__init__.py")]


def file_of_tests(module: str) -> Path:
    """The test file of a module: ppdmodel/a/b.py is tested by tests/a/test_b.py."""
    path = ROOT / "tests" / module
    return path.with_name(f"test_{path.name.strip('_')}")


def tracked(*options: str) -> list[str]:
    """What git lists; a folder that is no checkout has nothing to be listed."""
    command = ["git", "ls-files", *options]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_every_module_has_a_test_file() -> None:
    """The tests mirror the package; the exceptions are listed with a reason."""
    missing = [m for m in modules() if not file_of_tests(m).is_file() and m not in UNTESTED]
    assert not missing, f"{len(missing)} modules have no test file: {' '.join(missing)}"
    assert not [m for m in UNTESTED if file_of_tests(m).is_file()]
    assert set(UNTESTED) <= set(modules())


def test_every_test_file_of_a_room_has_tests() -> None:
    """A file without a test would only look like one."""
    files = [path for m in modules() if (path := file_of_tests(m)).is_file()]
    assert not [p for p in files if not re.search(r"^ *(def|class) [Tt]est", p.read_text(), re.M)]


def test_the_rooms_are_nine_and_few_files_stand_beside_them() -> None:
    """A newcomer finds what he looks for from the folder list alone."""
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(ROOMS)
    beside = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(beside) <= BESIDE, beside


def test_imports_are_checked_for_every_room() -> None:
    """The layers of import-linter name every room, and nothing may be left out of them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = next(c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    named = {name for layer in layers["layers"] for name in re.split(r"[|: ]+", layer)}
    beside = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert named == set(ROOMS) | beside
    assert layers["exhaustive"]


def test_no_symbolic_links() -> None:
    """A checkout works on a system without them."""
    assert not [line for line in tracked("-s") if line.startswith("120000")]


def test_data_holds_data_and_scripts_can_be_imported() -> None:
    """Scripts stand in experiments/, where mypy and this test see them."""
    assert not [str(path) for path in (ROOT / "data").rglob("*.py")]
    for path in sorted((ROOT / "experiments").glob("*.py")):
        module = importlib.import_module(f"experiments.{path.stem}")
        assert module.__doc__


@pytest.mark.parametrize("folder", ["ppdmodel", "experiments", "benchmarks", "quality"])
def test_files_are_short(folder: str) -> None:
    """A file that grows past the limit is two files."""
    lengths = {p: len(p.read_text().splitlines()) for p in (ROOT / folder).rglob("*.py")}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > FILE_LINES}
    assert not long
