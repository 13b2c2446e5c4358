"""ppdmodel: latency and compute of predictive pipelined decoding, from formulas and measurements.

>>> import ppdmodel as ppd
>>> ppd.latency_per_token(0.7, layers=40, exit_layer=20)
26.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import symbolic
    from .comparison import compare
    from .counting import fit_table
    from .differing import differences
    from .distribution import TotalLatency, total_latency
    from .estimation import estimate, estimate_from, required_p_correct
    from .explorer import explore
    from .fitting import fit
    from .formulas import (
        DraftTree,
        best_exit,
        best_relative_exit,
        break_even,
        calibrated_break_even,
        calibrated_busy_time,
        calibrated_compute,
        calibrated_early_latency,
        calibrated_head_start,
        calibrated_latency,
        calibrated_plain_compute,
        calibrated_plain_latency,
        calibrated_speedup,
        calibrated_unfinished,
        compute_per_token,
        correlated_compute,
        correlated_latency,
        correlated_total_latency,
        draft_tree,
        exchange_rate,
        expected_total_latency,
        gated_compute,
        gated_latency,
        generation_time,
        latency_per_token,
        link_break_even,
        mean_units,
        multi_exit_compute,
        multi_exit_latency,
        normalized_compute,
        normalized_latency,
        parallel_draft_compute,
        parallel_draft_latency,
        peak_units,
        pipelined_compute,
        pipelined_latency,
        ppd_linked_latency,
        reserved_units,
        roofline_time,
        self_speculative_compute,
        self_speculative_latency,
        speculative_compute,
        speculative_latency,
        speculative_tokens_per_round,
        speedup,
        start_worth,
        tensor_parallel_compute,
        tensor_parallel_latency,
        tensor_parallel_linked_latency,
        threshold,
        total_latency_variance,
        tree_speculative_compute,
        tree_speculative_latency,
    )
    from .io import load, load_guesses, save
    from .optimization import optimize
    from .replays import replay_report
    from .results import Calibration, Guesses, Measurement, Policy, Replay, Simulation
    from .sensitivities import sensitivity
    from .simulation import replay, simulate
    from .thresholds import threshold_report

#: module -> its public names, loaded when a name is first used. No module is called like one of
#: its public names: importing it would hide that name behind the module.
_NAMES = {
    "comparison": ("compare",),
    "counting": ("fit_table",),
    "differing": ("differences",),
    "distribution": ("TotalLatency", "total_latency"),
    "estimation": ("estimate", "estimate_from", "required_p_correct"),
    "explorer": ("explore",),
    "fitting": ("fit",),
    "io": ("load", "load_guesses", "save"),
    "optimization": ("optimize",),
    "replays": ("replay_report",),
    "results": ("Calibration", "Guesses", "Measurement", "Policy", "Replay", "Simulation"),
    "sensitivities": ("sensitivity",),
    "simulation": ("replay", "simulate"),
    "thresholds": ("threshold_report",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

#: every formula is public: `formulas.__all__` is the list
__all__ = [
    "Calibration",
    "DraftTree",
    "Guesses",
    "Measurement",
    "Policy",
    "Replay",
    "Simulation",
    "TotalLatency",
    "__version__",
    "best_exit",
    "best_relative_exit",
    "break_even",
    "calibrated_break_even",
    "calibrated_busy_time",
    "calibrated_compute",
    "calibrated_early_latency",
    "calibrated_head_start",
    "calibrated_latency",
    "calibrated_plain_compute",
    "calibrated_plain_latency",
    "calibrated_speedup",
    "calibrated_unfinished",
    "compare",
    "compute_per_token",
    "correlated_compute",
    "correlated_latency",
    "correlated_total_latency",
    "differences",
    "draft_tree",
    "estimate",
    "estimate_from",
    "exchange_rate",
    "expected_total_latency",
    "explore",
    "fit",
    "fit_table",
    "gated_compute",
    "gated_latency",
    "generation_time",
    "latency_per_token",
    "link_break_even",
    "load",
    "load_guesses",
    "mean_units",
    "multi_exit_compute",
    "multi_exit_latency",
    "normalized_compute",
    "normalized_latency",
    "optimize",
    "parallel_draft_compute",
    "parallel_draft_latency",
    "peak_units",
    "pipelined_compute",
    "pipelined_latency",
    "ppd_linked_latency",
    "replay",
    "replay_report",
    "required_p_correct",
    "reserved_units",
    "roofline_time",
    "save",
    "self_speculative_compute",
    "self_speculative_latency",
    "sensitivity",
    "simulate",
    "speculative_compute",
    "speculative_latency",
    "speculative_tokens_per_round",
    "speedup",
    "start_worth",
    "symbolic",
    "tensor_parallel_compute",
    "tensor_parallel_latency",
    "tensor_parallel_linked_latency",
    "threshold",
    "threshold_report",
    "total_latency",
    "total_latency_variance",
    "tree_speculative_compute",
    "tree_speculative_latency",
]


def __getattr__(name: str) -> Any:
    if name == "symbolic":
        return importlib.import_module(".symbolic", __name__)
    if name in _HOMES or name in __all__:
        return getattr(importlib.import_module(f".{_HOMES.get(name, 'formulas')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
