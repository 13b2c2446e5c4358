"""Prompts: one JSON object a line with `text`, and `id`, `category`, `language` if known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError


@dataclass(frozen=True)
class Prompt:
    """One user message."""

    id: str
    text: str
    category: str = ""
    language: str = ""


def default_prompts() -> list[Prompt]:
    """The prompts that ship with the package, in the project's own words."""
    with resources.as_file(resources.files("ppdmodel") / "prompts.jsonl") as path:
        return read_prompts(path)


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompt file.

    Raises:
        InvalidInputError: the file is missing, empty, not JSON Lines in UTF-8, has a line without
            text, or gives two prompts one id; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InvalidInputError(
            f"the prompt file must exist; got {path}; check --prompts"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"the prompt file must be readable UTF-8 text; got {path} ({error}); check --prompts"
        ) from None
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InvalidInputError(
            f"the prompt file must hold a prompt; got {path}, which is empty; "
            'write one JSON object a line: {"text": "..."}'
        )
    prompts = [_prompt(path, n, line) for n, line in numbered]
    _check_unique(path, [prompt.id for prompt in prompts])
    return prompts


def _prompt(path: Path, number: int, line: str) -> Prompt:
    where = f"{path} line {number}"
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"each line of a prompt file must be JSON; got {where}: {error.msg}; "
            'write one JSON object a line: {"text": "..."}'
        ) from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InvalidInputError(
            f'each prompt must have a text; got {where} without one; write {{"text": "..."}}'
        )
    return Prompt(
        id=str(record.get("id", f"line-{number}")),
        text=text,
        category=str(record.get("category", "")),
        language=str(record.get("language", "")),
    )


def _check_unique(path: Path, ids: list[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise InvalidInputError(
                f"prompt ids must be unique; got {name!r} twice in {path}; rename one"
            )
        seen.add(name)


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """A fingerprint of the prompts' ids and texts, in order."""
    joined = json.dumps([[p.id, p.text] for p in prompts], ensure_ascii=False)
    return hashlib.sha256(joined.encode()).hexdigest()
