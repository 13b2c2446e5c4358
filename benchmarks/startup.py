"""Start-up of `ppdmodel estimate` against `import numpy`, interleaved."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

REPEATS, LIMIT = 21, 1.6


def main() -> None:
    """Print both medians and their ratio."""
    python = sys.executable
    estimate = ["-m", "ppdmodel", "estimate", "--p-correct", "0.7", "--layers", "40"]
    commands = {"estimate": [python, *estimate], "import numpy": [python, "-c", "import numpy"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(REPEATS):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"  {name:<14} median {middle:.3f} s, quartiles {low:.3f} to {high:.3f} s")
    medians = [statistics.median(times) for times in seconds.values()]
    print(f"  ratio {medians[0] / medians[1]:.2f}, limit {LIMIT}")
