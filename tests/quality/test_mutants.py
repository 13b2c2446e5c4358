"""The machinery of make mutants, on a package of one module and tests that see half of it."""

from __future__ import annotations

import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from quality import mutants
from quality.mutations import key, mutant_at, places_of
from quality.trial import Checkout

ROOT = Path(__file__).parents[2]
SOURCE = '''"""A toy."""


def total(a: int | None, b: int) -> int:
    """The sum."""
    return (a or 0) + b


def grows(a: int, b: int) -> bool:
    """Whether b is more."""
    return a < b
'''
TESTS = """from toy.room.sums import grows, total


def test_total():
    assert (total(2, 3), total(None, 3), total(5, 0)) == (5, 3, 5)


def test_that_cannot_fail():
    assert grows(1, 2) in (True, False, None)
"""
SETTINGS = """package = "toy"

[rooms]
room = { size = 20, limit = 0.9 }
"""
EQUIVALENT = """
[[equivalent]]
module = "toy/room/sums.py"
line = "return a < b"
becomes = "return {becomes}"
reason = "the toy's answer is not wanted"
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A checkout whose second function has a test that cannot fail."""
    root = tmp_path / "checkout"
    files = {
        "toy/__init__.py": "",
        "toy/room/__init__.py": "",
        "toy/room/sums.py": SOURCE,
        "tests/room/test_sums.py": TESTS,
        "settings.toml": SETTINGS,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def command(root: Path, *options: str) -> int:
    """The exit code of make mutants in a checkout."""
    return mutants.main(["--root", str(root), "--settings", str(root / "settings.toml"), *options])


def test_a_change_that_no_test_finds_is_listed(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test that cannot fail lets every change of its function live; the other lets none."""
    assert command(toy) == 1
    printed, at_once = capsys.readouterr()
    assert at_once.count(" survived\n  - return a < b\n") == 3, "also said when it is found"
    row = printed.splitlines()[1].split()
    alive = {block.splitlines()[2].strip() for block in printed.split("\n\n")[1:]}
    assert alive == {"+ return a <= b", "+ return a >= b", "+ return None"}
    assert row[:4] == ["room", "8", "5", "3"]
    assert "too few killed" in printed
    assert "toy/room/sums.py:11 survived\n  - return a < b\n" in printed
    assert (toy / "toy/room/sums.py").read_text() == SOURCE


def test_equivalent_mutants_do_not_count(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are named by their line, wherever it stands; the rest passes the limit."""
    listed = [EQUIVALENT.format(becomes=b) for b in ("a <= b", "a>=b", "None")]
    (toy / "settings.toml").write_text(SETTINGS + "".join(listed))
    (toy / "toy/room/sums.py").write_text("# moved\n\n" + SOURCE)
    assert command(toy) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:6] == ["8", "5", "0", "0", "3"]


def test_without_time_or_tests_nothing_is_run(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was not tried is said; a module without a test file has untested mutants."""
    assert command(toy, "--minutes", "0", "--sample", "4") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:7] == ["4", "0", "0", "0", "0", "4"]
    (toy / "tests/room/test_sums.py").unlink()
    assert command(toy, "--sample", "4") == 1
    assert capsys.readouterr().out.splitlines()[1].split()[1:5] == ["4", "0", "0", "4"]


def test_tests_must_pass_before_anything_is_changed(toy: Path) -> None:
    """Tests that fail anyway would kill every mutant."""
    (toy / "tests/room/test_sums.py").write_text("def test() -> None:\n    assert False\n")
    with pytest.raises(SystemExit, match=r"tests/room/test_sums.py fails; run make test"):
        command(toy)


def test_no_time_is_endless(toy: Path) -> None:
    """A change after which the tests do not end counts as killed."""
    (toy / "toy/room/sums.py").write_text(
        "def count(n: int) -> int:\n    while n > 0:\n        n = n - 5\n    return n\n"
    )
    (toy / "tests/room/test_sums.py").write_text(
        "from toy.room.sums import count\n\n\ndef test() -> None:\n    assert count(5) == 0\n"
    )
    source = (toy / "toy/room/sums.py").read_text()
    places = places_of("toy/room/sums.py", source)
    found = [m for place in places if (m := mutant_at(place, source)) and m.after == "n = n + 5"]
    checkout = Checkout.copy(toy, toy.parent / "copy", "toy")
    assert checkout.kills(found[0], ["tests/room/test_sums.py"], 3)
    assert checkout.passes(["tests/room/test_sums.py"], 60)


CODE = '''"""Doc 1 < 2."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from a import b
__all__ = ["f"]
LIMIT = 3
@decorated(frozen=True)
def f(a: int | None, /, *, b: dict[str, int]) -> int | None:
    """Doc 1 + 2."""
    g(*a, **b)
    x: int | None = a
    return dict(zip(a, {**b}, strict=True))
'''


def test_types_docstrings_and_separators_are_left_alone() -> None:
    """Of the code above only `return` can be changed."""
    assert [place.operator for place in places_of("m.py", CODE)] == ["ReturnNone"]


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("f(x if a in b else 1)", {"x if a not in b", "x if not a in b", "1)->2)", "1)->0)"}),
        ("f(a not in b)", {"a in b"}),
        ("f(a <= b)", {"a < b", "a > b"}),
        ("f(a == b and not c)", {"a != b", "or not c", "and c"}),
        ("f(-a * b)", {"f(a * b)", "-a / b"}),
        ("f(x is None)", {"x is not None"}),
        ("f(a[0])", {"a[1]", "a[-1]"}),
    ],
)
def test_operators(code: str, changed: set[str]) -> None:
    """Each operator makes its change and no other."""
    found = [mutant_at(place, code) for place in places_of("m.py", code)]
    lines = [key("", "", mutant.after)[2] for mutant in found if mutant is not None]
    assert len(lines) == len(changed)
    for part in changed:
        ending = part.split("->")[-1].replace(" ", "")
        assert any(ending in line for line in lines), (part, lines)


def test_what_is_listed_as_equivalent_still_exists_and_has_a_reason() -> None:
    """A line that was edited must be judged again."""
    settings = tomllib.loads(mutants.SETTINGS.read_text())
    every = cache(lambda module: places_of(module, (ROOT / module).read_text()))
    changed = cache(mutant_at)  # some lines are listed with several changes
    for entry in settings.get("equivalent", []):
        source = (ROOT / entry["module"]).read_text()
        wanted = key(entry["module"], entry["line"], entry["becomes"])
        places = [place for place in every(entry["module"]) if place.code == entry["line"]]
        made = (changed(place, source) for place in places)
        assert any(mutant is not None and mutant.key == wanted for mutant in made), entry
        assert len(entry["reason"].split()) > 3, entry


def test_files_named_in_the_settings_exist() -> None:
    """Rooms are folders of the package, further tests are files."""
    settings = mutants.Settings.read(mutants.SETTINGS)
    for room in settings.rooms:
        assert (ROOT / settings.package / room.name).is_dir()
    for module, tests in settings.also.items():
        assert all((ROOT / path).is_file() for path in [module, *tests])
