"""docs/glossary.md has the terms that commands print and the keys of their JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ppdmodel.cli import run
from tests.support.pages import PAGES, ROOT, blocks

PAGE = (ROOT / "docs" / "glossary.md").read_text("utf-8")
ROWS = re.findall(r"^\| \*\*(.+?)\*\* \| (.*?) \| (.+) \|$", PAGE, flags=re.MULTILINE)
DATA = ROOT / "data"
LOGIT = str(DATA / "smollm2-135m.calibration.json")
ESTIMATES = (
    ["--p-correct", "0.7", "--layers", "40", "--tokens", "9", "--target-speedup", "1.5"],
    ["--from", LOGIT, "--exit-layer", "24", "--k", "5", "--overhead", "1"],
    ["--p-correct", "0.7", "--layers", "40", "--layer-time-s", "0.001"],
)
JSON = (
    *(["estimate", *given] for given in ESTIMATES),
    ["optimize", LOGIT, "--price", "3", "--max-compute", "2"],
    ["compare", LOGIT, "--acceptance-rate", "0.7"],
)
#: first words of the lines that head the columns of a table; the pages show what is printed
HEADS = r"( *)(compute|method|price|parameter)  +\w"


def terms() -> set[str]:
    """Every way in which the page writes a term."""
    found: set[str] = set()
    for term, also, _ in ROWS:
        bare = re.sub(r"\((.*)\)", r", \1", term)
        found |= {part.strip(' `"') for part in [*bare.split(","), *also.split(";")]}
    return found


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(words) == 0
    return capsys.readouterr().out


def keys(value: Any) -> set[str]:
    """The keys of a document, but for those within its provenance."""
    if isinstance(value, list):
        return {key for part in value for key in keys(part)}
    if not isinstance(value, dict):
        return set()
    inner = (keys(part) for name, part in value.items() if name != "provenance")
    return set(value).union(*inner)


def test_terms_are_in_order_and_explained_in_sentences() -> None:
    assert len(ROWS) == PAGE.count("\n| **")
    names = [term.casefold() for term, _, _ in ROWS]
    assert names == sorted(set(names))
    for term, _, meaning in ROWS:
        assert re.fullmatch(r"[A-Z1*].*\.", meaning), term


@pytest.mark.parametrize("words", JSON, ids=lambda words: "-".join(words[:2]))
def test_every_key_of_the_json_is_there(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(printed([*words, "--json"], capsys))
    named = {key.removesuffix("_s") if key[:-2] in terms() else key for key in keys(document)}
    assert named - terms() == set()


@pytest.mark.parametrize("given", ESTIMATES, ids=lambda given: given[-2])
def test_every_line_of_an_estimate_is_there(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, *lines = printed(["estimate", *given], capsys).splitlines()
    labels = [re.split(r"  +", line.strip())[0] for line in lines if "  " in line.strip()]
    assert len(labels) >= 9
    known = terms() | {f"{given[-1]}"}
    for label in labels:
        tail = re.sub(r"^\d+ tokens, ", "", label)
        assert tail in known, label


def test_every_head_of_a_table_on_a_page_is_there() -> None:
    texts = [block.text for page in PAGES for block in blocks(page) if block.kind == "text"]
    lines = [line for text in texts for line in text.splitlines() if re.match(HEADS, line)]
    assert {line.split()[0] for line in lines} == {"compute", "method", "price", "parameter"}
    for line in lines:
        for head in re.split(r"  +", re.sub("time, compute", " compute  ", line).strip()):
            assert head in terms() or set(head.split(", ")) <= terms(), head


def test_commands_that_run_a_model_have_their_heads_there() -> None:
    """Their modules name the columns in tuples of words; reading them needs no run."""
    from ppdmodel.cli.time import PPD_TERMS

    assert set(PPD_TERMS.values()) <= terms()
    for name in ("validate", "train_exits"):
        source = Path(run.__code__.co_filename).with_name(f"{name}.py").read_text("utf-8")
        tables = re.findall(r"print_table\(\n +\((\"[^)]*k[^)]*)\),\n", source)
        assert len(tables) == source.count("print_table(")
        for head in re.findall(r"\"([^\"]+)\"", " ".join(tables)):
            bare = re.sub(r"^k = \d$", "k", head)
            assert bare in terms() | {"95%"}, head
