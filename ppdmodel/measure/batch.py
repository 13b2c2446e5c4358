"""Decoding of a batch of prompts, with the rank of every token at every exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import RunFailedError
from ..results.measurement import Guesses, Measurement
from .decoder.exit import Exit
from .decoder.generate import Chunk, Context, generate
from .decoder.ranks import Ranked, Ranker, rank_and_margin
from .decoder.sampling import Sampling
from .decoder.verify import Decoder
from .models.loading import LoadedModel
from .options import GenerationOptions
from .progress import OnProgress, Progress, no_report
from .prompts import Prompt

#: largest margin in logits by which a greedily decoded token may miss rank 1 at the last layer:
#: decoding and ranking compute the head's product with different rounding
TIE_MARGIN = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
#: margin in logits that defines a near-tie: with another batch size or machine, rounding may
#: make the runner-up the chosen token
NEAR_MARGIN = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}


@dataclass(frozen=True)
class _Ranks:
    """Ranks of a chunk on the CPU: [n] per key, [n, layers, ...] per exit."""

    prompt: np.ndarray
    turn: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    rank: np.ndarray
    top_prob: np.ndarray
    guess_ids: np.ndarray
    guess_probs: np.ndarray
    coupled_rank: np.ndarray | None


class BatchResult:
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
        """The batch as a measurement; `numbers` are the prompts' places in the whole list."""
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
    generation: GenerationOptions,
    on_progress: OnProgress = no_report,
) -> BatchResult:
    """Decode the answers to some prompts, turn by turn, and rank every token at every exit.

    Args:
        loaded: the model's tokenizer and end tokens.
        decoder: the verified model and its exit.
        ranker: from its exit.
        prompts: decoded together, whatever the batch size in `generation`; at least one.
        generation: how their text is generated.
        on_progress: called after each step with the share of this batch.

    Raises:
        InvalidInputError: a conversation outgrows the model.
        RunFailedError: the last exit does not rank the model's own first token first.
    """
    found = _Collected([], [], [])
    tokens = 0
    turns = max(len(prompt.turns) for prompt in prompts)
    answers: list[list[str]] = [[] for _ in prompts]
    for turn in range(turns):
        taking_part = [i for i, prompt in enumerate(prompts) if turn < len(prompt.turns)]
        contexts = _contexts(loaded, prompts, taking_part, turn, answers, generation)
        texts: dict[int, list[int]] = {i: [] for i in taking_part}

        def stepped(step: int, active: int, turn: int = turn) -> None:
            nonlocal tokens
            tokens += active
            share = (turn + step / generation.max_new_tokens) / turns
            on_progress(Progress("decoding", tokens, share))

        for chunk in generate(
            decoder.model,
            decoder.exit,
            contexts,
            generation.max_new_tokens,
            loaded.end_ids,
            sampling=generation.sampling,
            drops_rows=decoder.drops_rows,
            chunk_tokens=ranker.rows,
            on_step=stepped,
        ):
            owners = np.array([taking_part[row] for row in chunk.row])
            ranked = rank_chunk(ranker, chunk, generation.sampling)
            found.add(decoder.exit, chunk, ranked, prompts, owners, turn)
            for owner, token in zip(owners, chunk.token_id.tolist(), strict=True):
                texts[owner].append(token)
        if turn + 1 < turns:
            for i in taking_part:
                answers[i].append(loaded.decode(texts[i]))
    on_progress(Progress("ranked", tokens, 1.0))
    return BatchResult(prompts, found.chunks, found.ties, found.near_ties, decoder.exit.vocabulary)


def _contexts(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    taking_part: Sequence[int],
    turn: int,
    answers: Sequence[Sequence[str]],
    generation: GenerationOptions,
) -> list[Context]:
    """Input token ids of one turn; each context must leave room for the answer."""
    contexts = []
    for i in taking_part:
        turns = prompts[i].turns[: turn + 1]
        ids = loaded.encode(turns, not generation.raw, answers[i])
        # an answer may be tokenized into more tokens than it was generated as
        loaded.check_room(prompts[i].id, len(ids), generation.max_new_tokens)
        contexts.append(Context(prompts[i].id, turn, ids))
    return contexts


@dataclass(frozen=True)
class _Collected:
    """Accumulated results of the chunks of a batch."""

    chunks: list[_Ranks]
    ties: list[dict[str, Any]]
    near_ties: list[dict[str, Any]]

    def add(
        self,
        exit_: Exit,
        chunk: Chunk,
        ranked: Sequence[Ranked],
        prompts: Sequence[Prompt],
        owners: np.ndarray,
        turn: int,
    ) -> None:
        """Append a ranked chunk; `owners` [n] are the tokens' prompts."""
        ids = [prompts[i].id for i in owners]
        self.chunks.append(_on_cpu(chunk, ranked, owners, turn))
        self.ties.extend(_ties(exit_, chunk, ranked[-1], ids))
        self.near_ties.extend(_near_ties(chunk, ranked[-1], ids, turn))


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
    """Tokens that the model ranks first and the last exit does not, all near-ties.

    Raises:
        RunFailedError: a margin is larger than rounding explains.
    """
    top_token = chunk.top_token.cpu()
    first = last.rank == 1 if chunk.noise is None else last.guess_ids[:, 0] == top_token
    found = []
    for row in torch.nonzero(~first)[:, 0].tolist():
        rank, gap = rank_and_margin(exit_, chunk.hidden[-1, row], int(top_token[row]))
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
    """Greedy tokens whose margin over the runner-up is a near-tie, with the margin in logits."""
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
