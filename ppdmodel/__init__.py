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
    from .decide.compare import compare
    from .decide.estimate import estimate, estimate_from, required_p_correct
    from .decide.optimize import optimize
    from .decide.replay_report import replay_report
    from .decide.threshold_rule import threshold_report
    from .fitting.calibrate import fit
    from .fitting.counts_file import fit_table
    from .fitting.group_differences import differences
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
        symbolic,
        tensor_parallel_compute,
        tensor_parallel_latency,
        tensor_parallel_linked_latency,
        threshold,
        total_latency_variance,
        tree_speculative_compute,
        tree_speculative_latency,
    )
    from .formulas.distribution import TotalLatency, total_latency
    from .formulas.symbolic.sensitivity import sensitivity
    from .results.calibration import Calibration
    from .results.io import load, load_guesses, save
    from .results.measurement import Guesses, Measurement
    from .show.explorer import explore
    from .simulation.policy import Policy
    from .simulation.runs import Replay, Simulation
    from .simulation.simulator import replay, simulate

#: module -> its public names beside the formulas, loaded when a name is first used
_NAMES = {
    "decide.compare": ("compare",),
    "decide.estimate": ("estimate", "estimate_from", "required_p_correct"),
    "decide.optimize": ("optimize",),
    "decide.replay_report": ("replay_report",),
    "decide.threshold_rule": ("threshold_report",),
    "fitting.calibrate": ("fit",),
    "fitting.counts_file": ("fit_table",),
    "fitting.group_differences": ("differences",),
    "formulas.distribution": ("TotalLatency", "total_latency"),
    "formulas.symbolic.sensitivity": ("sensitivity",),
    "results.calibration": ("Calibration",),
    "results.io": ("load", "load_guesses", "save"),
    "results.measurement": ("Guesses", "Measurement"),
    "show.explorer": ("explore",),
    "simulation.policy": ("Policy",),
    "simulation.runs": ("Replay", "Simulation"),
    "simulation.simulator": ("replay", "simulate"),
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
        return importlib.import_module(".formulas.symbolic", __name__)
    if name in _HOMES or name in __all__:
        return getattr(importlib.import_module(f".{_HOMES.get(name, 'formulas')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
