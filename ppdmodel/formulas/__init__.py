"""Closed forms, one module per decoding method. Nothing else in the package holds a formula."""

from .ppd import (
    break_even,
    compute_per_token,
    exchange_rate,
    latency_per_token,
    mean_units,
    normalized_compute,
    normalized_latency,
    peak_units,
    reserved_units,
    speedup,
)

__all__ = [
    "break_even",
    "compute_per_token",
    "exchange_rate",
    "latency_per_token",
    "mean_units",
    "normalized_compute",
    "normalized_latency",
    "peak_units",
    "reserved_units",
    "speedup",
]
