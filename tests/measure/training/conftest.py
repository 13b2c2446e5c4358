"""The tiny model as Transformers itself loads it, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppdmodel.measure.models.loading import threads


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model only waits for more of them."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def plain_model(tiny_model: Path) -> tuple[Any, Any]:
    """The tiny model and its tokenizer, as Transformers loads them."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_model)
