"""Records of prompts in any container: all of their text is read, or they are refused by key."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.prompts import Prompt, prompts_sha256, read_prompts
from tests.support.prompt_files import write


def said(*texts: str, first: str = "user") -> list[dict[str, str]]:
    """Messages of OpenAI's shape, the user's and the assistant's in turn."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
GIVEN = (("system", "Be brief."), ("user", "a"), ("assistant", "b"))
#: records, the messages that they give, and those that the model answers
SHAPES: dict[str, tuple[dict[str, Any], Sequence[tuple[str, str]], Sequence[str]]] = {
    "text": ({"text": 'a, "b"\nc'}, (), ['a, "b"\nc']),
    "prompt": ({"prompt": "a"}, (), ["a"]),
    "turns": ({"turns": ["a", "b"]}, (), ["a", "b"]),
    "messages": ({"messages": said("a")}, (), ["a"]),
    "conversations": ({"conversations": [HUMAN]}, (), ["a"]),
    "given answers": ({"messages": [SYSTEM, *said("a", "b", "c")]}, GIVEN, ["c"]),
    "ShareGPT's answers": ({"conversations": [HUMAN, GPT, HUMAN]}, GIVEN[1:], ["a"]),
    "ShareGPT's last answer": ({"conversations": [HUMAN, GPT]}, (), ["a"]),
    "roles in conversations": ({"conversations": said("a", "b", "c")}, GIVEN[1:], ["c"]),
    "prompt of messages": ({"prompt": [SYSTEM, *said("a")]}, GIVEN[:1], ["a"]),
    "parts": ({"messages": [{"role": "user", "content": PARTS}]}, (), ["one\ntwo"]),
    "others are empty": ({"text": "a", "prompt": None, "system": "", "turns": []}, (), ["a"]),
}


def in_jsonl(record: dict[str, Any], path: Path) -> Path:
    return write(path.with_suffix(".jsonl"), [record])


def in_array(record: dict[str, Any], path: Path) -> Path:
    path.with_suffix(".json").write_text(json.dumps([record], indent=1), "utf-8")
    return path.with_suffix(".json")


def in_object(record: dict[str, Any], path: Path) -> Path:
    path.with_suffix(".json").write_text(json.dumps(record, indent=1), "utf-8")
    return path.with_suffix(".json")


def in_csv(record: dict[str, Any], path: Path) -> Path:
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(record)
    cells = [v if isinstance(v, (str, int, float)) else json.dumps(v) for v in record.values()]
    table.writerow("" if cell in ("null", "[]") else cell for cell in cells)
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(out.getvalue().encode()))
    return path.with_suffix(".csv.gz")


def in_parquet(record: dict[str, Any], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([record]), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


CONTAINERS = (in_jsonl, in_array, in_object, in_csv, in_parquet)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("record", "context", "turns"), SHAPES.values(), ids=SHAPES.keys())
def test_usual_shapes_are_read_whole(
    tmp_path: Path, container: Any, record: dict[str, Any], context: Any, turns: Sequence[str]
) -> None:
    if container is in_csv and isinstance(record.get("prompt"), list):
        record = {"messages": record["prompt"]}  # a CSV cell of a prompt is a text
    (found,) = read_prompts(container({"id": 7, **record, "category": "x"}, tmp_path / "p"))
    assert (found.id, found.category) == ("7", "x")
    assert found.context == tuple(context)
    assert list(found.turns) == list(turns)
    assert found.messages() == [*context, ("user", turns[0])]


def test_a_conversation_is_given_turn_by_turn() -> None:
    prompt = Prompt("a", "one", later_turns=("two",), context=(("system", "s"),))
    assert prompt.messages(["yes"]) == [
        ("system", "s"), ("user", "one"), ("assistant", "yes"), ("user", "two"),
    ]  # fmt: skip
    others = [
        Prompt("a", "one", later_turns=("two",)),
        Prompt("a", "one", context=(("user", "s"),)),
    ]
    assert len({prompts_sha256([one]) for one in (prompt, *others)}) == 3


# ---------------------------------------------------------------- keys that are not read

#: records as the benchmarks have them
KNOWN: list[dict[str, Any]] = [
    {"question_id": 1, "category": "math", "turns": ["a", "b"], "reference": ["1", "2"]},
    {"task_id": "HumanEval/0", "prompt": "def f():", "entry_point": "f", "test": "assert f()",
     "canonical_solution": "  return 1"},
    {"key": 1000, "prompt": "a", "instruction_id_list": ["x:y"], "kwargs": [{"n": 1}]},
    {"task_id": 11, "text": "Write f.", "test_list": ["assert f()"], "test_setup_code": "",
     "challenge_test_list": []},
    {"id": "a", "prompt": "a", "chosen": "b", "rejected": "c", "score": 0.5, "is_safe": True},
    {"prompt": said("a"), "completion": said("b", first="assistant")},
]  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("record", KNOWN)
def test_metadata_and_answers_pass(tmp_path: Path, container: Any, record: dict[str, Any]) -> None:
    if container is not in_csv or isinstance(record.get("prompt", record.get("text")), str):
        assert len(read_prompts(container(record, tmp_path / "p"))) == 1


EXTRA: dict[str, Any] = {
    "system": "Answer in Greek.", "system_prompt": "Answer in Greek.", "input": "1 2 3",
    "instruction": "Sort.", "context": "Once upon a time.", "question": "Why?", "System": "x",
    "choices": ["a", "b"], "tools": [{"name": "f"}], "passage": {"text": "x"}, "code": "x = 1",
    " text": "b", "conversation": said("a"), "suffix": "b", "source": "Hallo",
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("key", "value"), EXTRA.items())
def test_other_texts_are_refused_by_key(
    tmp_path: Path, container: Any, key: str, value: Any
) -> None:
    for name in ("text", "turns", "messages"):
        path = container({**SHAPES[name][0], key: value}, tmp_path / name)
        with pytest.raises(InvalidInputError) as caught:
            read_prompts(path)
        assert f"1 with {key!r}, which is not; put it into" in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_number_is_refused_where_the_key_is_an_input(tmp_path: Path) -> None:
    row = {"text": "Square it:", "length": 3}
    assert read_prompts(write(tmp_path / "p.jsonl", [row]))
    with pytest.raises(InvalidInputError, match="line 1 with 'input', which is not"):
        read_prompts(write(tmp_path / "p.jsonl", [{**row, "input": 21}]))


@pytest.mark.parametrize("first", ["text", "prompt", "turns", "messages", "conversations"])
@pytest.mark.parametrize("second", ["text", "prompt", "turns", "messages", "conversations"])
def test_two_texts_are_refused(tmp_path: Path, first: str, second: str) -> None:
    if first != second:
        path = write(tmp_path / "p.jsonl", [{**SHAPES[second][0], **SHAPES[first][0]}])
        with pytest.raises(InvalidInputError, match=f"line 1 with (.* and {first}|{first} and)"):
            read_prompts(path)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "1 + 1?", "answer": "2"}, "its keys are 'question', 'answer'; write one"),
        ({}, "its keys are none; write"),
        ({f"k{n}": 1 for n in range(99)}, "'k6', 'k7', ...; write"),
        ({"text": said("a")}, "text must be a text, none of them blank"),
        ({"messages": "a"}, "messages must be messages"),
        ({"messages": ["a"]}, "messages must be messages"),
        ({"turns": "a"}, "turns must be texts or messages"),
        ({"messages": said("a", "b")}, "with an answer at the end of messages; remove it"),
        ({"conversations": [GPT]}, "with an answer at the end of conversations; remove"),
        ({"messages": said("a", "b", first="assistant")}, "with assistant, user; join messages"),
        ({"messages": [*said("a"), *said("b")]}, "with user, user; join messages of one role"),
        ({"messages": [*said("a", "b"), SYSTEM, *said("c")]}, "user, assistant, system, user"),
        ({"messages": [SYSTEM]}, "with system; join messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "got 'tool' in"),
        ({"messages": [{"speaker": "a", "text": "b"}]}, "whose keys are 'speaker', 'text'"),
        ({"messages": [{"role": "user", "content": ""}]}, "content must be text, not blank"),
        ({"conversations": [{"from": "human", "value": 3}]}, "value must be text, not blank"),
        ({"messages": [{**SYSTEM, "role": "user", "name": "Ann"}]}, "messages 1 with 'name'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "parts of a message must be of type text",
        ),
        ({"id": ["a"], "text": "a"}, "id must be text or a number; got"),
        ({"id": True, "text": "a"}, "id must be text or a number; got"),
        ({"category": {"a": 1}, "text": "a"}, "category must be text or a number; got"),
    ],
)
def test_what_is_no_conversation_is_named(
    tmp_path: Path, record: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_prompts(write(tmp_path / "p.jsonl", [{"text": "fine"}, record]))
    assert words in str(caught.value)
    assert "p.jsonl line 2" in str(caught.value)
