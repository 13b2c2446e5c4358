"""A model of a stated shape with random weights, to time shapes whose weights are not at hand.

What a layer costs depends on its sizes, not on the values of its weights. What such a model writes
means nothing, and neither do its match rates.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.initialization import no_init_weights

from ..decide.hardware import models, shape
from ..decide.roofline import shape_from_config
from ..errors import InvalidInputError
from ..measure.models.faults import (
    CONFIG,
    explained,
    fault_of_config,
    json_of,
    model_without_weights,
)
from ..measure.models.loading import DTYPES, LoadedModel, check_hardware, quiet
from ..measure.models.sources import ModelSource
from ..results.files import check_path

#: of the weights
SEED = 0
#: random numbers that are drawn at a time
DRAWN = 2**22
#: bytes of memory for each weight until units have it: in float32 the model's, its layers'
#: matrices joined, and those that units share; a shorter format is compared in float32 first
NEEDED_BYTES = 12


def random_source(config: str) -> ModelSource:
    """Read a configuration that a model with random weights can be made of.

    Args:
        config: a config.json, its folder, or the name of a shape in `decide/shapes.json`, which is
            taken as a Llama with a head of its own.

    Raises:
        InvalidInputError: there is no such configuration, or it is not one of a dense decoder.
    """
    name, document = _read(config)
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return ModelSource(
        name=f"{name} with random weights",
        folder=Path(),
        gguf=None,
        weights_sha256=(),
        quantization=None,
        random_weights={"config_sha256": digest, "seed": SEED, "config": document},
    )


def random_model(source: ModelSource, dtype: str = "float32") -> LoadedModel:
    """Make a model with random weights, and no tokenizer.

    Each matrix [out, in] is uniform with variance 1 / in, so that states stay finite in every
    number format; norms are 1 and biases 0. The same configuration has the same weights everywhere.
    They are made once, in `dtype`, on the CPU.

    Args:
        source: from `random_source`.
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        InvalidInputError: no such dtype, no decoder can be made of the configuration, or its
            weights do not fit the memory.
    """
    check_hardware(dtype, None, None)
    assert source.random_weights is not None
    document = source.random_weights["config"]
    with quiet():
        with explained(source.name, lambda: fault_of_config(document)):
            config = transformers.AutoConfig.for_model(**deepcopy(document))
            without = model_without_weights(config)
        _check_memory(source.name, without, dtype)
        with explained(source.name, lambda: fault_of_config(document)), no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[dtype], trust_remote_code=False
            )
        model.tie_weights()
    _fill(model)
    return LoadedModel(source, model.eval().requires_grad_(False), tokenizer=None)


def _read(config: str) -> tuple[str, dict[str, Any]]:
    """The name and the document of a configuration."""
    if config in models():
        return config, _as_llama(config)
    path = Path(config)
    check_path(path)
    if not path.exists():
        raise InvalidInputError(
            f"config must be a {CONFIG} or a known shape ({', '.join(models())}); got {config!r}; "
            "give one of them"
        )
    shape_from_config(path)  # its sizes are those of a decoder
    path = path / CONFIG if path.is_dir() else path
    name = path.resolve().parent.name if path.name == CONFIG else path.stem
    return name, {"model_type": "llama", **json_of(path)}


def _as_llama(name: str) -> dict[str, Any]:
    """The configuration of a known shape."""
    known = shape(name)
    return {
        "model_type": "llama",
        "vocab_size": known.vocabulary,
        "hidden_size": known.width,
        "intermediate_size": known.inner,
        "num_hidden_layers": known.layers,
        "num_attention_heads": known.heads,
        "num_key_value_heads": known.kv_heads,
        "head_dim": known.head_width or known.width // known.heads,
        "tie_word_embeddings": False,
    }


def _check_memory(name: str, model: Any, dtype: str) -> None:
    """Refuse weights that units could not be given; nothing is checked where memory is unknown."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    needed, there = NEEDED_BYTES * numbers, available_memory()
    if there is not None and needed > there:
        raise InvalidInputError(
            f"{name} must fit the memory; got {numbers / 1e9:.3g} billion weights in {dtype}, "
            f"which need {needed / 1e9:.3g} GB until units have them, and {there / 1e9:.3g} GB "
            "free; take a smaller shape, or a machine with more"
        )


def available_memory() -> int | None:
    """Bytes that new processes can have, as far as Linux tells it; None where it does not."""
    found = []
    for file, line in (("/proc/meminfo", "MemAvailable:"), ("/sys/fs/cgroup/memory.max", "")):
        try:
            text = Path(file).read_text(encoding="ascii")
        except OSError:
            continue
        for row in text.splitlines():
            number = row.removeprefix(line).split()
            if row.startswith(line) and number[0].isdigit():
                found.append(int(number[0]) * (1024 if line else 1))
    return min(found, default=None)


def _fill(model: Any) -> None:
    """Draw the weights, each from a seed of its own, so that threads can share the work."""
    known = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    with ThreadPoolExecutor(cpus) as pool:
        named = enumerate(model.named_parameters())
        jobs = [pool.submit(_draw, number, name, weight) for number, (name, weight) in named]
        for job in jobs:
            job.result()


@torch.no_grad()
def _draw(number: int, name: str, weight: Tensor) -> None:
    if weight.ndim < 2:
        weight.fill_(0.0 if name.endswith("bias") else 1.0)
        return
    rng, flat = np.random.default_rng((SEED, number)), weight.view(-1)
    most = (3 / weight.shape[-1]) ** 0.5
    for begin in range(0, len(flat), DRAWN):
        part = flat[begin : begin + DRAWN]
        drawn = torch.from_numpy(rng.random(len(part), dtype=np.float32))
        part.copy_(drawn.mul_(2 * most).sub_(most))
