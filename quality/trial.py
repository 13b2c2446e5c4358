"""Run the tests of one module in a copy of the checkout, with and without a change."""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from py_compile import PycInvalidationMode

from quality.mutations import Mutant

# a mutant may be slower without an infinite loop
SLOWER, MARGIN_S = 3.0, 20.0
LONGEST_S = 1800.0
# plugins that the tests of a module do not need take seconds to load
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
OPTIONS += ["--no-header", "--hypothesis-seed=0"]
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@dataclass
class Checkout:
    """A copy of the files that git knows or could add, for one mutant at a time."""

    root: Path
    running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @classmethod
    def copy(cls, source: Path, root: Path, package: str) -> Checkout:
        """Copy what git lists of `source` to `root`, and compile the package."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=source,
            check=True,
            capture_output=True,
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (source / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, root / name)
        # checked by content: a changed file of the same size and second is compiled again
        mode = PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(root / package, quiet=2, invalidation_mode=mode)
        return cls(root)

    def kills(self, mutant: Mutant, tests: list[str], timeout_s: float) -> bool:
        """Whether the tests fail, or do not end, with the change."""
        path = self.root / mutant.place.module
        original = path.read_bytes()
        try:
            path.write_text(mutant.source)
            return not self.passes(tests, timeout_s)
        finally:
            path.write_bytes(original)

    def seconds(self, tests: list[str]) -> float | None:
        """How long the tests take without a change; None where they fail."""
        begin = time.monotonic()
        return time.monotonic() - begin if self.passes(tests, LONGEST_S) else None

    def passes(self, tests: list[str], timeout_s: float) -> bool:
        """Whether the tests end in time and pass."""
        scratch = self.root.parent / f"{self.root.name}-tmp"
        scratch.mkdir(exist_ok=True)
        own = {"PYTHONPATH": str(self.root), "TMPDIR": str(scratch)}
        self.running = subprocess.Popen(
            [sys.executable, "-m", "pytest", *OPTIONS, *tests],
            cwd=self.root,
            env=os.environ | ENVIRONMENT | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return self.running.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.stop()
            shutil.rmtree(scratch, ignore_errors=True)

    def stop(self) -> None:
        """Kill the running tests and their child processes."""
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()


def limit_s(seconds: float) -> float:
    """How long the tests may take with a change."""
    return SLOWER * seconds + MARGIN_S


def tests_of(root: Path, package: str, module: str) -> list[str]:
    """The test file of a module, and the module itself where it has examples; [] without a file."""
    inside = Path(module).relative_to(package)
    test = Path("tests") / inside.with_name(f"test_{inside.name}")
    if not (root / test).is_file():
        return []
    has_examples = ">>> " in (root / module).read_text()
    return [test.as_posix(), *([module] if has_examples else [])]
