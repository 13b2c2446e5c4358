"""A text that units make."""

from __future__ import annotations

from dataclasses import dataclass

from ..measure.decoder.sampling import Sampling
from .options import PpdSetting, PromptLookup, SelfSpeculation


@dataclass(frozen=True)
class ForcedMatches:
    """Guesses that are forced to be right or wrong, to time both outcomes.

    `token_ids[i]` is the text's token i; `hits[i]` says whether the guesses of it are right.
    """

    token_ids: tuple[int, ...]
    hits: tuple[bool, ...]


@dataclass(frozen=True)
class Task:
    """One text to make: by PPD with a setting, else by plain decoding on unit 0, maybe with drafts.

    `timed` synchronizes with the device after each layer of a plain text; PPD always does.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    end_ids: frozenset[int] = frozenset()
    setting: PpdSetting | None = None
    sampling: Sampling | None = None
    prompt_id: str = ""
    forced: ForcedMatches | None = None
    drafts: SelfSpeculation | PromptLookup | None = None
    timed: bool = False
