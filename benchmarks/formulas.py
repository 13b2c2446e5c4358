"""`latency_per_token` over ten million points against the bare NumPy expression."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from ppdmodel import latency_per_token

POINTS, REPEATS, LAYERS = 10_000_000, 7, 40


def bare(p: np.ndarray, e: np.ndarray) -> np.ndarray:
    """The same closed form at depth 1, in plain NumPy."""
    wait = np.maximum(LAYERS - 2 * e, 0)
    latency: np.ndarray = LAYERS - p * (LAYERS - e) + wait * p**2 / (1 + p)
    return latency


def main() -> None:
    """Print the ratio of medians, and the peak memory in output-sized arrays."""
    rng = np.random.default_rng(0)
    p, e = rng.random(POINTS), rng.integers(1, LAYERS + 1, POINTS).astype(float)
    runs: dict[str, Callable[[], np.ndarray]] = {
        "latency_per_token": lambda: latency_per_token(p, LAYERS, e),
        "bare expression": lambda: bare(p, e),
    }
    ours, theirs = (run() for run in runs.values())
    assert np.allclose(ours, theirs, rtol=1e-13)
    del ours, theirs
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        tracemalloc.start()
        runs[name]()
        peak = tracemalloc.get_traced_memory()[1] / (8 * POINTS)
        tracemalloc.stop()
        print(
            f"  {name:<18} median {statistics.median(times):.3f} s, "
            f"{min(times):.3f} to {max(times):.3f} s, peak {peak:.1f} output-sized arrays"
        )
    medians = [statistics.median(times) for times in seconds.values()]
    print(f"  ratio {medians[0] / medians[1]:.2f}, limit 2; peak limit 6 arrays")
