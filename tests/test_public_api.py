"""The public names, frozen, and what importing them costs."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import ppdmodel
from tests.support.runs import ended, start

NAMES = [
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
    "prompt_lookup_compute",
    "prompt_lookup_latency",
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
HEAVY = ("torch", "sympy", "matplotlib", "pandas", "numpy", "scipy", "transformers", "pyarrow")


def test_the_public_names_are_these() -> None:
    assert dir(ppdmodel) == sorted(NAMES)
    assert sorted(ppdmodel.__all__) == sorted(NAMES)
    for name in NAMES:
        assert getattr(ppdmodel, name) is not None


def import_everything() -> None:
    """Import every module, which sets it as an attribute of its package, and look at the names."""
    for module in pkgutil.walk_packages(ppdmodel.__path__, "ppdmodel."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    packages = (ppdmodel, importlib.import_module("ppdmodel.measure"))
    bad = [
        name
        for package in packages
        for name in package.__all__
        if name != "symbolic" and isinstance(getattr(package, name), ModuleType)
    ]
    assert not bad, bad


def test_no_module_hides_a_public_name() -> None:
    assert ended(start(import_everything)) == 0


def loaded_by(code: str) -> list[str]:
    script = f"import sys\n{code}\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split()


def test_importing_loads_nothing_heavy() -> None:
    assert loaded_by("import ppdmodel; ppdmodel.latency_per_token(0.7, 40, 20)") == []


def test_estimate_starts_light() -> None:
    command = ["estimate", "--p-correct", "0.7", "--layers", "40"]
    code = f"from ppdmodel.cli import run\nassert run({command}) == 0"
    assert loaded_by(code) == []


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(ppdmodel, "no_such_name")
