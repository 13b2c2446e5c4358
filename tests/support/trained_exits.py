"""Trained exits by another path: states by Transformers, maps by least squares, states replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppdmodel.measure.prompts import Prompt
from ppdmodel.measure.training.hidden_states import States
from tests.conftest import TEXT

LAYERS, TOKENS, LAYER = 5, 10, 3
WORDS = TEXT.split()
TRAINING = [Prompt(f"t{n}", " ".join(WORDS[n % 7 : n % 7 + 2 + n % 5]) + str(n)) for n in range(13)]


def forced(model: Any, tokenizer: Any, text: str) -> tuple[list[int], list[Tensor], Tensor]:
    """What Transformers itself generates: token ids, each layer's states, and the head's input."""
    ids: list[int] = tokenizer(f"[user] {text}\n[assistant] ", add_special_tokens=False).input_ids
    given = torch.tensor([ids])
    with torch.no_grad():
        whole = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=TOKENS, do_sample=False
        )
        found = model(whole, output_hidden_states=True, use_cache=False).hidden_states
    mine = slice(len(ids) - 1, -1)
    below = [layer[0, mine] for layer in found[1:-1]]  # the last one has been through the norm
    return whole[0, len(ids) :].tolist(), below, found[-1][0, mine]


def least_squares(x: Any, y: Any, penalty: float) -> tuple[Any, Any]:
    """Ridge as plain least squares: rows for the penalty, a column for the bias, not penalized."""
    n, width = x.shape
    scale = x.std(axis=0)
    data = np.hstack([x / scale, np.ones((n, 1))])
    rows = np.hstack([np.sqrt(n * penalty) * np.eye(width), np.zeros((width, 1))])
    padded = np.vstack([y, np.zeros((width, y.shape[1]))])
    found = np.linalg.lstsq(np.vstack([data, rows]), padded)[0]
    return (found[:-1] / scale[:, None]).T, found[-1]


def ranks_of(logits: Tensor, made: Sequence[int]) -> list[int]:
    """The rank of each token among its row of logits [n, vocabulary], by sorting."""
    order = logits.argsort(dim=1, descending=True)
    found: list[int] = ((order == torch.tensor(made)[:, None]).nonzero()[:, 1] + 1).tolist()
    return found


def poisoned(
    found: States, folder: Path, hit: Callable[[Tensor], Tensor], value: float, layer: int | None
) -> States:
    """A copy in which some prompts' states (of one layer, or all) are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for path in found.files:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        mine = hit(tensors["prompt"])
        if layer is None:
            tensors["hidden"][:, mine] = value
        else:
            tensors["hidden"][layer - 1, mine] = value
        save_file(tensors, folder / path.name, metadata=metadata)
        files.append(folder / path.name)
    return replace(found, files=tuple(files))
