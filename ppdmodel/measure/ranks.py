"""The rank of the true token among an exit's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from .exits import LogitExit

#: rows of logits made at a time: enough for an efficient product, few enough for memory
ROWS = 256


@torch.inference_mode()
def rank_tokens(exit_: LogitExit, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Rank each true token by the logits read off one layer.

    Args:
        exit_: how to read logits off that layer.
        hidden: that layer's states, [n, width].
        targets: the token generated from each state, [n].

    Returns:
        Ranks [n] (int32, 1 + the number of larger logits) and the exit's top probability [n]
        (float32). The target's logit is taken from the same row of logits that it is ranked in.
    """
    ranks = torch.empty(len(targets), dtype=torch.int32)
    top_prob = torch.empty(len(targets), dtype=torch.float32)
    for start in range(0, len(targets), ROWS):
        rows = slice(start, start + ROWS)
        logits = exit_.logits(hidden[rows])
        own = logits.gather(1, targets[rows, None])
        ranks[rows] = (logits > own).sum(1, dtype=torch.int32).cpu() + 1
        top = logits.amax(1).float() - logits.float().logsumexp(1)
        top_prob[rows] = top.exp().cpu()
    return ranks, top_prob


@torch.inference_mode()
def margin(exit_: LogitExit, hidden: Tensor, target: int) -> float:
    """How far the true token's logit lies below the largest, for one state [width]."""
    logits = exit_.logits(hidden[None])[0]
    return float(logits.max() - logits[target])
