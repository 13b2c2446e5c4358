"""Start-up of `import ppdmodel` and `ppdmodel estimate` against `import numpy`, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

REPEATS, LIMIT = 21, 1.6
COMMANDS = {
    "import numpy": ("-c", "import numpy"),
    "import ppdmodel": ("-c", "import ppdmodel"),
    "estimate": ("-m", "ppdmodel", "estimate", "--p-correct", "0.7", "--layers", "40"),
}


def seconds(command: tuple[str, ...]) -> float:
    """How long a new Python process takes for a command."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print the quartiles of each, and the median of the ratios to the `import numpy` beside it."""
    rounds = [
        {name: seconds(command) for name, command in COMMANDS.items()} for _ in range(REPEATS)
    ]
    for name in COMMANDS:
        low, middle, high = statistics.quantiles([times[name] for times in rounds], n=4)
        ratio = statistics.median(times[name] / times["import numpy"] for times in rounds)
        said = "" if name == "import numpy" else f", ratio {ratio:.2f}, limit {LIMIT}"
        print(f"  {name:<15} median {middle:.3f} s, quartiles {low:.3f} to {high:.3f} s{said}")
