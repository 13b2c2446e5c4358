"""ppdmodel: latency and compute of predictive pipelined decoding, from formulas and measurements.

>>> import ppdmodel as ppd
>>> ppd.latency_per_token(0.7, layers=40, exit_layer=20)
26.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .formulas import *
from .formulas.registry import FORMULAS

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .decide.compare import compare as compare
    from .decide.estimate import estimate as estimate
    from .decide.estimate import estimate_from as estimate_from
    from .decide.estimate import required_p_correct as required_p_correct
    from .decide.optimize import optimize as optimize
    from .decide.replay_report import replay_report as replay_report
    from .decide.threshold_rule import threshold_report as threshold_report
    from .fitting.calibrate import fit as fit
    from .fitting.counts_file import fit_table as fit_table
    from .fitting.group_differences import differences as differences
    from .formulas import symbolic as symbolic
    from .formulas.distribution import TotalLatency as TotalLatency
    from .formulas.distribution import total_latency as total_latency
    from .formulas.symbolic.sensitivity import sensitivity as sensitivity
    from .results.calibration import Calibration as Calibration
    from .results.io import load as load
    from .results.io import load_guesses as load_guesses
    from .results.io import save as save
    from .results.measurement import Guesses as Guesses
    from .results.measurement import Measurement as Measurement
    from .show.explorer import explore as explore
    from .simulation.policy import Policy as Policy
    from .simulation.runs import Replay as Replay
    from .simulation.runs import Simulation as Simulation
    from .simulation.simulator import replay as replay
    from .simulation.simulator import simulate as simulate

#: module -> its public names beside the formulas, imported when a name is first used
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
    "formulas.draft_tree": ("DraftTree",),
    "formulas.symbolic": ("symbolic",),
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
_PUBLIC = sorted([*FORMULAS, *_HOMES, "__version__"])

if not TYPE_CHECKING:  # type checkers read the imports above
    __all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module = importlib.import_module(f".{_HOMES[name]}", __name__)
        return getattr(module, name, module)  # `symbolic` is a module itself
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return _PUBLIC
