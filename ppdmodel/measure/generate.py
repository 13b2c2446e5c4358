"""Greedy text from the model itself, with the hidden states that made each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .exits import LogitExit, captured


@dataclass(frozen=True)
class Generated:
    """A batch of greedy continuations, end-of-sequence tokens included.

    `token_ids` is [batch, steps] and `hidden` [batch, steps, layers, width]: what each layer held
    when that token was chosen. Only the first `lengths[b]` steps of row b were generated.
    """

    token_ids: Tensor
    hidden: Tensor
    lengths: list[int]


@torch.inference_mode()
def generate_greedy(
    model: Any,
    exit_: LogitExit,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_ids: frozenset[int],
    on_step: Callable[[int, int], None] = lambda step, active: None,
) -> Generated:
    """Decode a batch of tokenized prompts with a KV cache, padded on the left.

    Args:
        model: a decoder with a language-model head.
        exit_: its layers, from `logit_exit`.
        prompts: token ids, one sequence a prompt; none empty.
        max_new_tokens: tokens to generate for each, unless it ends earlier.
        end_ids: a sequence stops after one of these.
        on_step: called after each step with its number from 1 and how many sequences got a token.
    """
    device = model.device
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    cache = DynamicCache(config=model.config)
    tokens = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=device)
    lengths, ended = [0] * len(prompts), [False] * len(prompts)
    states: list[Tensor] = []
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with captured(exit_) as latest:
        for step in range(max_new_tokens):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            states.append(torch.stack(latest, dim=1))
            chosen = logits.argmax(-1)
            tokens[:, step] = chosen
            active = [row for row in range(len(prompts)) if not ended[row]]
            for row in active:
                lengths[row] += 1
                ended[row] = int(chosen[row]) in end_ids
            on_step(step + 1, len(active))
            if all(ended):
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return Generated(tokens[:, : len(states)], torch.stack(states, dim=1), lengths)
