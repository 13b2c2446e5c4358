"""docs/architecture.md: its tree is the package, its paths exist, and its picture is drawn."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from types import ModuleType

from tests.support.pages import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
ROOMS = {path.parent.name for path in (ROOT / "ppdmodel").glob("*/__init__.py")}


def tree() -> dict[str, str]:
    """The paths that the page's tree shows, below the package, and what it says of each."""
    block = PAGE.split("```\nppdmodel/\n")[1].split("```")[0]
    above: list[str] = []
    found: dict[str, str] = {}
    for line in block.splitlines():
        entry = re.fullmatch(r"((?:│   |    )*)[├└]── (\S+) +(\S.*)", line)
        if entry is None:
            assert line.strip(" │") == "", f"not a line of a tree: {line!r}"
            continue
        above = [*above[: len(entry[1]) // 4], entry[2]]
        found["".join(above)] = entry[3]
    return found


def test_the_tree_names_exactly_the_modules_that_exist() -> None:
    package = ROOT / "ppdmodel"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    inits = {name for name in modules if name.endswith("/__init__.py")}
    shown = {name for name in tree() if name.endswith(".py")}
    assert shown == modules - inits
    folders = {name for name in tree() if name.endswith("/")}
    assert folders == {name.removesuffix("__init__.py") for name in inits} | {"results/schemas/"}


def test_each_line_of_the_tree_says_something_of_its_own() -> None:
    said = list(tree().values())
    assert len(said) == len(set(said))


def test_the_direction_is_that_of_the_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    shown = " → ".join(f"`{layer}`" for layer in layers if layer != "__main__")
    assert f"\n{shown}\n" in PAGE
    assert {room for layer in layers for room in layer.split(" | ")} >= ROOMS


def test_the_files_to_touch_exist() -> None:
    paths = set(re.findall(r"`([\w./<>-]+/[\w./<>-]*)`", PAGE))
    general = {path for path in paths if "<" in path or "NAME" in path}
    assert general == {
        "tests/<room>/test_<module>.py",
        "ppdmodel/cli/NAME.py",
        "tests/cli/test_NAME.py",
    }
    for path in paths - general:
        assert any((ROOT / start / path).exists() for start in ("", "ppdmodel")), path


def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flow", ROOT / "docs" / "flow.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_every_room_and_command() -> None:
    from ppdmodel.cli.app import COMMANDS

    flow = drawing()
    assert set(flow.ROOMS) | {"results", "cli"} == ROOMS
    shown = [name for _, _, _, names, _ in flow.ROOMS.values() for name in names.split()]
    assert sorted(shown) == sorted(COMMANDS)
    with flow.style():
        drawn = {text.get_text() for text in flow.flow().axes[0].texts}
    committed = flow.FILE.read_text("utf-8")
    for text in drawn - {""}:
        for line in text.splitlines():
            assert line in committed, f"run make figures: {line} is not in {flow.FILE.name}"
