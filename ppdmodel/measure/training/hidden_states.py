"""Hidden states of the model's own text, stored on disk during training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import InvalidInputError, RunFailedError, excerpt
from ...progress import OnProgress, Progress, no_report, part_of
from ...results.compatibility import TOKEN_IDS, check_texts
from ...results.files import atomic
from ..decoder.generate import Context, generate
from ..decoder.verify import Decoder
from ..models.loading import LoadedModel
from ..options import GenerationOptions
from ..prompts import Prompt, token_ids_sha256
from ..store import check_same


@dataclass(frozen=True)
class States:
    """Each layer's states of the answers to some prompts, in one file per batch of prompts.

    Each holds `hidden` [layers, n, width], `token_id` [n] and `prompt` [n], prompt numbers.
    """

    files: tuple[Path, ...]
    n_prompts: int

    def layer(self, index: int, wanted: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Yield one layer's states [n, width] of the selected prompts, a file at a time."""
        for path in self.files:
            with opened(path) as file:
                mine = wanted(file.get_tensor("prompt"))
                yield file.get_slice("hidden")[index][mine]

    def column(self, name: str, wanted: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `token_id` or `prompt` [n] of the selected prompts."""
        found = []
        for path in self.files:
            with opened(path) as file:
                found.append(file.get_tensor(name)[wanted(file.get_tensor("prompt"))])
        return torch.cat(found)


def collect(
    loaded: LoadedModel,
    decoder: Decoder,
    prompts: Sequence[Prompt],
    folder: Path,
    generation: GenerationOptions,
    settings: Mapping[str, Any],
    max_tokens: int | None = None,
    on_progress: OnProgress = no_report,
) -> States:
    """Answer prompts greedily and write every layer's states; files that exist are kept.

    Args:
        loaded: the tokenizer and end tokens.
        decoder: the same model, verified.
        prompts: their first turns are answered.
        folder: where the files go.
        generation: how the text is generated; greedily, whatever its sampling.
        settings: identify the collection; stored in the files.
        max_tokens: stop after the batch that reaches this many tokens.
        on_progress: called after each step with the tokens so far and the share done.

    Raises:
        InvalidInputError: the folder holds states of another run or a damaged file, or a prompt
            does not fit.
        RunFailedError: the folder cannot be written.
    """
    files: list[Path] = []
    tokens, size, most = 0, generation.batch_size, generation.max_new_tokens
    about = {key: str(value) for key, value in {**settings, "batch_size": size}.items()}
    read = generation.encode(loaded, prompts)
    contexts = [Context(p.id, 0, ids) for p, ids in zip(prompts, read, strict=True)]
    fingerprint = {TOKEN_IDS: token_ids_sha256(read)}
    for context in contexts:
        loaded.check_room(context.prompt_id, len(context.ids), most)
    for start in range(0, len(prompts), size):
        path = folder / f"{start:06d}.safetensors"
        batch = contexts[start : start + size]
        before, after = start / len(prompts), (start + len(batch)) / len(prompts)
        if not path.is_file():
            report = part_of(on_progress, before, after, tokens)
            states = _answered(decoder, batch, start, most, loaded.end_ids, report)
            save(states, path, about | fingerprint)
        with opened(path) as file:
            # what an earlier version did not know yet was none
            found = dict.fromkeys(about, str(None)) | (file.metadata() or {})
            check_same(folder, found, about, "training")
            check_texts(found, fingerprint, str(folder))
            tokens += _tokens_in(file)
        files.append(path)
        on_progress(Progress("decoding", tokens, after))
        if max_tokens and tokens >= max_tokens:
            break
    return States(tuple(files), min(len(prompts), start + size))


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file of an unfinished training.

    Raises:
        InvalidInputError: it is cut short or damaged, or not what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InvalidInputError(
            f"a file of an unfinished training must be whole; got {path} ({excerpt(error)}); "
            "remove it, and it is made again"
        ) from None


def _tokens_in(file: Any) -> int:
    """The number of tokens in a file, whose tensors must have as many."""
    hidden, ids, owners = (
        file.get_slice(name).get_shape() for name in ("hidden", "token_id", "prompt")
    )
    if len(hidden) != 3 or not ids == owners == [hidden[1]]:
        raise SafetensorError(f"shapes {hidden}, {ids} and {owners}")
    return int(hidden[1])


def _answered(
    decoder: Decoder,
    contexts: Sequence[Context],
    first: int,
    most: int,
    end_ids: frozenset[int],
    on_progress: OnProgress,
) -> dict[str, Tensor]:
    """The tensors of one file: states, tokens and prompt numbers from `first` on."""
    hidden, ids, owners, positions = [], [], [], []
    for chunk in generate(
        decoder.model,
        decoder.exit,
        contexts,
        most,
        end_ids,
        drops_rows=decoder.drops_rows,
        on_progress=on_progress,
    ):
        hidden.append(chunk.hidden.cpu().clone())
        ids.append(chunk.token_id.cpu())
        owners.append(torch.tensor(chunk.row))
        positions.append(torch.tensor(chunk.position))
    owner, position = torch.cat(owners), torch.cat(positions)
    order = torch.argsort(owner * most + position)
    return {
        "hidden": torch.cat(hidden, dim=1)[:, order].contiguous(),
        "token_id": torch.cat(ids)[order],
        "prompt": owner[order] + first,
    }


def save(tensors: dict[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Raises:
        RunFailedError: the file system refused.
    """
    with atomic(path) as part:
        try:
            save_file(tensors, part, metadata=about)
        except SafetensorError as error:  # raised on a full disk instead of OSError
            raise RunFailedError(
                f"{path} must be writable; got: {excerpt(error)}; "
                "free some space or choose another place"
            ) from error
