"""Checks that padded, cached, batched decoding equals decoding each text alone.

A model is checked on a short probe before a run, and some texts of the run by `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ...errors import InvalidInputError, RunFailedError, excerpt
from .exit import TOLERANCE, Exit, logit_exit
from .forward import Batch, forget_lengths
from .generate import Context
from .kernels import prepack_head, prepack_layers
from .lengths import alone_beyond, changes
from .ranks import BLOCK
from .sampling import Sampling, TokenPosition, choose, scaled, within_top_p

#: lengths of the probe's texts, one of which is mostly padding, and the length of their common
#: prefix
LENGTHS, PREFIX_LENGTH = (13, 5, 9), 4
#: largest window of attention, in tokens, that the probe's texts outgrow
MOST_WINDOW = 64
#: ids of a text are so far apart, and those of other lengths so far away: few are special tokens
STRIDE, SHIFT = 7, 31
#: places of the rows that are kept before each step of the probe; None keeps all
KEPT = (None, None, (1,))


@dataclass(frozen=True)
class Decoder:
    """A model that passed the check.

    Attributes:
        model: gives the same logits for padded, cached batches as for each text alone.
        exit: reproduces its logits from its last layer's states.
        drops_rows: whether rows may be removed from a batch; some caches do not support it.
    """

    model: Any
    exit: Exit
    drops_rows: bool

    def prepacked(self) -> Decoder:
        """The same decoder with weights reordered in place for faster products.

        The model still runs, but its layers' parameters can no longer be read.
        """
        undo = prepack_layers(self.model, self.exit.decoder_layers)
        head = self.exit.head
        blocks = prepack_head(head, BLOCK)
        if _fault(self.model, self.exit, self.drops_rows):  # its code accesses a weight directly
            undo()
            if blocks is not None:
                del vars(head)["forward"]
            return self
        return replace(self, exit=replace(self.exit, blocks=blocks))


def verified(model: Any) -> Decoder:
    """Find a model's exit and check how it decodes.

    Raises:
        InvalidInputError: its exits are not found, or a padded, cached batch gives other logits
            than each text alone.
    """
    exit_ = logit_exit(model)
    fault = _fault(model, exit_, drop=True)
    if fault and _fault(model, exit_, drop=False):
        raise InvalidInputError(
            "the model must decode padded batches with a cache as it does each text alone; got "
            f"{type(model).__name__}: {fault}; only decoders with attention caches are measured"
        )
    return Decoder(model, exit_, drops_rows=not fault)


@torch.inference_mode()
def _fault(model: Any, exit_: Exit, drop: bool) -> str | None:
    """How batched decoding differs from decoding each text alone; None if it agrees."""
    lengths = probe_lengths(model.config)
    read = [length + len(KEPT) - 1 for length in lengths]
    texts = probe_texts(int(model.config.get_text_config().vocab_size), read)
    given = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    try:
        alone = [_alone(model, text) for text in texts]
        batch = Batch(model, exit_, given, room=len(KEPT))
        for step, kept in enumerate(KEPT):
            if drop and kept:
                batch.keep(kept)
            logits, _ = batch.step()
            for place, row in enumerate(batch.rows):
                expected = alone[row][step]
                gap = (logits[place].float() - expected).abs().max() / expected.abs().max()
                if not gap <= TOLERANCE[logits.dtype]:
                    return f"logits {float(gap):.2g} of the largest away at step {step + 1}"
            if step + 1 < len(KEPT):
                chosen = [texts[row][lengths[row] + step] for row in batch.rows]
                batch.append(torch.tensor(chosen, device=logits.device))
    except Exception as error:  # the model's own code may raise anything
        return f"{type(error).__name__}: {excerpt(error)}"
    return None


def probe_lengths(config: Any) -> list[int]:
    """Lengths of the probe's texts: two outgrow the windows, none what texts of a batch share."""
    beyond = (change.beyond for change in changes(config) if not change.by_place)
    window = max((tokens for tokens in beyond if tokens <= MOST_WINDOW), default=0)
    limit = alone_beyond(config) or window + max(LENGTHS) + len(KEPT)
    most = max(1, limit + 1 - len(KEPT))
    return [min(length + window * (length > min(LENGTHS)), most) for length in LENGTHS]


def probe_texts(vocabulary: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Token ids of texts that begin alike and go on differently."""
    return [
        [(STRIDE * n + SHIFT * length * (n >= PREFIX_LENGTH)) % vocabulary for n in range(length)]
        for length in lengths
    ]


def _alone(model: Any, ids: list[int]) -> Tensor:
    """Logits [steps, vocabulary] after a text's last tokens, read by itself without a cache."""
    given = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    logits: Tensor = model(
        input_ids=given, attention_mask=torch.ones_like(given), use_cache=False
    ).logits
    return logits[0, -len(KEPT) :].float()


@dataclass(frozen=True)
class Repeated:
    """How many of a text's tokens Transformers' `generate` was asked for again, one by one.

    `n_near_ties` are those that it would not have chosen, by a margin that rounding explains.
    """

    n_tokens: int
    n_near_ties: int


@torch.inference_mode()
def repeated(
    model: Any,
    context: Context,
    made: Sequence[int],
    first: int,
    sampling: Sampling | None,
    margin: float,
) -> Repeated:
    """Compare the tokens of a text with those that `generate` chooses, the text by itself.

    Each token is compared after the same tokens before it, so one near tie does not hide the rest.

    Args:
        model: that made the text.
        context: what the text follows, and where it stands in the run.
        made: its tokens.
        first: the first of them to compare; those before it are given to `generate`.
        sampling: how they were sampled; None is greedy.
        margin: in logits, that rounding explains at least.

    Raises:
        RunFailedError: a token differs by more than rounding explains.
    """
    device = model.get_input_embeddings().weight.device
    given = torch.tensor([[*context.ids, *made[:first]]], device=device)
    forced = _Forced(model, context, made, first, sampling, margin)
    own, model.generation_config = model.generation_config, GenerationConfig(pad_token_id=0)
    forget_lengths(model)
    try:
        model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=len(made) - first,
            do_sample=False,
            logits_processor=LogitsProcessorList([forced]),
        )
    finally:
        model.generation_config = own
    return Repeated(len(made) - first, forced.near_ties)


class _Forced(LogitsProcessor):  # type: ignore[misc]
    """Makes `generate` take given tokens, and compares them with those that it would take."""

    def __init__(
        self,
        model: Any,
        context: Context,
        made: Sequence[int],
        first: int,
        sampling: Sampling | None,
        margin: float,
    ) -> None:
        self.context, self.made, self.position = context, made, first
        self.sampling, self.margin = sampling, margin
        self.tolerance = TOLERANCE[model.dtype]
        self.near_ties = 0

    def __call__(self, _input_ids: Tensor, logits: Tensor) -> Tensor:
        """Logits [1, vocabulary] of which only the given token's is finite."""
        token = self.made[self.position]
        best, gap = self._preferred(logits, token)
        if best != token:
            if not gap <= max(self.margin, self.tolerance * float(logits.abs().max())):
                raise RunFailedError(
                    "each text must be what Transformers' generate makes of it alone, near ties "
                    f"apart; got token {token} for {best}, {gap:.3g} in logits away, for prompt "
                    f"{self.context.prompt_id!r} at position {self.position} of turn "
                    f"{self.context.turn}, after {len(self.context.ids) + self.position} tokens; "
                    "use shorter texts or --batch-size 1"
                )
            self.near_ties += 1
        self.position += 1
        only = torch.full_like(logits, -torch.inf)
        only[:, token] = 0
        return only

    def _preferred(self, logits: Tensor, token: int) -> tuple[int, float]:
        """The token that is chosen from logits, and how far in logits another one is behind it."""
        if self.sampling is None:
            best = int(logits.argmax())
            return best, float(logits[0, best] - logits[0, token])
        place = TokenPosition(self.context.prompt_id, self.context.turn, self.position)
        chosen, noise = choose(logits, [place], self.sampling)
        assert noise is not None
        if int(chosen) == token:
            return token, 0.0
        scores = scaled(logits, self.sampling.temperature)
        # rounding may move the edge of the smallest set of probability top_p
        top_p = self.sampling.top_p * (1 - self.tolerance) if self.sampling.top_p < 1 else 1.0
        best = int((within_top_p(scores, top_p) + noise).argmax())
        gap = float((scores + noise)[0, best] - (scores + noise)[0, token])
        return int(chosen), gap * self.sampling.temperature
