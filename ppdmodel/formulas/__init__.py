"""Formulas, a module per subject. Nothing else in the package holds a closed form."""

from .correlation import (
    correlated_compute,
    correlated_latency,
    correlated_total_latency,
    total_latency_variance,
)
from .decision import (
    best_exit,
    best_relative_exit,
    break_even,
    exchange_rate,
    start_worth,
    threshold,
)
from .draft_tree import DraftTree, draft_tree
from .early_exit import calibrated_early_latency
from .gated import gated_compute, gated_latency
from .generation import expected_total_latency, generation_time
from .linked import link_break_even, ppd_linked_latency, tensor_parallel_linked_latency
from .multi_exit import multi_exit_compute, multi_exit_latency
from .parallel import (
    parallel_draft_compute,
    parallel_draft_latency,
    pipelined_compute,
    pipelined_latency,
    tensor_parallel_compute,
    tensor_parallel_latency,
)
from .ppd import (
    compute_per_token,
    latency_per_token,
    mean_units,
    normalized_compute,
    normalized_latency,
    peak_units,
    reserved_units,
    speedup,
)
from .roofline import roofline_time
from .seconds import (
    calibrated_break_even,
    calibrated_busy_time,
    calibrated_compute,
    calibrated_head_start,
    calibrated_latency,
    calibrated_plain_compute,
    calibrated_plain_latency,
    calibrated_speedup,
    calibrated_unfinished,
)
from .speculative import (
    self_speculative_compute,
    self_speculative_latency,
    speculative_compute,
    speculative_latency,
    speculative_tokens_per_round,
    tree_speculative_compute,
    tree_speculative_latency,
)

__all__ = [
    "DraftTree",
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
    "compute_per_token",
    "correlated_compute",
    "correlated_latency",
    "correlated_total_latency",
    "draft_tree",
    "exchange_rate",
    "expected_total_latency",
    "gated_compute",
    "gated_latency",
    "generation_time",
    "latency_per_token",
    "link_break_even",
    "mean_units",
    "multi_exit_compute",
    "multi_exit_latency",
    "normalized_compute",
    "normalized_latency",
    "parallel_draft_compute",
    "parallel_draft_latency",
    "peak_units",
    "pipelined_compute",
    "pipelined_latency",
    "ppd_linked_latency",
    "reserved_units",
    "roofline_time",
    "self_speculative_compute",
    "self_speculative_latency",
    "speculative_compute",
    "speculative_latency",
    "speculative_tokens_per_round",
    "speedup",
    "start_worth",
    "tensor_parallel_compute",
    "tensor_parallel_latency",
    "tensor_parallel_linked_latency",
    "threshold",
    "total_latency_variance",
    "tree_speculative_compute",
    "tree_speculative_latency",
]
