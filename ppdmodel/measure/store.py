"""A measurement's folder while it runs: files per finished batch, joined when the run ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..progress import OnProgress, Progress, no_report
from ..results.compatibility import check_agree, check_texts
from ..results.files import GUESSES_FILE, SUMMARY_FILE, TOKENS_FILE, write_json
from ..results.locks import LOCK_FILE
from ..results.measurement import Guesses, Measurement
from ..results.parquet import TOKENS, TableFile, guesses_beside, write_guesses, write_tokens
from ..results.parquet_merge import merge_tables
from ..results.summary import Tally
from .prompts import Prompt

#: subfolder of finished batches, removed when the run ends
UNFINISHED = ".unfinished"


class Store:
    """The finished batches of a measurement, in the folder `out`."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Read which prompts the folder holds.

        Args:
            out: the folder; need not exist.
            settings: identify the measurement; all of them are in its provenance.

        Raises:
            InvalidInputError: the folder holds another measurement, or other files.
        """
        self.out, self.settings = out, settings
        self.done: set[str] = set()
        self.n_tokens = 0
        self._found: list[Mapping[str, Any]] = []
        for path in self._on_disk():
            with TableFile(path, TOKENS) as file:
                check_same(out, file.about["provenance"], settings)
                self._found.append(file.about["provenance"])
                self._check_guesses(path)
                if self.done.isdisjoint(file.about["prompt_ids"]):
                    self.done.update(file.about["prompt_ids"])
                    self.n_tokens += file.rows
        own = {UNFINISHED, LOCK_FILE}
        if not self.done and out.is_dir() and any(p.name not in own for p in out.iterdir()):
            raise InvalidInputError(
                f"the out folder must be new, empty or hold this measurement; got {out} with "
                "other files; choose another --out"
            )

    def _on_disk(self) -> list[Path]:
        """The joined table and the finished batches."""
        joined = self.out / TOKENS_FILE
        return [*([joined] if joined.is_file() else []), *self._unfinished()]

    def _unfinished(self) -> list[Path]:
        """Finished batches; a file still being written has a name that starts with a dot."""
        return sorted((self.out / UNFINISHED).glob(f"[0-9]*.{TOKENS_FILE}"))

    def _check_guesses(self, tokens: Path) -> None:
        beside = guesses_beside(tokens)
        if self.settings["guesses"] and not beside.is_file():
            raise InvalidInputError(
                f"the guesses of measured tokens must be beside them; got no {beside}; copy it "
                f"back, or remove {tokens} to measure again"
            )

    def check_texts(self, provenance: Mapping[str, Any]) -> None:
        """Raise `InvalidInputError` where the finished batches are of other texts."""
        for found in self._found:
            check_texts(found, provenance, str(self.out))

    def pending(self, prompts: Sequence[Prompt], size: int) -> list[list[int]]:
        """Numbers of the remaining prompts, in batches of consecutive ones."""
        batches: list[list[int]] = []
        for number, prompt in enumerate(prompts):
            if prompt.id in self.done:
                continue
            if number % size and batches and batches[-1][-1] == number - 1:
                batches[-1].append(number)
            else:
                batches.append([number])
        return batches

    def add(self, part: Measurement, guesses: Guesses | None) -> None:
        """Write a finished batch; its token table last, which marks it as complete."""
        assert part.prompt_numbers is not None
        path = self.out / UNFINISHED / f"{part.prompt_numbers[0]:06d}.{TOKENS_FILE}"
        if guesses is not None:
            write_guesses(guesses, guesses_beside(path))
        write_tokens(part, path)
        self.done.update(part.prompt_ids)
        self.n_tokens += part.n_tokens

    def join_batches(self) -> None:
        """Join the finished batches into the files of the folder; idempotent.

        The batches are those on disk: an interrupt may have come before a write was recorded here,
        and other processes may have written too.
        """
        batches = self._unfinished()
        if batches or not (self.out / SUMMARY_FILE).is_file():
            join_batches(self._on_disk(), self.out)
        self._clear(batches)

    def _clear(self, joined: Sequence[Path]) -> None:
        folder = self.out / UNFINISHED
        _remove(*joined, *map(guesses_beside, joined))
        _remove(*self.out.glob(".*.part-*"), *folder.glob(".*.part-*"))  # cut short
        if folder.is_dir():
            left = list(folder.iterdir())
            if all(path.name.endswith(GUESSES_FILE) for path in left):  # without a token table
                _remove(*left)
                folder.rmdir()


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def check_same(
    out: Path, found: Mapping[str, Any], settings: Mapping[str, Any], what: str = "measurement"
) -> None:
    """Raise `InvalidInputError` where what a folder holds has other settings."""
    check_agree(
        found,
        settings,
        settings,
        rule=f"the out folder must hold this same {what}",
        what=str(out),
        fix="choose another --out",
    )


def join_batches(
    sources: Sequence[Path],
    out: Path,
    provenance: Mapping[str, Any] | None = None,
    on_progress: OnProgress = no_report,
) -> None:
    """Join token tables, and the guesses beside them, into a measurement's folder.

    Args:
        sources: token tables; with none, nothing is done.
        out: the measurement's folder.
        provenance: of the joined table; by default that of the last source.
        on_progress: called with the progress.
    """
    if not sources:
        return
    with TableFile(sources[-1], TOKENS) as file:
        provenance = provenance or file.about["provenance"]
    tally, tokens, prompts = Tally(), 0, 0
    for part in merge_tables(sources, out, provenance):
        tally.add(part)
        tokens, prompts = tokens + part.n_tokens, prompts + len(part.prompt_ids)
        share = prompts / max(provenance.get("n_prompts", prompts), prompts)
        on_progress(Progress("joining", tokens, share))
    with TableFile(out / TOKENS_FILE, TOKENS) as file:
        about = file.about
    write_json(
        out / SUMMARY_FILE,
        tally.summary(
            provenance, about["complete"], about["ties"], about["near_ties"], about["repeated"]
        ),
    )
