"""One measurement, from prompts to a folder: batch by batch, resumable, nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import io
from ..checks import positive_integer
from ..errors import InvalidInputError, RunFailedError
from ..results import Measurement
from .exits import LogitExit, logit_exit
from .generate import Generated, generate_greedy
from .models import LoadedModel, check_dtype, load_model, threads
from .prompts import Prompt, prompts_sha256
from .ranks import margin, rank_tokens
from .sources import ModelSource
from .store import Store

PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "numpy", "pyarrow")
#: a greedily decoded token may rank below 1 at the last layer only this close to the top logit,
#: where the two products that made those logits round differently
TIE_MARGIN = {"float32": 1e-2, "bfloat16": 0.5, "float16": 0.1}


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str
    tokens: int
    share: float


OnProgress = Callable[[Progress], None]


def measure(
    source: ModelSource,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    dtype: str = "float32",
    n_threads: int | None = None,
    raw: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> Measurement:
    """Measure where the true token ranks at every exit layer, on the model's own greedy text.

    Finished batches are on disk before the next begins. Whatever stops the run, the same call
    takes it up again; after Ctrl-C or an error the folder is readable and holds the prompts
    finished by then. A folder that is complete is returned without loading the model.

    Args:
        source: the model, from `locate`.
        prompts: user messages; ids unique.
        out: the measurement's folder; new, empty, or holding part or all of this measurement.
        max_new_tokens: most tokens per prompt.
        batch_size: prompts decoded together.
        dtype: "float32", "bfloat16" or "float16".
        n_threads: threads for torch; None keeps torch's number.
        raw: give the text to the model as it is, without its chat template.
        on_progress: called after each decoding step and each ranked layer.

    Returns:
        The whole measurement.

    Raises:
        InvalidInputError: bad numbers, a prompt too long for the model, or a folder that holds
            another measurement.
        RunFailedError: the model does not load, or its last layer did not rank a greedily decoded
            token first although it was no tie.
    """
    positive_integer("max_new_tokens", max_new_tokens)
    positive_integer("batch_size", batch_size)
    check_dtype(dtype)
    if n_threads is not None:
        positive_integer("threads", n_threads)
    settings = {
        "model": source.name,
        "weights_sha256": list(source.weights_sha256),
        "quantization": source.quantization,
        "dtype": dtype,
        "exit_kind": "logit",
        "decoding": "greedy",
        "prompt_format": "raw" if raw else "chat",
        "prompts_sha256": prompts_sha256(prompts),
        "n_prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
    }
    store = Store(out, settings, prompts)
    pending = [prompt for prompt in prompts if prompt.id not in store.done]
    try:
        if pending:
            with threads(n_threads or torch.get_num_threads()):
                run = _Run(store, settings, on_progress, len(prompts))
                run.batches(source, pending, batch_size)
    finally:
        store.settle()
    return io.read_measurement(out)


class _Run:
    """The part of a measurement that needs the model."""

    def __init__(
        self, store: Store, settings: Mapping[str, Any], on_progress: OnProgress, n_prompts: int
    ) -> None:
        self.store, self.settings = store, settings
        self.on_progress, self.n_prompts = on_progress, n_prompts

    def batches(self, source: ModelSource, pending: Sequence[Prompt], batch_size: int) -> None:
        """Decode and rank the pending prompts, a batch at a time."""
        self._report("loading", 0, 0)
        loaded = load_model(source, self.settings["dtype"])
        exit_ = logit_exit(loaded.model)
        chat = self.settings["prompt_format"] == "chat"
        encoded = [loaded.encode(prompt.text, chat) for prompt in pending]
        self._check_context(loaded, pending, encoded)
        provenance = dict(self.settings) | {
            "device": str(loaded.model.device),
            "threads": torch.get_num_threads(),
            "batch_size": batch_size,
            **io.provenance(PACKAGES),
        }
        for start in range(0, len(pending), batch_size):
            rows = slice(start, start + batch_size)
            self._batch(loaded, exit_, pending[rows], encoded[rows], provenance)

    def _batch(
        self,
        loaded: LoadedModel,
        exit_: LogitExit,
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        provenance: Mapping[str, Any],
    ) -> None:
        most = int(self.settings["max_new_tokens"])
        tokens = 0

        def decoded(step: int, active: int) -> None:
            nonlocal tokens
            tokens += active
            self._report("decoding", tokens, len(prompts) * 0.5 * step / most)

        def ranked(layer: int) -> None:
            self._report("ranking", tokens, len(prompts) * 0.5 * (1 + layer / loaded.layers))

        made = generate_greedy(loaded.model, exit_, encoded, most, loaded.end_ids, decoded)
        part = ranked_batch(exit_, prompts, made, provenance, ranked)
        _check_ties(part.ties, TIE_MARGIN[provenance["dtype"]])
        self.store.add(part)

    def _report(self, stage: str, tokens: int, prompts: float) -> None:
        share = (len(self.store.done) + prompts) / self.n_prompts
        self.on_progress(Progress(stage, self.store.n_tokens + tokens, share))

    def _check_context(
        self, loaded: LoadedModel, prompts: Sequence[Prompt], encoded: Sequence[list[int]]
    ) -> None:
        most = self.settings["max_new_tokens"]
        limit = getattr(loaded.model.config, "max_position_embeddings", None)
        for prompt, ids in zip(prompts, encoded, strict=True):
            if limit and len(ids) + most > limit:
                raise InvalidInputError(
                    f"prompt and new tokens must fit the model's context of {limit}; got "
                    f"{len(ids)} + {most} for prompt {prompt.id!r}; shorten one of them"
                )


def ranked_batch(
    exit_: LogitExit,
    prompts: Sequence[Prompt],
    made: Generated,
    provenance: Mapping[str, Any],
    on_layer: Callable[[int], None] = lambda layer: None,
) -> Measurement:
    """Rank every generated token of a batch at every layer."""
    targets = torch.cat([made.token_ids[b, :n] for b, n in enumerate(made.lengths)])
    layers = made.hidden.shape[2]
    rank = np.empty((len(targets), layers), dtype=np.int64)
    top_prob = np.empty((len(targets), layers), dtype=float)
    hidden = torch.empty(0)
    for layer in range(layers):
        hidden = torch.cat([made.hidden[b, :n, layer] for b, n in enumerate(made.lengths)])
        ranks, probs = rank_tokens(exit_, hidden, targets)
        rank[:, layer], top_prob[:, layer] = ranks.numpy(), probs.numpy()
        on_layer(layer + 1)
    prompt_index = np.repeat(np.arange(len(prompts)), made.lengths)
    position = np.concatenate([np.arange(n) for n in made.lengths])
    ties = tuple(
        {
            "prompt_id": prompts[prompt_index[row]].id,
            "position": int(position[row]),
            "rank": int(rank[row, -1]),
            "margin": margin(exit_, hidden[row], int(targets[row])),
        }
        for row in np.flatnonzero(rank[:, -1] != 1)
    )
    return Measurement(
        provenance=dict(provenance),
        prompt_ids=tuple(prompt.id for prompt in prompts),
        categories=tuple(prompt.category for prompt in prompts),
        prompt_index=prompt_index,
        position=position,
        token_id=targets.cpu().numpy().astype(np.int64),
        rank=rank,
        top_prob=top_prob,
        complete=False,
        ties=ties,
    )


def _check_ties(ties: Sequence[Mapping[str, Any]], allowed: float) -> None:
    for tie in ties:
        if not tie["margin"] <= allowed:
            raise RunFailedError(
                "the last layer must rank every greedily decoded token first, near ties apart; got "
                f"rank {tie['rank']} with a margin of {tie['margin']:.3g} for prompt "
                f"{tie['prompt_id']!r} at position {tie['position']}; "
                "this model's head is not read correctly"
            )
