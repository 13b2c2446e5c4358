"""One text by real PPD, compared with the prediction and with plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..checks import probability
from ..decide.prediction import guesses_in_time, predicted_latency_s, predicted_match_rate
from ..errors import InvalidInputError, RunFailedError
from ..measure.decoder.sampling import Sampling
from ..measure.models.loading import LoadedModel
from ..measure.options import PromptFormat
from ..measure.prompts import Prompt
from ..measure.training.trained_exits import TrainedExits
from ..results.calibration import Calibration
from ..results.timing import Timing
from .options import (
    TWO_CPUS,
    WARM_UP_TOKENS,
    ForcedMatches,
    PpdSetting,
    PromptLookup,
    RunOptions,
    SelfSpeculation,
    Workers,
)
from .perfetto import write_trace
from .pipeline import Pipeline
from .worker_pool import FIRST_TIMED, Run

CHAT = PromptFormat()
#: of the tokens whose guesses are planted
SEED = 0
#: drafts per round of the rivals: a batch of so few rows costs a CPU little more than one
DRAFTED, LOOKUP = 2, PromptLookup(ngram=3, drafted=4)


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
class Rival:
    """The same text by another method on the same engine.

    Attributes:
        name: of the method, with its setting.
        units: that it ran on; several by tensor parallelism.
        latency: None for a text of fewer than three tokens.
        accepted: share of the tokens that were accepted drafts.
        same: whether all tokens are those of plain decoding.
    """

    name: str
    units: int
    latency: Speed | None
    accepted: float
    same: bool


@dataclass(frozen=True)
class Decoded:
    """The text that `decode` made, its matches and its latencies.

    Attributes:
        token_ids: the text, end token included.
        text: without special tokens; token ids where there is no tokenizer.
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
        rivals: decoding with drafts, on one unit and on all; none with planted guesses, which
            they have not.
        planted: share of the trials whose guess was made right; None where the exit's own guesses
            ran.
        random_weights: whether the tokens mean nothing.
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
    planted: float | None = None
    random_weights: bool = False
    rivals: tuple[Rival, ...] = ()

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


def plant(token_ids: Sequence[int], share: float) -> ForcedMatches:
    """Guesses of a text's tokens that are right for a share of those that could match.

    As many as the share rounds to, at places that are drawn with a fixed seed.

    >>> sum(plant(range(12), 0.25).hits)  # of 10: the first two tokens cannot match
    2
    """
    probability("planted", share, "give a share of the tokens")
    could_match = np.arange(FIRST_TIMED, len(token_ids))
    n_right = round(share * len(could_match))
    right = np.random.default_rng(SEED).permutation(could_match)[:n_right] - 1  # the guessed token
    hits = np.isin(np.arange(len(token_ids)), right).tolist()
    return ForcedMatches(tuple(token_ids), tuple(hits))


def _rivals(
    pipeline: Pipeline, ids: Sequence[int], plain: Run, exit_layer: int, options: RunOptions
) -> Iterator[Rival]:
    """Self-speculation from the same exit and prompt lookup, each on one unit and on all."""
    tokens = len(plain.token_ids)
    for name, drafts in (
        (f"self-speculation, {DRAFTED} from the exit", SelfSpeculation(exit_layer, DRAFTED)),
        (f"prompt lookup, {LOOKUP.drafted} drafts", LOOKUP),
    ):
        for split in (False, True):
            pipeline.drafted(ids, min(WARM_UP_TOKENS, tokens), drafts, options, split=split)
            run = pipeline.drafted(ids, tokens, drafts, options, split=split)
            yield Rival(
                name=name,
                units=len(pipeline.tensor_parallel.where) if split else 1,
                latency=speed(run),
                accepted=float(run.matches.mean()) if len(run.matches) else 0.0,
                same=run.token_ids == plain.token_ids,
            )


def decode(
    loaded: LoadedModel,
    prompt: str | Sequence[int],
    setting: PpdSetting,
    *,
    max_new_tokens: int = 128,
    prompt_format: PromptFormat = CHAT,
    sampling: Sampling | None = None,
    exits: TrainedExits | None = None,
    planted: float | None = None,
    workers: Workers = TWO_CPUS,
    calibration: Calibration | None = None,
    timing: Timing | None = None,
    trace: Path | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Decoded:
    """Decode a text by PPD at depth 1 on several units, then plainly and with drafts.

    Plain decoding and the rivals run on one unit and by tensor parallelism on all of them.

    Args:
        loaded: a model of the Llama architecture, loaded on the CPU.
        prompt: a user message; or token ids, which are read as they are and end at no end token.
        setting: exit layer and guesses.
        max_new_tokens: most tokens; at least 1.
        prompt_format: how the prompt becomes the text that the model reads.
        sampling: how tokens are drawn; None is greedy.
        exits: trained exits; None reads the logit exits.
        planted: share of the tokens whose guesses are made right, instead of those that the exit
            gives: all is run as ever, at the same cost, and the text is the same.
        workers: how many units, and their devices.
        calibration: match rates, for the prediction; those that are planted need none.
        timing: times of layers and heads on this machine, for the prediction.
        trace: file for a trace that Perfetto opens.
        on_token: called with each token id soon after it was made.

    Raises:
        InvalidInputError: an argument does not fit the model or the machine.
        RunFailedError: a unit failed, or the texts end at different positions.
    """
    setting.check(loaded.layers)
    rates: Calibration | float | None = calibration
    if planted is not None:
        rates = float(probability("planted", planted, "give a share of the tokens"))
    right_rate, rate, seconds = _prediction(setting, workers, rates, timing)
    ids = _read(loaded, prompt, prompt_format)
    with Pipeline(
        loaded,
        prompt_tokens=len(ids),
        tokens=max_new_tokens,
        k=setting.k,
        workers=workers,
        exits=exits,
    ) as pipeline:
        options = RunOptions(stops=isinstance(prompt, str), sampling=sampling)
        warm_up = min(WARM_UP_TOKENS, max_new_tokens)
        pipeline.ppd(ids, warm_up, setting)
        forced = None
        if planted is not None:
            forced = plant(pipeline.greedy(ids, max_new_tokens, options).token_ids, planted)
        run = pipeline.ppd(ids, max_new_tokens, setting, options, forced=forced, on_token=on_token)
        plain = pipeline.greedy(ids, max_new_tokens, options)
        pipeline.greedy_split(ids, warm_up)
        together = pipeline.greedy_split(ids, max_new_tokens, options)
        rivals: tuple[Rival, ...] = ()
        if planted is None:
            rivals = tuple(_rivals(pipeline, ids, plain, setting.exit_layer, options))
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
        planted=planted,
        random_weights=bool(loaded.source.random_weights),
        rivals=rivals,
    )


def _read(
    loaded: LoadedModel, prompt: str | Sequence[int], prompt_format: PromptFormat
) -> list[int]:
    """The token ids of a prompt."""
    if isinstance(prompt, str):
        (ids,) = prompt_format.encode(loaded, [Prompt("", prompt)])
        return ids
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    wrong = next((one for one in prompt if not 0 <= one < vocabulary), None)
    if wrong is not None or not len(prompt):
        raise InvalidInputError(
            f"a prompt of token ids must have some, below the vocabulary of {vocabulary}; got "
            f"{'none' if wrong is None else wrong}; give others"
        )
    return list(prompt)


def _prediction(
    setting: PpdSetting,
    workers: Workers,
    rates: Calibration | float | None,
    timing: Timing | None,
) -> tuple[float | None, float | None, float | None]:
    """Predicted rates of right guesses and of those in time, and seconds; None without prediction.

    The guesses are in time all or never, as in equation (10.1).
    """
    if rates is None:
        return None, None, None
    if isinstance(rates, float):
        right = rates
    else:
        counted = rates.measured.get("ngrams", 0)
        if counted != setting.ngrams:
            raise InvalidInputError(
                "the calibration must be of the guesses that run; got one of n-grams of up to "
                f"{counted} tokens for {setting.ngrams}, where 0 is none; fit again with: "
                "ppdmodel fit --prompt-lookup N, or without"
            )
        right = predicted_match_rate(rates, setting.exit_layer, setting.k)
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
