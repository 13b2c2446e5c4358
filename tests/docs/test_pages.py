"""Every code block of every page is run, or is the output of the one before it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import ppdmodel
from ppdmodel.decide.hardware import shape
from tests.support.pages import (
    DECLARED,
    PAGES,
    ROOT,
    RUN_ELSEWHERE,
    Reader,
    blocks,
    inline_commands,
    parse,
)

WITH_CODE = [page for page in PAGES if any(not b.kind.startswith("{") for b in blocks(page))]


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """A checkout with the committed results where the pages have theirs."""
    results = tmp_path / "results"
    results.mkdir()
    (tmp_path / "data").symlink_to(ROOT / "data")
    for name, source in (("full", "smollm2-135m"), ("trained", "smollm2-135m-trained")):
        (results / name).symlink_to(ROOT / "data" / source)
    timing = ROOT / "data" / "smollm2-135m-trained.timing.json"
    (results / "timing.json").symlink_to(timing)
    big = shape("Llama 2 70B")
    config = {
        "num_hidden_layers": big.layers,
        "hidden_size": big.width,
        "intermediate_size": big.inner,
        "num_attention_heads": big.heads,
        "num_key_value_heads": big.kv_heads,
        "vocab_size": big.vocabulary,
    }
    (results / "config.json").write_text(json.dumps(config))
    question = {"question_id": 81, "category": "writing", "turns": ["the quick fox", "a dog"]}
    (tmp_path / "question.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "notes.txt").write_text("the quick brown fox\n\nover a lazy dog\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("ppdmodel.measure.decoder.exit._REGISTERED", {})
    return Reader(tmp_path, tiny_model)


@pytest.mark.parametrize("page", WITH_CODE)
def test_what_a_page_says_happens(page: str, workspace: Reader) -> None:
    workspace.follow(page)


def test_pages_with_code_are_those_that_are_known() -> None:
    """No block escapes: pages are found by the pattern of their names, blocks by their fences."""
    assert {"README.md", "docs/start.md", "docs/deciding.md", "theory/01-setting.md"} <= set(PAGES)
    fences = {page: (ROOT / page).read_text("utf-8").count("```") for page in PAGES}
    assert {page: 2 * len(blocks(page)) for page in PAGES} == fences


@pytest.mark.parametrize("page", [page for page in PAGES if inline_commands(page)])
def test_commands_in_the_text_have_the_options_they_name(page: str) -> None:
    for command in inline_commands(page):
        try:
            parse(shlex.split(command)[1:])
        except Exception as error:
            if type(error).__name__ != "MissingParameter":  # a mention may leave out the rest
                raise


def test_tests_that_stand_in_exist() -> None:
    for test in (*RUN_ELSEWHERE.values(), *DECLARED.values()):
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), test


def test_the_columns_on_the_page_are_those_of_the_files() -> None:
    page = (ROOT / "docs" / "reference" / "files.md").read_text("utf-8").split("## Calibration")[0]
    rows = re.findall(r"^\| (`\w+`[^|]*) \| ([^|]+) \|", page, flags=re.MULTILINE)
    said = {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    found: dict[str, str] = {}
    for name in ("smollm2-135m", "smollm2-135m-sampled"):
        for path in (ROOT / "data" / name).glob("*.parquet"):
            for column in pq.read_schema(path):
                kind = str(column.type)
                inner = re.fullmatch(r"fixed_size_list<element: (\w+)>\[(\d)\]", kind)
                if inner:
                    kind = f"{inner[2]} of {inner[1]}"
                first = re.sub(r"_\d+$", "_01", column.name)
                found.setdefault(first, "string" if "string" in kind else kind)
    assert {"rank_01", "coupled_01", "prob_01", "ids_01", "probs_01"} < set(found)
    for column_name, kind in found.items():
        shown = said[column_name]
        assert shown.startswith(kind) or shown == "as above", (column_name, kind)


def test_the_fields_of_a_run_are_those_of_the_file() -> None:
    page = (ROOT / "docs" / "reference" / "files.md").read_text("utf-8")
    lines = (ROOT / "data" / "smollm2-135m-validation" / "runs.jsonl").read_text().splitlines()
    for name in json.loads(lines[1]):
        assert f"`{name}`" in page
    assert list(json.loads(lines[0])) == ["settings"]


def test_the_citation_is_that_of_the_file() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    page = (ROOT / "docs" / "citing.md").read_text("utf-8")
    assert cited["version"] == ppdmodel.__version__
    assert f"version = {{{ppdmodel.__version__}}}" in page
    (paper,) = cited["references"]
    assert f"title = {{{cited['title']}}}" in page
    assert f"title = {{{paper['title']}}}" in page
    authors = [f"{a['given-names']} {a['family-names']}" for a in paper["authors"]]
    assert f"author = {{{' and '.join(authors)}}}" in page
    assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in page


def make(*words: str) -> list[str]:
    done = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_make_help_is_aligned() -> None:
    lines = make("--no-print-directory", "help")
    columns = {len(line) - len(re.sub(r"^  make \S+ +", "", line)) for line in lines}
    assert len(lines) > 10
    assert len(columns) == 1


def test_make_clean_leaves_results_alone() -> None:
    removed = " ".join(make("--no-print-directory", "-n", "clean")).split()
    assert {"rm", ".venv", "build"} <= set(removed)
    assert not any(word.startswith(("results", "data")) for word in removed)
