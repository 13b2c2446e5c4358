"""Random arguments within their domains for any closed form, by parameter name."""

from __future__ import annotations

import random
from typing import Any

from ppdmodel.formulas import symbolic


def arguments(name: str, rng: random.Random) -> dict[str, Any]:
    """One random point of a closed form."""
    p, d = rng.random(), rng.randint(1, 40)
    lowest = max(-p / (1 - p), -(1 - p) / p) if 0 < p < 1 else 0.0
    drawn = {
        "p_correct": p,
        "layers": d,
        "exit_layer": rng.randint(1, d),
        "k": rng.randint(1, 4),
        "depth": rng.randint(1, 4),
        "overhead": rng.uniform(0, 5),
        "tokens": rng.randint(1, 12),
        "matches": max(rng.randint(0, 11), 1),  # room for a difference below
        "groups": max(rng.randint(0, 5), 1),
        "autocorrelation": rng.uniform(0.99 * lowest, 0.95),
        "share": rng.random(),
        "exponent": rng.uniform(0.2, 6),
        "price": rng.uniform(0, 10),
        "acceptance_rate": rng.random(),
        "draft_tokens": rng.randint(0, 7),
        "block_tokens": rng.randint(1, 7),
        "draft_time": rng.uniform(0, 1),
        "draft_compute": rng.uniform(0, 1),
        "reuse": rng.choice([0, 1]),
        "found_rate": rng.random(),
        "verification_time": rng.uniform(0.9, 3),
        "stages": rng.randint(1, 8),
        "draft_layers": rng.uniform(0, 3),
        "tokens_per_round": rng.uniform(1, 5),
        "tree_depth": rng.randint(0, 6),
        "tree_nodes": rng.randint(1, 20),
        "drafted_from": rng.randint(0, 10),
        "units": rng.randint(1, 8),
        "efficiency": rng.uniform(0.3, 1),
        "layer_time": rng.uniform(0.5, 2),
        "busy_layer_time": rng.uniform(0.5, 2),
        "batch_layer_time": rng.uniform(0.5, 3),
        "head_time": rng.uniform(1, 8),
        "plain_head_time": rng.uniform(1, 8),
        "exit_time": rng.uniform(0.1, 8),
        "token_time": rng.uniform(0.1, 2),
        "start_delay": rng.uniform(0.1, 1),
        "promotion_delay": rng.uniform(0.1, 1),
        "unfinished": rng.random(),
        "link_time": rng.uniform(0, 2),
        "all_reduce_time": rng.uniform(0, 2),
        "all_reduce_messages": rng.uniform(1.1, 6),
        "messages_per_match": rng.uniform(0, 2),
        "weights": rng.uniform(1, 9),
        "rows": rng.randint(1, 9),
        "bytes_per_weight": rng.uniform(0.5, 4),
        "bytes_per_second": rng.uniform(1, 3),
        "flops_per_second": rng.uniform(1, 9),
    }
    if name == "break_even":  # infinite for e = d
        drawn["layers"] = d + 1
    if name == "calibrated_break_even":  # infinite where a match saves nothing
        drawn |= {"token_time": rng.uniform(4, 6), "head_time": rng.uniform(9.5, 12)}
    return {parameter: drawn[parameter] for parameter in symbolic.formula(name).parameters}
