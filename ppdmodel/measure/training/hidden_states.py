"""Hidden states of the model's own text, kept on disk while exits are trained on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import RunFailedError
from ...results.compatibility import check_agree
from ...results.files import atomic
from ..decoder.generate import Context, generate
from ..decoder.verify import Decoder
from ..models.loading import LoadedModel
from ..prompts import Prompt

OnTokens = Callable[[int, float], None]


@dataclass(frozen=True)
class States:
    """What some prompts' answers left in each layer, a file per batch of prompts.

    The files hold `hidden` [layers, n, width], `token_id` [n] and `prompt` [n], its number.
    """

    files: tuple[Path, ...]
    n_prompts: int

    def layer(self, index: int, wanted: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """One layer's states [n, width], a file at a time, of prompts that `wanted` marks."""
        for path in self.files:
            with safe_open(path, "pt") as file:
                mine = wanted(file.get_tensor("prompt"))
                yield file.get_slice("hidden")[index][mine]

    def column(self, name: str, wanted: Callable[[Tensor], Tensor]) -> Tensor:
        """`token_id` or `prompt` [n], of prompts that `wanted` marks."""
        found = []
        for path in self.files:
            with safe_open(path, "pt") as file:
                found.append(file.get_tensor(name)[wanted(file.get_tensor("prompt"))])
        return torch.cat(found)


def collect(
    loaded: LoadedModel,
    decoder: Decoder,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    chat: bool,
    settings: Mapping[str, Any],
    max_tokens: int | None = None,
    on_tokens: OnTokens = lambda tokens, share: None,
) -> States:
    """Answer prompts greedily and keep every layer's states; what is there already is kept.

    Args:
        loaded: the tokenizer and end tokens.
        decoder: the same, proven.
        prompts: their first turns are answered.
        folder: where the files go.
        max_new_tokens: most tokens per prompt.
        batch_size: prompts decoded together.
        chat: whether to use the chat template.
        settings: what makes two collections the same; kept in the files.
        max_tokens: stop after the batch with which so many tokens are there.
        on_tokens: called with the tokens so far and the share done.

    Raises:
        InvalidInputError: the folder holds states of another run, or a prompt does not fit.
        RunFailedError: the folder cannot be written.
    """
    files: list[Path] = []
    tokens = 0
    settings = {**settings, "batch_size": batch_size}
    for prompt in prompts:
        loaded.check_room(prompt.id, len(loaded.encode([prompt.text], chat)), max_new_tokens)
    for start in range(0, len(prompts), batch_size):
        path = folder / f"{start:06d}.safetensors"
        if not path.is_file():
            batch = prompts[start : start + batch_size]

            report = _Report(on_tokens, tokens, start, len(batch), len(prompts), max_new_tokens)
            kept = _answered(loaded, decoder, batch, start, max_new_tokens, chat, report)
            save(kept, path, {key: str(value) for key, value in settings.items()})
        tokens += _checked(path, settings)
        files.append(path)
        on_tokens(tokens, min(1.0, (start + batch_size) / len(prompts)))
        if max_tokens and tokens >= max_tokens:
            break
    return States(tuple(files), min(len(prompts), start + batch_size))


class _Report:
    """Tells of the steps of a batch."""

    def __init__(
        self, on_tokens: OnTokens, tokens: int, start: int, size: int, prompts: int, steps: int
    ) -> None:
        self.on_tokens, self.tokens = on_tokens, tokens
        self.start, self.size, self.prompts, self.steps = start, size, prompts, steps

    def __call__(self, step: int, active: int) -> None:
        self.tokens += active
        self.on_tokens(self.tokens, (self.start + self.size * step / self.steps) / self.prompts)


def _answered(
    loaded: LoadedModel,
    decoder: Decoder,
    prompts: Sequence[Prompt],
    first: int,
    max_new_tokens: int,
    chat: bool,
    on_step: Callable[[int, int], None],
) -> dict[str, Tensor]:
    contexts = [Context(p.id, 0, loaded.encode([p.text], chat)) for p in prompts]
    hidden, ids, owners, places = [], [], [], []
    for chunk in generate(
        decoder.model,
        decoder.exit,
        contexts,
        max_new_tokens,
        loaded.end_ids,
        drops_rows=decoder.drops_rows,
        on_step=on_step,
    ):
        hidden.append(chunk.hidden.cpu().clone())
        ids.append(chunk.token_id.cpu())
        owners.append(torch.tensor(chunk.row))
        places.append(torch.tensor(chunk.position))
    owner, place = torch.cat(owners), torch.cat(places)
    order = torch.argsort(owner * max_new_tokens + place)
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
        except SafetensorError as error:  # its own error for a full disk, and no OSError
            raise RunFailedError(
                f"{path} must be writable; got: {' '.join(str(error).split())[:200]}; "
                "free some space or choose another place"
            ) from error


def _checked(path: Path, settings: Mapping[str, Any]) -> int:
    """Tokens in a file, after a look at whose they are."""
    with safe_open(path, "pt") as file:
        given = {key: str(value) for key, value in settings.items()}
        check_settings(path.parent, file.metadata() or {}, given)
        return int(file.get_slice("token_id").get_shape()[0])


def check_settings(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` where a folder's training has other settings."""
    check_agree(
        found,
        settings,
        settings,
        rule="the out folder must hold this same training",
        what=str(folder),
        fix="choose another --out",
    )
