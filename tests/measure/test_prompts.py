"""Prompt files: ours, and what is wrong with others'."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.prompts import default_prompts, prompts_sha256, read_prompts


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
    with pytest.raises(InvalidInputError, match="must be readable UTF-8 text"):
        read_prompts(tmp_path)


def test_the_file_is_plain_json_lines() -> None:
    path = Path(__file__).parents[2] / "ppdmodel" / "measure" / "prompts.jsonl"
    for line in path.read_text("utf-8").splitlines():
        assert list(json.loads(line)) == ["id", "category", "language", "text"]
