"""The simulator on a million tokens, and the exact distribution of a thousand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from ppdmodel import compute_per_token, latency_per_token, simulate, total_latency

REPEATS = 3


def main() -> None:
    """Print medians beside their limits; one thread each."""
    jobs: list[tuple[str, float, Callable[[], object]]] = [
        ("10^6 tokens, d = 40, e = 20, k = 3, D = 1", 10, lambda: simulated(20)),
        ("10^6 tokens, d = 40, e = 4, k = 3, D = 1", 10, lambda: simulated(4)),
        (
            "total of 1000 tokens, d = 80, e = 40, D = 1",
            0.1,
            lambda: total_latency(0.7, 80, 40, 1000),
        ),
        (
            "total of 1000 tokens, d = 80, e = 5, D = 1",
            0.1,
            lambda: total_latency(0.7, 80, 5, 1000),
        ),
        (
            "total of 1000 tokens, d = 80, e = 5, D = 4",
            0.1,
            lambda: total_latency(0.7, 80, 5, 1000, 4),
        ),
    ]
    for name, limit, job in jobs:
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        print(f"  {name:<44} median {median:.3f} s, limit {limit:g} s, worst {max(seconds):.3f} s")


def simulated(exit_layer: int) -> None:
    """A million tokens, close to the closed forms."""
    run = simulate(0.7, 40, exit_layer, 3, tokens=1_000_000)
    latency = latency_per_token(0.7, 40, exit_layer)
    compute = compute_per_token(0.7, 40, exit_layer, 3)
    assert abs(run.latency_per_token / latency - 1) < 0.005
    assert abs(run.compute_per_token / compute - 1) < 0.005
