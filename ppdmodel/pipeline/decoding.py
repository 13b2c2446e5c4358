"""One text by real PPD, compared with the prediction and with plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..decide.prediction import guesses_in_time, predicted_latency_s, predicted_match_rate
from ..errors import RunFailedError
from ..measure.decoder.sampling import Sampling
from ..measure.models.loading import LoadedModel
from ..measure.options import PromptFormat
from ..measure.prompts import Prompt
from ..measure.training.train import TrainedExits
from ..results.calibration import Calibration
from ..results.timing import Timing
from .options import TWO_CPUS, WARM_UP_TOKENS, PpdSetting, RunOptions, Workers
from .perfetto import write_trace
from .pipeline import Pipeline
from .worker_pool import Run

CHAT = PromptFormat()


@dataclass(frozen=True)
class Difference:
    """The first position at which two ways to decode gave different tokens.

    `margin` is the logit of the plain token minus that of the other, from the model's own forward
    pass over the text so far, in `dtype`; rounding alone explains a small one.
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
    """The text that `decode` made, its matches and its latencies.

    Attributes:
        token_ids: the text, end token included.
        text: without special tokens.
        n_trials: tokens that could match.
        n_matched: those with a right guess in time, so that their verified process began as it.
        n_late: those with a right guess that came after the verdict, which saves nothing.
        latency: of PPD; None for a text of fewer than three tokens.
        greedy, greedy_same_units: of plain decoding on one unit, and by tensor parallelism on all.
        predicted_right_rate: of right guesses, late ones too, from the calibration; None without.
        predicted_match_rate, predicted_latency_per_token_s: of right guesses in time, and seconds,
            from calibration and timing; None without, and where the formula does not apply: more
            than two units, or guesses one at a time.
        difference: from the greedy text; None where all tokens are equal.
    """

    token_ids: tuple[int, ...]
    text: str
    n_trials: int
    n_matched: int
    n_late: int
    latency: Speed | None
    greedy: Speed | None
    greedy_same_units: Speed | None
    predicted_right_rate: float | None
    predicted_match_rate: float | None
    predicted_latency_per_token_s: float | None
    difference: Difference | None

    @property
    def n_wrong(self) -> int:
        """Tokens of which no guess was right."""
        return self.n_trials - self.n_matched - self.n_late

    @property
    def match_rate(self) -> float | None:
        """Share of the trials that matched; None for a text of fewer than three tokens."""
        return self.n_matched / self.n_trials if self.n_trials else None

    @property
    def right_rate(self) -> float | None:
        """Share of the trials with a right guess, late ones too, as a calibration counts them."""
        return (self.n_matched + self.n_late) / self.n_trials if self.n_trials else None


def speed(run: Run) -> Speed | None:
    """Seconds per token of a run; None for a text of fewer than three tokens."""
    times = run.times_s
    if not len(times):
        return None
    return Speed(float(times.mean()), float(np.median(times)), float(np.percentile(times, 95)))


def decode(
    loaded: LoadedModel,
    prompt: str,
    setting: PpdSetting,
    *,
    max_new_tokens: int = 128,
    prompt_format: PromptFormat = CHAT,
    sampling: Sampling | None = None,
    exits: TrainedExits | None = None,
    workers: Workers = TWO_CPUS,
    calibration: Calibration | None = None,
    timing: Timing | None = None,
    trace: Path | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Decoded:
    """Decode a text by PPD at depth 1 on several units, then plainly on one and on all of them.

    Args:
        loaded: a model of the Llama architecture, loaded on the CPU.
        prompt: a user message.
        setting: exit layer and guesses.
        max_new_tokens: most tokens; at least 1.
        prompt_format: how the prompt becomes the text that the model reads.
        sampling: how tokens are drawn; None is greedy.
        exits: trained exits; None reads the logit exits.
        workers: how many units, and their devices.
        calibration: match rates, for the prediction.
        timing: times of layers and heads on this machine, for the prediction.
        trace: file for a trace that Perfetto opens.
        on_token: called with each token id soon after it was made.

    Raises:
        InvalidInputError: an argument does not fit the model or the machine.
        RunFailedError: a unit failed, or the texts end at different positions.
    """
    setting.check(loaded.layers)
    right_rate, rate, seconds = _prediction(setting, workers, calibration, timing)
    (ids,) = prompt_format.encode(loaded, [Prompt("", prompt)])
    with Pipeline(
        loaded,
        prompt_tokens=len(ids),
        tokens=max_new_tokens,
        k=setting.k,
        workers=workers,
        exits=exits,
    ) as pipeline:
        options, warm_up = RunOptions(sampling=sampling), min(WARM_UP_TOKENS, max_new_tokens)
        pipeline.ppd(ids, warm_up, setting)
        run = pipeline.ppd(ids, max_new_tokens, setting, options, on_token=on_token)
        plain = pipeline.greedy(ids, max_new_tokens, options)
        pipeline.greedy_split(ids, warm_up)
        together = pipeline.greedy_split(ids, max_new_tokens, options)
    if trace is not None:
        write_trace(trace, run, lambda token_id: loaded.decode([token_id]))
    return Decoded(
        token_ids=run.token_ids,
        text=loaded.decode(run.token_ids),
        n_trials=len(run.matches),
        n_matched=int(run.matches.sum()),
        n_late=int(run.late_guesses.sum()),
        latency=speed(run),
        greedy=speed(plain),
        greedy_same_units=speed(together),
        predicted_right_rate=right_rate,
        predicted_match_rate=rate,
        predicted_latency_per_token_s=seconds,
        difference=first_difference(loaded, ids, run.token_ids, plain.token_ids),
    )


def _prediction(
    setting: PpdSetting, workers: Workers, calibration: Calibration | None, timing: Timing | None
) -> tuple[float | None, float | None, float | None]:
    """Predicted rates of right guesses and of those in time, and seconds; None without prediction.

    The guesses are in time all or never, as in equation (10.1).
    """
    if calibration is None:
        return None, None, None
    right = predicted_match_rate(calibration, setting.exit_layer, setting.k)
    if timing is None or workers.units != 2 or setting.row_by_row:
        return right, None, None
    rate = right * guesses_in_time(timing, setting.exit_layer, setting.k)
    return right, rate, predicted_latency_s(timing, rate, setting.exit_layer, setting.k)


@torch.inference_mode()
def first_difference(
    loaded: LoadedModel, prompt_ids: Sequence[int], made: Sequence[int], plain: Sequence[int]
) -> Difference | None:
    """The first difference between two texts of one prompt; None where all tokens are equal."""
    if tuple(made) == tuple(plain):
        return None
    position = next(
        (n for n, (a, b) in enumerate(zip(made, plain, strict=False)) if a != b),
        min(len(made), len(plain)),
    )
    if position >= min(len(made), len(plain)):
        raise RunFailedError("two texts of one prompt must end alike; got one that goes on")
    so_far = torch.tensor([[*prompt_ids, *plain[:position]]])
    (logits,) = loaded.model(input_ids=so_far).logits[:, -1].float()
    return Difference(
        position=position,
        token_id=made[position],
        plain_token_id=plain[position],
        margin=float(logits[plain[position]] - logits[made[position]]),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
    )
