"""Choice of the next token: greedy, or sampled reproducibly on any machine.

A sample is the largest of logits / temperature + Gumbel noise. The noise of a token depends on the
seed, its prompt, turn and position alone, so any batch, shard or resumed run gives the same
text, and an exit that adds the same noise to its logits guesses the sampled token more often.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...checks import real_number
from ...errors import InvalidInputError

#: a lower temperature would overflow float32, and gives greedy text
MIN_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Sampling:
    """Temperature sampling, from the smallest set of tokens with probability `top_p`.

    Raises:
        InvalidInputError: temperature is not above 0, top_p is not in (0, 1], or seed is negative.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        real_number(
            "temperature", self.temperature, MIN_TEMPERATURE, "leave it out for greedy text"
        )
        if not 0 < real_number("top_p", self.top_p, 0, "give a probability") <= 1:
            raise InvalidInputError(f"top_p must lie in (0, 1]; got {self.top_p}; 1 keeps all")
        if self.seed < 0:
            raise InvalidInputError(f"seed must be 0 or more; got {self.seed}; give another")


@dataclass(frozen=True)
class TokenPosition:
    """The position of a token in the whole run; with the seed, it determines the token's noise."""

    prompt_id: str
    turn: int
    position: int


def choose(
    logits: Tensor, places: Sequence[TokenPosition], sampling: Sampling | None
) -> tuple[Tensor, Tensor | None]:
    """Choose the next token of each row.

    Args:
        logits: [rows, vocabulary].
        places: the position of each row's next token.
        sampling: None takes the largest logit.

    Returns:
        Token ids [rows], and the noise [rows, vocabulary] used; None for greedy text.
    """
    if sampling is None:
        return logits.argmax(1), None
    noise = torch.from_numpy(
        np.stack([gumbel(sampling.seed, place, logits.shape[1]) for place in places])
    ).to(logits.device)
    scores = within_top_p(scaled(logits, sampling.temperature), sampling.top_p) + noise
    return scores.argmax(1), noise


def scaled(logits: Tensor, temperature: float, out: Tensor | None = None) -> Tensor:
    """Logits / temperature in float32, with the same rounding for any shape and device.

    The divisor is a tensor: some devices multiply by the reciprocal of a Python number.
    """
    divisor = torch.full((), temperature, dtype=torch.float32, device=logits.device)
    return torch.div(logits.float(), divisor, out=out)


def gumbel(seed: int, place: TokenPosition, vocabulary: int) -> np.ndarray:
    """Standard Gumbel noise [vocabulary], float32, of one token."""
    name = f"{seed}\n{place.prompt_id}\n{place.turn}\n{place.position}".encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    draws = np.random.Generator(np.random.Philox(key=key)).standard_exponential(
        vocabulary, dtype=np.float32
    )
    noise: np.ndarray = -np.log(np.maximum(draws, np.finfo(np.float32).tiny))
    return noise


def within_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Scores [rows, vocabulary] with -inf outside the smallest set of probability `top_p`."""
    if top_p >= 1:
        return scores
    ordered, order = scores.sort(1, descending=True)
    probs = ordered.softmax(1)
    outside = probs.cumsum(1) - probs >= top_p  # the larger ones already reach top_p
    return scores.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)
