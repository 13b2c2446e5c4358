"""One text by real PPD, beside what was predicted and beside plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import RunFailedError
from ..measure.decoder.sampling import Sampling
from ..measure.models.loading import LoadedModel
from ..measure.training.train import TrainedExits
from ..results.calibration import Calibration
from ..results.timing import Timing
from .devices import CPU
from .perfetto import write_trace
from .pipeline import Pipeline, check_setting
from .worker_pool import Run


@dataclass(frozen=True)
class Difference:
    """Where two ways to decode first gave different tokens.

    `margin` is how much larger the logit of the plain token was, in the model's own pass over the
    text so far, in `dtype`; rounding alone explains a small one.
    """

    position: int
    token_id: int
    plain_token_id: int
    margin: float
    dtype: str


@dataclass(frozen=True)
class Speed:
    """Seconds per token of a run, from its second token on."""

    mean_s: float
    median_s: float
    p95_s: float


@dataclass(frozen=True)
class Decoded:
    """What `decode` made, and how fast.

    Attributes:
        token_ids: the text, end token included.
        text: without special tokens.
        match_rate: share of tokens whose process had been started on a right guess; None for a text
            of fewer than three tokens.
        n_trials: tokens that could match.
        latency: of PPD; None for a text of fewer than three tokens.
        greedy, greedy_same_units: of plain decoding on one unit, and on all of them together.
        predicted_match_rate: from the calibration; None without.
        predicted_latency_per_token_s: from calibration and timing; None without, and for what the
            formula is not about: more than two units, or guesses one by one.
        difference: from the greedy text; None where all tokens are equal.
    """

    token_ids: tuple[int, ...]
    text: str
    match_rate: float | None
    n_trials: int
    latency: Speed | None
    greedy: Speed | None
    greedy_same_units: Speed | None
    predicted_match_rate: float | None
    predicted_latency_per_token_s: float | None
    difference: Difference | None


def speed(run: Run) -> Speed | None:
    """Seconds per token of a run; None for a text of fewer than three tokens."""
    times = run.times_s
    if not len(times):
        return None
    return Speed(float(times.mean()), float(np.median(times)), float(np.percentile(times, 95)))


def match_rate(run: Run) -> float | None:
    """Share of the same tokens whose process had been started on a right guess."""
    return float(run.matches.mean()) if len(run.matches) else None


def decode(
    loaded: LoadedModel,
    prompt: str,
    *,
    exit_layer: int,
    k: int = 1,
    max_new_tokens: int = 128,
    units: int = 2,
    exits: TrainedExits | None = None,
    raw: bool = False,
    row_by_row: bool = False,
    sampling: Sampling | None = None,
    calibration: Calibration | None = None,
    timing: Timing | None = None,
    device: str = CPU,
    trace: Path | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Decoded:
    """Decode a text by PPD at depth 1 on several units, then plainly on one and on all of them.

    Args:
        loaded: a model of Llama's build, loaded on the CPU.
        prompt: a user message, or plain text with `raw`.
        exit_layer: where the guesses are read, 1 ... d - 1.
        k: guesses, hence sub-processes; on one further unit they run as a batch, on several they
            are spread.
        max_new_tokens: most tokens; at least 1.
        units: at least 2; each has a CPU of its own.
        exits: trained exits; None reads the logit exits.
        raw: whether to leave out the chat template.
        row_by_row: run the sub-processes of a unit one after another, so that nothing rounds
            otherwise than in plain decoding.
        sampling: how tokens are drawn; None is greedy.
        calibration: match rates, for the prediction.
        timing: what layers and heads cost here, for the prediction.
        device: where the units compute, as in `Pipeline`.
        trace: file for a trace that Perfetto opens.
        on_token: called with each token id as it comes.

    Raises:
        InvalidInputError: an argument does not fit the model or the machine.
        RunFailedError: a unit failed, or the texts end at different places.
    """
    from ..decide.prediction import predicted_latency_s, predicted_match_rate

    check_setting(loaded.layers, exit_layer, k)
    rate = predicted_match_rate(calibration, exit_layer, k) if calibration else None
    seconds = None
    if rate is not None and timing is not None and units == 2 and not row_by_row:
        seconds = predicted_latency_s(timing, rate, exit_layer, k)
    ids = loaded.encode([prompt], not raw)
    with Pipeline(
        loaded,
        units=units,
        prompt_tokens=len(ids),
        tokens=max_new_tokens,
        k=k,
        exits=exits,
        device=device,
    ) as pipeline:
        options: dict[str, Any] = {"sampling": sampling}
        setting: dict[str, Any] = {"exit_layer": exit_layer, "k": k, "row_by_row": row_by_row}
        pipeline.ppd(ids, min(8, max_new_tokens), **setting)  # every unit touches its memory
        run = pipeline.ppd(ids, max_new_tokens, on_token=on_token, **setting, **options)
        plain = pipeline.greedy(ids, max_new_tokens, **options)
        pipeline.greedy_split(ids, min(8, max_new_tokens))
        together = pipeline.greedy_split(ids, max_new_tokens, **options)
    if trace is not None:
        write_trace(trace, run, lambda token_id: loaded.decode([token_id]))
    return Decoded(
        token_ids=run.token_ids,
        text=loaded.decode(run.token_ids),
        match_rate=match_rate(run),
        n_trials=len(run.matches),
        latency=speed(run),
        greedy=speed(plain),
        greedy_same_units=speed(together),
        predicted_match_rate=rate,
        predicted_latency_per_token_s=seconds,
        difference=first_difference(loaded, ids, run.token_ids, plain.token_ids),
    )


@torch.inference_mode()
def first_difference(
    loaded: LoadedModel, prompt_ids: Sequence[int], made: Sequence[int], plain: Sequence[int]
) -> Difference | None:
    """Where two texts of one prompt part, and by what margin of the model's logits."""
    if tuple(made) == tuple(plain):
        return None
    position = next(
        (n for n, (a, b) in enumerate(zip(made, plain, strict=False)) if a != b),
        min(len(made), len(plain)),
    )
    if position >= min(len(made), len(plain)):
        raise RunFailedError("two texts of one prompt must end alike; got one that goes on")
    so_far = torch.tensor([[*prompt_ids, *plain[:position]]])
    logits = loaded.model(input_ids=so_far, use_cache=False).logits[0, -1].float()
    return Difference(
        position=position,
        token_id=made[position],
        plain_token_id=plain[position],
        margin=float(logits[plain[position]] - logits[made[position]]),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
    )
