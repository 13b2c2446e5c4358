"""The folder that a measurement grows in: a file per finished batch, joined when the run ends."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import io
from ..errors import InvalidInputError
from ..results import Measurement
from .prompts import Prompt

#: where finished batches wait until the run ends; inside the measurement's folder
UNFINISHED = ".unfinished"


class Store:
    """What is measured already, in memory and in the folder `out`."""

    def __init__(self, out: Path, settings: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Take up what the folder holds.

        Args:
            out: the folder; need not exist.
            settings: what makes two measurements the same one; all of it is in their provenance.
            prompts: the prompts of the whole measurement, in order.

        Raises:
            InvalidInputError: the folder holds another measurement, or other files.
        """
        self.out, self.settings, self.prompts = out, settings, prompts
        if out.exists() and not out.is_dir():
            raise InvalidInputError(f"the out folder must be a folder; got the file {out}")
        self.parts = self._on_disk()
        if not self.parts and out.is_dir() and any(p.name != UNFINISHED for p in out.iterdir()):
            raise InvalidInputError(
                f"the out folder must be new, empty or hold this measurement; got {out} with "
                "other files; choose another --out"
            )

    def _on_disk(self) -> list[Measurement]:
        """What the folder holds, each prompt once."""
        parts: list[Measurement] = []
        done: set[str] = set()
        for file in (self.out / io.TOKENS_FILE, *self._unfinished()):
            if file.is_file():
                found = io.read_tokens(file)
                self._check_same(found)
                if done.isdisjoint(found.prompt_ids):  # else joined and not yet cleared away
                    parts.append(found)
                    done.update(found.prompt_ids)
        return parts

    def _unfinished(self) -> list[Path]:
        """Finished batches; a file still being written has a name that starts with a dot."""
        return sorted((self.out / UNFINISHED).glob("[0-9]*.parquet"))

    def _check_same(self, found: Measurement) -> None:
        for key, value in self.settings.items():
            if found.provenance.get(key) != value:
                raise InvalidInputError(
                    f"the out folder must hold this same measurement; got {self.out} with {key} "
                    f"{found.provenance.get(key)!r} instead of {value!r}; choose another --out"
                )

    @property
    def done(self) -> set[str]:
        """Ids of the finished prompts."""
        return {name for part in self.parts for name in part.prompt_ids}

    @property
    def n_tokens(self) -> int:
        """Tokens measured so far."""
        return sum(part.n_tokens for part in self.parts)

    def add(self, part: Measurement) -> None:
        """Put a finished batch on disk."""
        taken = [int(path.stem) for path in self._unfinished()]
        number = max(taken, default=0) + 1
        io.write_tokens(part, self.out / UNFINISHED / f"{number:05d}.parquet")
        self.parts.append(part)

    def settle(self) -> None:
        """Join what is finished into the two files of the folder; nothing to do twice.

        It goes by what is on disk: an interrupt may have come between a write and its record here.
        """
        is_whole = (self.out / io.SUMMARY_FILE).is_file() and not self._unfinished()
        self.parts = [] if is_whole else self._on_disk()
        if self.parts:
            io.write_measurement(self._joined(), self.out)
        shutil.rmtree(self.out / UNFINISHED, ignore_errors=True)
        for cut_short in self.out.glob(".*.part-*"):
            cut_short.unlink(missing_ok=True)

    def _joined(self) -> Measurement:
        """One measurement from its batches, in the order of the prompts."""
        where = {name: (part, i) for part in self.parts for i, name in enumerate(part.prompt_ids)}
        chosen = [prompt for prompt in self.prompts if prompt.id in where]
        rows = [(part, part.prompt_index == i) for part, i in (where[p.id] for p in chosen)]

        def column(name: str) -> Any:
            return np.concatenate([getattr(part, name)[mask] for part, mask in rows])

        return replace(
            self.parts[-1],
            prompt_ids=tuple(prompt.id for prompt in chosen),
            categories=tuple(prompt.category for prompt in chosen),
            prompt_index=np.repeat(np.arange(len(rows)), [int(mask.sum()) for _, mask in rows]),
            position=column("position"),
            token_id=column("token_id"),
            rank=column("rank"),
            top_prob=column("top_prob"),
            complete=len(chosen) == len(self.prompts),
            ties=tuple(tie for part in self.parts for tie in part.ties),
        )
