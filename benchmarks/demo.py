"""Time and memory of `make demo` after installation, and of a second run."""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from pathlib import Path

SECONDS, GIB = 300, 4


def main() -> None:
    """Run what `make demo` runs, twice, into a folder of its own."""
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first run", "second run"):
            start = time.perf_counter()
            subprocess.run(
                ["make", "--no-print-directory", "demo", f"RESULTS={folder}/results"],
                cwd=root,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(
                f"  {name}: {seconds:.0f} s (limit {SECONDS}), largest process {peak:.2f} GiB "
                f"(limit {GIB})"
            )
