"""Some prompts decoded together, every token ranked at every exit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import RunFailedError
from ..results.measurement import Guesses, Measurement
from .decoder.exit import Exit
from .decoder.generate import Chunk, Context, generate
from .decoder.ranks import Ranked, Ranker, shortfall
from .decoder.sampling import Sampling
from .decoder.verify import Decoder
from .models.loading import LoadedModel
from .prompts import Prompt

#: a greedily decoded token may rank below 1 at the last layer only this close to the top logit,
#: where the two products that made those logits round differently
TIE_MARGIN = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
#: a token that the model chose by less than this may be another one in another batch or on another
#: machine, which round differently
NEAR_MARGIN = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}
OnBatch = Callable[[str, int, float], None]


@dataclass(frozen=True)
class _Ranks:
    """A chunk on the CPU: [n] per key, [n, layers, ...] per exit."""

    prompt: np.ndarray
    turn: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    rank: np.ndarray
    top_prob: np.ndarray
    guess_ids: np.ndarray
    guess_probs: np.ndarray
    coupled_rank: np.ndarray | None


class Measured:
    """All tokens of a batch of prompts, in order."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        chunks: Sequence[_Ranks],
        ties: Sequence[Mapping[str, Any]],
        near_ties: Sequence[Mapping[str, Any]],
        vocabulary: int,
    ) -> None:
        self.prompts, self.vocabulary = prompts, vocabulary
        self.ties, self.near_ties = tuple(ties), tuple(near_ties)
        keys = [np.concatenate([getattr(c, n) for c in chunks]) for n in ("position", "turn")]
        keys.append(np.concatenate([chunk.prompt for chunk in chunks]))
        self._order = np.lexsort(keys)
        self._chunks = chunks

    def _column(self, name: str) -> Any:
        return np.concatenate([getattr(chunk, name) for chunk in self._chunks])[self._order]

    def _keys(self) -> dict[str, Any]:
        return {
            "prompt_ids": tuple(prompt.id for prompt in self.prompts),
            "prompt_index": self._column("prompt"),
            "turn": self._column("turn"),
            "position": self._column("position"),
        }

    def measurement(self, provenance: Mapping[str, Any], numbers: Sequence[int]) -> Measurement:
        """The batch as a measurement of prompts that have these numbers in the whole list."""
        coupled = self._chunks[0].coupled_rank is not None
        return Measurement(
            **self._keys(),
            provenance=dict(provenance),
            categories=tuple(prompt.category for prompt in self.prompts),
            prompt_numbers=tuple(numbers),
            token_id=self._column("token_id"),
            rank=self._column("rank"),
            top_prob=self._column("top_prob"),
            coupled_rank=self._column("coupled_rank") if coupled else None,
            complete=False,
            ties=self.ties,
            near_ties=self.near_ties,
        )

    def guesses(self) -> Guesses:
        """The first guesses of every exit."""
        return Guesses(
            **self._keys(),
            vocabulary=self.vocabulary,
            ids=self._column("guess_ids"),
            probs=self._column("guess_probs"),
        )


def measure_batch(
    loaded: LoadedModel,
    decoder: Decoder,
    ranker: Ranker,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    chat: bool = True,
    sampling: Sampling | None = None,
    on_progress: OnBatch = lambda stage, tokens, share: None,
) -> Measured:
    """Decode the answers to some prompts, turn by turn, and rank every token at every exit.

    Args:
        loaded: the model's tokenizer and end tokens.
        decoder: the model, and how its exits are read.
        ranker: from its exit.
        prompts: decoded together; at least one.
        max_new_tokens: most tokens per turn.
        chat: whether to use the chat template.
        sampling: how tokens are drawn; None is greedy.
        on_progress: called with what is being done, the tokens so far, and the share of the batch.

    Raises:
        InvalidInputError: a conversation outgrows the model.
        RunFailedError: the last exit does not put the model's own first token first.
    """
    chunks: list[_Ranks] = []
    ties: list[dict[str, Any]] = []
    near_ties: list[dict[str, Any]] = []
    tokens = 0
    rounds = max(len(prompt.turns) for prompt in prompts)
    answers: list[list[str]] = [[] for _ in prompts]
    for turn in range(rounds):
        taking_part = [i for i, prompt in enumerate(prompts) if turn < len(prompt.turns)]
        contexts = [
            Context(
                prompts[i].id, turn, loaded.encode(prompts[i].turns[: turn + 1], chat, answers[i])
            )
            for i in taking_part
        ]
        for context in contexts:  # an answer may be read as more tokens than it was made of
            loaded.check_room(context.prompt_id, len(context.ids), max_new_tokens)
        texts: dict[int, list[int]] = {i: [] for i in taking_part}

        def stepped(step: int, active: int, turn: int = turn) -> None:
            nonlocal tokens
            tokens += active
            on_progress("decoding", tokens, (turn + step / max_new_tokens) / rounds)

        for chunk in generate(
            decoder.model,
            decoder.exit,
            contexts,
            max_new_tokens,
            loaded.end_ids,
            sampling=sampling,
            drops_rows=decoder.drops_rows,
            chunk_tokens=ranker.rows,
            on_step=stepped,
        ):
            ranked = rank_chunk(ranker, chunk, sampling)
            owners = np.array([taking_part[row] for row in chunk.row])
            chunks.append(_on_cpu(chunk, ranked, owners, turn))
            ties += _ties(decoder.exit, chunk, ranked[-1], [prompts[i].id for i in owners])
            near_ties += _near_ties(chunk, ranked[-1], [prompts[i].id for i in owners], turn)
            for owner, token in zip(owners, chunk.token_id.tolist(), strict=True):
                texts[owner].append(token)
        if turn + 1 < rounds:
            for i in taking_part:
                answers[i].append(loaded.decode(texts[i]))
    on_progress("ranked", tokens, 1.0)
    return Measured(prompts, chunks, ties, near_ties, decoder.exit.vocabulary)


def rank_chunk(ranker: Ranker, chunk: Chunk, sampling: Sampling | None) -> list[Ranked]:
    """Rank a chunk's tokens at every layer."""
    temperature = sampling.temperature if sampling else 1.0
    ranked = [
        ranker.rank(states, chunk.token_id, layer, chunk.noise, temperature)
        for layer, states in enumerate(chunk.hidden, start=1)
    ]
    ranker.rest()
    return ranked


def _on_cpu(chunk: Chunk, ranked: Sequence[Ranked], owners: np.ndarray, turn: int) -> _Ranks:
    def stacked(name: str) -> np.ndarray:
        return torch.stack([getattr(exit_, name) for exit_ in ranked], dim=1).numpy()

    coupled = ranked[0].coupled_rank is not None
    return _Ranks(
        prompt=owners.astype(np.int64),
        turn=np.full(len(owners), turn, dtype=np.int16),
        position=np.array(chunk.position, dtype=np.int32),
        token_id=chunk.token_id.cpu().numpy().astype(np.int32),
        rank=stacked("rank"),
        top_prob=stacked("top_prob"),
        guess_ids=stacked("guess_ids"),
        guess_probs=stacked("guess_probs").astype(np.float16),
        coupled_rank=stacked("coupled_rank") if coupled else None,
    )


def _ties(
    exit_: Exit, chunk: Chunk, last: Ranked, prompt_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Tokens that the last exit did not put first though the model did, each a near tie.

    Raises:
        RunFailedError: it is no near tie: the head is not read as the model reads it.
    """
    favourite = chunk.favourite.cpu()
    first = last.rank == 1 if chunk.noise is None else last.guess_ids[:, 0] == favourite
    found = []
    for row in torch.nonzero(~first)[:, 0].tolist():
        rank, gap = shortfall(exit_, chunk.hidden[-1, row], int(favourite[row]))
        allowed = TIE_MARGIN.get(chunk.hidden.dtype, 1e-2)
        if not gap <= allowed:
            raise RunFailedError(
                "the last layer must rank every token first that the model does, near ties apart; "
                f"got a margin of {gap:.3g} for prompt {prompt_ids[row]!r} at position "
                f"{chunk.position[row]}; this model's head is not read correctly"
            )
        found.append(
            {
                "prompt_id": prompt_ids[row],
                "position": chunk.position[row],
                "rank": max(rank, 2),
                "margin": gap,
            }
        )
    return found


def _near_ties(
    chunk: Chunk, last: Ranked, prompt_ids: Sequence[str], turn: int
) -> list[dict[str, Any]]:
    """Greedy tokens that the model chose by a hair, with the margin in logits."""
    if chunk.noise is not None:
        return []
    gaps = (last.guess_probs[:, 0] / last.guess_probs[:, 1]).log()
    near = torch.nonzero(gaps < NEAR_MARGIN.get(chunk.hidden.dtype, 1e-3))[:, 0].tolist()
    return [
        {
            "prompt_id": prompt_ids[row],
            "turn": turn,
            "position": chunk.position[row],
            "margin": float(gaps[row]),
        }
        for row in near
    ]
