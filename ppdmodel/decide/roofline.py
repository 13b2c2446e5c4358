"""Roofline model of a timing, from data-sheet bandwidth and arithmetic and a model's sizes.

Every time is the larger of the memory time and the arithmetic time of a step. Kernel launches,
contention and attention over the KV cache are ignored: the times are ideal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import MOST_LAYERS, positive_integer, real_number
from ..errors import InvalidInputError
from ..formulas import roofline_time, tensor_parallel_linked_latency
from ..results.calibration import Calibration
from ..results.files import parse_json, read_text
from ..results.intervals import percentiles, prompt_weights, resampled_rates
from ..results.timing import Timed, Timing
from .hardware import Device, ModelShape
from .prediction import SCHEDULE

#: largest size in a config: vocabularies have 256 thousand tokens
MOST_SIZE = 10**8
#: by the matrices of a feed-forward block, the `model_type` of builds that have no other weights
#: than attention, such blocks, vectors and a head; a test counts the parameters of each
MATRICES = {
    2: (
        "apertus", "arcee", "gpt_neox", "jais2", "nanochat", "nemotron", "persimmon", "phi",
        "starcoder2",
    ),
    3: (
        "cohere", "cohere2", "cwm", "diffllama", "ernie4_5", "exaone4", "gemma", "gemma2",
        "gemma3_text", "glm", "glm4", "granite", "hunyuan_v1_dense", "hyperclovax", "internlm3",
        "llama", "ministral", "ministral3", "mistral", "olmo", "olmo2", "olmo3", "phi3", "qwen2",
        "qwen3", "seed_oss", "smollm3", "vaultgemma",
    ),
}  # fmt: skip
#: builds without groups of heads, whatever their config says
UNGROUPED = frozenset({"gpt_neox", "persimmon"})
#: default batch sizes of sub-processes
DEFAULT_K = (1, 2, 3, 4, 5, 8, 16, 32)


def ideal_times(
    shape: ModelShape, device: Device, *, rows: int = 1, bytes_per_weight: float = 2
) -> tuple[float, float]:
    """Least seconds of a layer and of the head for a batch of some rows, equation (12.1).

    Raises:
        InvalidInputError: an argument is outside its domain.

    >>> from ppdmodel.decide.hardware import device, shape
    >>> layer, head = ideal_times(shape("Llama 2 7B"), device("H100 SXM"))
    >>> round(1e6 * layer, 1), round(1e6 * head, 1)
    (120.8, 78.3)
    """
    layer, head = (
        float(roofline_time(w, rows, bytes_per_weight, device.bytes_per_s, device.flops_per_s))
        for w in (shape.layer_weights, shape.head_weights)
    )
    return layer, head


def roofline(
    shape: ModelShape,
    device: Device,
    *,
    ks: Sequence[int] = DEFAULT_K,
    bytes_per_weight: float = 2,
    units_per_process: int = 1,
    link_time_s: float = 0.0,
) -> Timing:
    """Ideal times of a model's layers and heads on a device.

    Args:
        shape: sizes of the model.
        device: bytes and operations per second.
        ks: sizes of a batch of sub-processes.
        bytes_per_weight: 2 for float16 and bfloat16.
        units_per_process: devices of tensor parallelism in each process, without communication.
        link_time_s: a small message between devices. It delays PPD's guesses once; the tensor
            parallel baseline has two all-reduces a layer and one for the head.

    Returns:
        A timing without intervals, labelled ideal: delays and contention are zero.

    Raises:
        InvalidInputError: an argument is outside its domain.
    """
    positive_integer("units_per_process", units_per_process)
    link = float(real_number("link_time_s", link_time_s, 0, "give seconds"))
    sizes = sorted({positive_integer("k", k) for k in ks})

    def seconds(rows: int) -> tuple[float, float]:
        layer, head = ideal_times(shape, device, rows=rows, bytes_per_weight=bytes_per_weight)
        return layer / units_per_process, head / units_per_process

    layer, head = seconds(1)
    plain = {
        "layer_time_s": layer,
        "head_time_s": head,
        "token_time_s": 0.0,
        "plain_latency_s": shape.layers * layer + head,
        "split_latency_s": float(
            tensor_parallel_linked_latency(shape.layers, 2, layer, link, head)
        ),
    }
    same = {
        "layer_time": layer,
        "busy_layer_time": layer,
        "head_time": head,
        "exit_time": head,
        "start_delay": link,
    }
    by_k = {}
    for k in sizes:
        times = dict.fromkeys(SCHEDULE, 0.0) | same | {"batch_layer_time": seconds(k)[0]}
        by_k[k] = {f"{name}_s": (_exact(value),) for name, value in times.items()}
    return Timing(
        model=shape.source,
        layers=shape.layers,
        units=2,
        terms={name: _exact(value) for name, value in plain.items()},
        exit_layers=(max(shape.layers // 2, 1),),
        by_k=by_k,
        layer_profile_s=(layer,) * shape.layers,
        samples={
            "terms": {name: [value] for name, value in plain.items()},
            "by_k": {
                str(k): {name: [[term.value] for term in each] for name, each in terms.items()}
                for k, terms in by_k.items()
            },
        },
        provenance={
            "basis": "ideal",
            "model": shape.source,
            "device": device.source,
            "bytes_per_s": device.bytes_per_s,
            "flops_per_s": device.flops_per_s,
            "bytes_per_weight": bytes_per_weight,
            "units_per_process": units_per_process,
            "link_time_s": link,
        },
    )


def carried_over(calibration: Calibration, timing: Timing) -> Calibration:
    """Transfer match rates to another model by relative depth, with its ideal timing.

    Each prompt's counts are interpolated between the measured layers at equal relative depth;
    exits before the first one are left out. It is an assumption that the other model's exits guess
    equally well.
    """
    d, new = calibration.layers, timing.layers
    measured = np.array([*(calibration.exit_layers or range(1, d)), d])
    places = np.arange(1, new + 1) * d / new
    known = calibration.hits[:, measured - 1]
    hits = np.apply_along_axis(lambda counts: np.interp(places, measured, counts), 1, known)
    kept = tuple(e for e in range(1, new) if places[e - 1] >= measured[0])
    rates = resampled_rates(
        hits,
        calibration.tokens,
        prompt_weights(len(calibration.tokens), calibration.resamples, calibration.seed),
    )
    low, high = percentiles(rates)
    return replace(
        calibration,
        model=timing.model,
        layers=new,
        hits=hits,
        p_correct=hits.sum(axis=0) / calibration.tokens.sum(),
        ci_low=low,
        ci_high=high,
        timing=timing,
        exit_layers=kept,
        recorded=None,  # these counts belong to the measured model's layers
        provenance={
            **calibration.provenance,
            "rates_of": calibration.title,
            "roofline": dict(timing.provenance),
        },
    )


def _exact(value: float) -> Timed:
    return Timed(value, value, value, 1)


def shape_from_config(path: str | Path) -> ModelShape:
    """The sizes in the `config.json` of a dense decoder whose layers are all alike.

    Without a `model_type`, it is of Llama's build.

    Raises:
        InvalidInputError: the file is missing, not such a config, of another build (a mixture of
            experts, layers of several kinds), or of quantized weights.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        config: Any = parse_json(read_text(path))
    except FileNotFoundError:
        raise InvalidInputError(f"the config must exist; got {path}; check the path") from None
    except InvalidInputError:
        raise
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"a config must be JSON; got {path} ({error})") from None
    whole = config
    config = whole.get("text_config", whole) if isinstance(whole, Mapping) else None
    if not isinstance(whole, Mapping) or not isinstance(config, Mapping):
        raise InvalidInputError(f"a config must be one JSON object; got {path}")
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(name):
            raise InvalidInputError(
                f"the config must be of a dense decoder; got {name} = {config[name]} in {path}; "
                "a mixture of experts reads other weights for each token"
            )
    build = config.get("model_type", "llama")
    matrices = next((n for n, builds in MATRICES.items() if build in builds), None)
    if matrices is None:
        raise InvalidInputError(
            f"the config must be of a build whose weights are counted here; got model_type "
            f"{build!r} in {path}; choose from {', '.join(sorted(sum(MATRICES.values(), ())))}"
        )
    for part in (whole, config):
        if part.get("quantization_config"):
            raise InvalidInputError(
                f"the config must be of weights that are not quantized; got quantization_config in "
                f"{path}; give the config of the model that was quantized"
            )

    def size(name: str, *others: str) -> int:
        for key in (name, *others):
            if config.get(key) is not None:
                return positive_integer(key, config[key], f"correct {path}", MOST_SIZE)
        raise InvalidInputError(
            f"the config must have {name}; got none in {path}; use one of a dense decoder"
        )

    heads = size("num_attention_heads")
    is_grouped = build not in UNGROUPED
    kv_heads = size("num_key_value_heads", "num_attention_heads") if is_grouped else heads
    width, layers = size("hidden_size"), size("num_hidden_layers")
    if heads % kv_heads or layers > MOST_LAYERS:
        raise InvalidInputError(
            f"a config must have whole groups of heads and at most {MOST_LAYERS} layers; got "
            f"{heads} heads for {kv_heads} and {layers} layers in {path}; use a real model's"
        )
    states_width = is_grouped and config.get("head_dim") is not None
    return ModelShape(
        layers=layers,
        width=width,
        inner=size("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        vocabulary=size("vocab_size"),
        source=str(config.get("_name_or_path") or path),
        head_width=size("head_dim") if states_width else None,
        matrices=matrices,
    )
