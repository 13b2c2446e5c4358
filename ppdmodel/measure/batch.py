"""Decoding of a batch of prompts, with the rank of every token at every exit."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ..errors import RunFailedError
from ..progress import OnProgress, Progress, no_report, part_of
from ..results.measurement import Guesses, Measurement
from .decoder.exit import Exit
from .decoder.generate import Chunk, Context, generate, outgrows
from .decoder.lengths import alone_beyond
from .decoder.ranks import Ranked, Ranker, rank_and_margin
from .decoder.sampling import Sampling
from .decoder.verify import Decoder, repeated
from .models.loading import LoadedModel
from .options import GenerationOptions
from .prompts import Prompt

#: largest margin in logits by which a greedily decoded token may miss rank 1 at the last layer:
#: decoding and ranking compute the head's product with different rounding
TIE_MARGIN = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
#: margin in logits that defines a near-tie: with another batch size or machine, rounding may
#: make the runner-up the chosen token
NEAR_MARGIN = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}
#: tokens of a batch that are compared with Transformers' `generate`: their share, and at least
REPEATED_SHARE, MIN_REPEATED = 0.01, 8


class BatchResult:
    """All tokens of a batch of prompts, added chunk by chunk and handed out in order."""

    def __init__(self, exit_: Exit, prompts: Sequence[Prompt]) -> None:
        self.exit, self.prompts = exit_, prompts
        self.ties: list[dict[str, Any]] = []
        self.near_ties: list[dict[str, Any]] = []
        self.repeated: list[dict[str, Any]] = []
        self.contexts: dict[tuple[int, int], list[int]] = {}  # by prompt and turn
        self._chunks: list[dict[str, np.ndarray]] = []

    def add(self, chunk: Chunk, ranked: Sequence[Ranked], owners: np.ndarray, turn: int) -> None:
        """Append a chunk ranked at every exit; `owners` [n] are the tokens' prompts.

        Raises:
            RunFailedError: the last exit misses a token by more than rounding explains.
        """
        columns: dict[str, np.ndarray] = {
            "prompt_index": owners.astype(np.int64),
            "turn": np.full(len(owners), turn, dtype=np.int16),
            "position": np.array(chunk.position, dtype=np.int32),
            "token_id": chunk.token_id.cpu().numpy().astype(np.int32),
        }
        names = ["rank", "top_prob", "guess_ids", "guess_probs"]
        if chunk.noise is not None:  # greedy text has no coupled ranks
            names.append("coupled_rank")
        for name in names:
            by_exit = [getattr(exit_, name) for exit_ in ranked]
            columns[name] = torch.stack(by_exit, dim=1).numpy()
        columns["guess_probs"] = columns["guess_probs"].astype(np.float16)
        self._chunks.append(columns)
        ids = [self.prompts[i].id for i in owners]
        self.ties.extend(_ties(self.exit, chunk, ranked[-1], ids))
        self.near_ties.extend(_near_ties(chunk, ranked[-1], ids, turn))

    def _ordered(self, *names: str) -> dict[str, Any]:
        """The columns that there are, by prompt, turn and position, and the prompts' ids."""

        def whole(name: str) -> np.ndarray:
            return np.concatenate([chunk[name] for chunk in self._chunks])

        keys = ("prompt_index", "turn", "position")
        order = np.lexsort([whole(key) for key in reversed(keys)])
        known = [name for name in (*keys, *names) if name in self._chunks[0]]
        found: dict[str, Any] = {name: whole(name)[order] for name in known}
        return found | {"prompt_ids": tuple(prompt.id for prompt in self.prompts)}

    def measurement(self, provenance: Mapping[str, Any], numbers: Sequence[int]) -> Measurement:
        """The batch as a measurement; `numbers` are the prompts' places in the whole list."""
        return Measurement(
            **self._ordered("token_id", "rank", "top_prob", "coupled_rank"),
            provenance=dict(provenance),
            categories=tuple(prompt.category for prompt in self.prompts),
            prompt_numbers=tuple(numbers),
            context_ids=tuple(
                np.array(ids, dtype=np.int32) for _, ids in sorted(self.contexts.items())
            ),
            complete=False,
            ties=tuple(self.ties),
            near_ties=tuple(self.near_ties),
            repeated=tuple(self.repeated),
        )

    def guesses(self) -> Guesses:
        """The first guesses of every exit."""
        columns = self._ordered("guess_ids", "guess_probs")
        ids, probs = columns.pop("guess_ids"), columns.pop("guess_probs")
        return Guesses(**columns, vocabulary=self.exit.vocabulary, ids=ids, probs=probs)


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
        RunFailedError: the last exit does not rank the model's own first token first, or a text is
            not what `generate` makes of it alone.
    """
    result = BatchResult(decoder.exit, prompts)
    made: list[tuple[Context, list[int]]] = []
    tokens = 0
    turns = max(len(prompt.turns) for prompt in prompts)
    answers: list[list[str]] = [[] for _ in prompts]
    for turn in range(turns):
        taking_part = [i for i, prompt in enumerate(prompts) if turn < len(prompt.turns)]
        contexts = []
        asked = [prompts[i] for i in taking_part]
        read = generation.encode(loaded, asked, [answers[i] for i in taking_part])
        for i, ids in zip(taking_part, read, strict=True):
            # an answer may be tokenized into more tokens than it was generated as
            loaded.check_room(prompts[i].id, len(ids), generation.max_new_tokens)
            contexts.append(Context(prompts[i].id, turn, ids))
            result.contexts[i, turn] = ids
        texts: dict[int, list[int]] = {i: [] for i in taking_part}
        for chunk in generate(
            decoder.model,
            decoder.exit,
            contexts,
            generation.max_new_tokens,
            loaded.end_ids,
            sampling=generation.sampling,
            drops_rows=decoder.drops_rows,
            chunk_tokens=ranker.rows,
            on_progress=part_of(on_progress, turn / turns, (turn + 1) / turns, tokens),
        ):
            owners = np.array([taking_part[row] for row in chunk.row])
            result.add(chunk, rank_chunk(ranker, chunk, generation.sampling), owners, turn)
            for owner, token in zip(owners, chunk.token_id.tolist(), strict=True):
                texts[owner].append(token)
        tokens += sum(map(len, texts.values()))
        made += [(context, texts[i]) for i, context in zip(taking_part, contexts, strict=True)]
        for i in taking_part:
            answers[i].append(loaded.decode(texts[i]))
    result.repeated = repeat(decoder.model, made, generation)
    on_progress(Progress("ranked", tokens, 1.0))
    return result


def repeat(
    model: Any, made: Sequence[tuple[Context, list[int]]], generation: GenerationOptions
) -> list[dict[str, Any]]:
    """Compare some texts of a batch with what Transformers' `generate` makes of each alone.

    The longest comes first, then others as the seed says, until enough tokens are compared: the
    last ones of a text, but all of one that outgrows what texts of a batch share.

    Raises:
        RunFailedError: a token differs by more than rounding explains.
    """
    limit, sampling = alone_beyond(model.config), generation.sampling
    left = max(MIN_REPEATED, int(REPEATED_SHARE * sum(len(text) for _, text in made)))
    order = sorted(made, key=lambda one: len(one[0].ids) + len(one[1]), reverse=True)
    others = order[1:]
    random.Random(f"{sampling.seed if sampling else 0} {made[0][0].prompt_id}").shuffle(others)
    found = []
    for context, text in [order[0], *others]:
        whole = outgrows(len(context.ids), len(text), limit)
        first = 0 if whole else max(0, len(text) - left)
        same = repeated(model, context, text, first, sampling, TIE_MARGIN[model.dtype])
        found.append({"prompt_id": context.prompt_id, "turn": context.turn, **asdict(same)})
        left -= same.n_tokens
        if left <= 0:
            break
    return found


def rank_chunk(ranker: Ranker, chunk: Chunk, sampling: Sampling | None) -> list[Ranked]:
    """Rank a chunk's tokens at every layer."""
    temperature = sampling.temperature if sampling else 1.0
    ranked = [
        ranker.rank(states, chunk.token_id, layer, chunk.noise, temperature)
        for layer, states in enumerate(chunk.hidden, start=1)
    ]
    ranker.rest()
    return ranked


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
    for row in torch.nonzero(~first).flatten().tolist():
        rank, gap = rank_and_margin(exit_, chunk.hidden[-1, row], int(top_token[row]))
        if not gap <= TIE_MARGIN[chunk.hidden.dtype]:
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
    near = torch.nonzero(gaps < NEAR_MARGIN[chunk.hidden.dtype]).flatten().tolist()
    return [
        {
            "prompt_id": prompt_ids[row],
            "turn": turn,
            "position": chunk.position[row],
            "margin": float(gaps[row]),
        }
        for row in near
    ]
