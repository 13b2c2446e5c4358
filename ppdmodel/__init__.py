"""ppdmodel: latency and compute of predictive pipelined decoding, from formulas and measurements.

>>> import ppdmodel as ppd
>>> ppd.latency_per_token(0.7, layers=40, exit_layer=20)
26.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: module -> its public names, loaded when a name is first used. No module is called like one of
#: its public names: importing it would hide that name behind the module.
_NAMES = {
    "formulas": (
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
    ),
    "distribution": ("TotalLatency", "total_latency"),
    "estimation": ("estimate", "estimate_from", "required_p_correct"),
    "fitting": ("fit",),
    "io": ("load", "save"),
    "optimization": ("optimize",),
    "results": ("Calibration", "Measurement"),
    "simulation": ("simulate", "simulate_matches"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Calibration",
    "Measurement",
    "TotalLatency",
    "__version__",
    "break_even",
    "compute_per_token",
    "estimate",
    "estimate_from",
    "exchange_rate",
    "fit",
    "latency_per_token",
    "load",
    "mean_units",
    "normalized_compute",
    "normalized_latency",
    "optimize",
    "peak_units",
    "required_p_correct",
    "reserved_units",
    "save",
    "simulate",
    "simulate_matches",
    "speedup",
    "total_latency",
]

if TYPE_CHECKING:
    from .distribution import TotalLatency, total_latency
    from .estimation import estimate, estimate_from, required_p_correct
    from .fitting import fit
    from .formulas import (
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
    from .io import load, save
    from .optimization import optimize
    from .results import Calibration, Measurement
    from .simulation import simulate, simulate_matches


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
