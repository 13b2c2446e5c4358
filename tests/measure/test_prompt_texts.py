"""What the model reads: given messages, variables of the template, and the same each day."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import chat_template_utils

from ppdmodel.cli import options
from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import PromptFormat, default_prompts, load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import Prompt, token_ids_sha256
from ppdmodel.measure.run import Shard
from ppdmodel.measure.shards import merge
from ppdmodel.pipeline.validation import _RunLog
from ppdmodel.progress import Progress
from ppdmodel.results.compatibility import TOKEN_IDS
from ppdmodel.results.files import MEASUREMENT, TOKENS_FILE
from ppdmodel.results.measurement import Measurement
from tests.conftest import CHAT, make_tiny_llama
from tests.support.runs import measure_flat, train_flat

PROMPTS = [Prompt("a", "the quick"), Prompt("b", "brown fox")]
MANY = [Prompt(f"p{n}", f"say {n} words") for n in range(9)]


def run(model: Path, out: Path, prompts: list[Prompt] = PROMPTS, **changes: Any) -> Measurement:
    given: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 1, "n_threads": 1, "device": "cpu"}
    return measure_flat(locate(str(model)), prompts, out, **given | changes)


# ---------------------------------------------------------------- what is given


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template has a variable."""
    folder = make_tiny_llama(tmp_path_factory.mktemp("styled") / "styled")
    (folder / "chat_template.jinja").write_text("{{ style }}\n" + CHAT)
    return folder


def test_what_is_given_reaches_the_model_and_is_compared_later(
    styled: Path, tmp_path: Path
) -> None:
    given = (("user", "the fox"), ("assistant", "the dog"))
    prompts = [Prompt("a", "why", context=given)]
    told: dict[str, Any] = {"system": "Be brief.", "template_args": {"style": ["odd", False]}}
    result = run(styled, tmp_path / "m", prompts, **told)
    text = "['odd', False]\n[system] Be brief.\n[user] the fox\n[assistant] the dog\n"
    ids = AutoTokenizer.from_pretrained(styled)(f"{text}[user] why\n[assistant] ").input_ids
    model = AutoModelForCausalLM.from_pretrained(styled, dtype=torch.float32).eval()
    asked = torch.tensor([ids])
    made = model.generate(
        asked, attention_mask=torch.ones_like(asked), max_new_tokens=5, do_sample=False
    )
    assert result.token_id.tolist() == made[0, len(ids) :].tolist()
    about = {"prompt_format": "chat", **told, TOKEN_IDS: token_ids_sha256([ids])}
    assert about.items() <= result.provenance.items()
    for name, other in (("system", None), ("system", "Be long."), ("template_args", {})):
        with pytest.raises(InvalidInputError, match=f"hold this same measurement; got.* {name} "):
            run(styled, tmp_path / "m", prompts, **{**told, name: other})
    assert run(styled, tmp_path / "m", prompts, **told).provenance == result.provenance


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"raw": True, "system": "a"}, "need the template; got them with raw texts"),
        ({"raw": True, "template_args": {"a": 1}}, "need the template; got them with raw texts"),
        ({"system": " "}, "the system message must have text; got none"),
        ({"system": "\udcff"}, "of the chat template must be Unicode text and JSON values; got"),
        ({"template_args": {"a": "\ud800"}}, "must be Unicode text and JSON values; got"),
        ({"template_args": {"a": {1}}}, "JSON values; got: Object of type set is not JSON"),
    ],
)
def test_what_a_template_cannot_be_told_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        PromptFormat(**given)


def test_half_a_character_is_named_whoever_wrote_it(dated: Path, tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    with pytest.raises(InvalidInputError, match="each prompt must be Unicode text; got half"):
        PromptFormat(raw=True).encode(loaded, [Prompt("a", "x\ud800")])
    loaded.tokenizer.chat_template = "{{ messages[0].content }}{{ '\\ud800' }}"
    with pytest.raises(InvalidInputError, match="each prompt must be Unicode text; got half"):
        PromptFormat().encode(loaded, PROMPTS)


def test_a_system_message_is_given_once(styled: Path, tmp_path: Path) -> None:
    prompts = [PROMPTS[0], Prompt("own", "why", context=(("system", "Be odd."),))]
    for changes in ({"raw": True}, {"system": "Be brief."}):
        with pytest.raises(InvalidInputError, match="got prompt 'own' with its own; leave out --"):
            run(styled, tmp_path / "m", prompts, **changes)


def test_variables_on_the_command_line() -> None:
    words = ["a=false", "b=3", "c=[1]", "d=x=y", "e=", "f={broken", 'g="quoted"', "h=NaN"]
    assert options.template_args(words) == {
        "a": False, "b": 3, "c": [1], "d": "x=y", "e": "", "f": "{broken", "g": "quoted",
        "h": "NaN",
    }  # fmt: skip
    assert options.template_args(None) == {}
    for bad in (["a"], ["=1"], ["a-b=1"], ["a=1", "a=2"], ["1a=2"]):
        with pytest.raises(InvalidInputError, match="--template-arg must be NAME=VALUE, each name"):
            options.template_args(bad)


@pytest.mark.parametrize(
    "words",
    [
        ["measure", "--out", "{out}"],
        ["train-exits", "--out", "{out}"],
        ["decode", "--prompt", "a", "--exit-layer", "2"],
    ],
)
def test_commands_take_both(
    styled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    words = [word.format(out=tmp_path / "m") for word in words]
    given = ["--model", str(styled), "--max-new-tokens", "2", "--template-arg", "style=odd"]
    assert run_command([*words, *given, "--system", "x", "--raw"]) == 2
    assert "need the template; got them with raw" in capsys.readouterr().err.splitlines()[-1]
    if words[0] == "measure":
        assert run_command([*words, *given, "--template-arg", "styled=1"]) == 2
        message = "variable of the model's chat template; got 'styled', which is none"
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_turns_that_a_command_does_not_ask_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    longer = [*PROMPTS, Prompt("c", "one", later_turns=("two",))]
    options.chosen_prompts(None, None, lambda: longer, all_turns=True)
    options.chosen_prompts(None, 2, lambda: longer, all_turns=False)
    options.chosen_prompts(None, None, default_prompts, all_turns=False)
    assert capsys.readouterr().err == ""
    options.chosen_prompts(None, None, lambda: longer, all_turns=False)
    words = "only first turns are used; 1 of the prompts have more"
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------- the same text each day


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template states the date."""
    folder = make_tiny_llama(tmp_path_factory.mktemp("dated") / "dated")
    date = "{{ date_string if date_string is defined else strftime_now('%d %B') }}"
    (folder / "chat_template.jinja").write_text(f"{date}\n{CHAT}")
    return folder


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the day that templates are told."""
    today = [1]

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Day:
            return cls(2026, 3, today[0])

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    return lambda day: today.__setitem__(0, day)


REFUSED = "the texts that the model reads must be the same in all parts; got "


def test_shards_of_different_days_are_not_joined(
    dated: Path, tmp_path: Path, on: Callable[[int], None]
) -> None:
    for day in (1, 17):
        on(day)
        for n in (1, 2):
            run(dated, tmp_path / f"{day}-{n}", shard=Shard(n, 2))
    first, second, later = (tmp_path / name for name in ("1-1", "1-2", "17-2"))
    for folders in ([first, later], [later, first]):
        with pytest.raises(InvalidInputError, match=f"{REFUSED}{folders[1]} with {TOKEN_IDS}"):
            merge(folders, tmp_path / "no")
    whole = merge([second, first], tmp_path / "whole")
    assert whole.complete
    assert TOKEN_IDS in whole.provenance
    _forget(later)  # as earlier versions wrote it
    assert merge([first, later], tmp_path / "old").complete


def _forget(folder: Path) -> None:
    """Remove the fingerprint of the texts from a measurement."""
    path = folder / TOKENS_FILE
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[MEASUREMENT.encode()])
    del about["provenance"][TOKEN_IDS]
    metadata = {**table.schema.metadata, MEASUREMENT.encode(): json.dumps(about).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_date_that_is_given_is_the_same_each_day(
    dated: Path, tiny_model: Path, on: Callable[[int], None]
) -> None:
    loaded = load_model(locate(str(tiny_model)))
    loaded.tokenizer.chat_template = (dated / "chat_template.jinja").read_text()
    found = []
    for arguments in ({}, {"date_string": "26 July 2024"}):
        for day in (1, 2):
            on(day)
            found.append(PromptFormat(template_args=arguments).encode(loaded, PROMPTS))
    assert found[0] != found[1]
    assert found[2] == found[3]


def test_a_run_is_not_resumed_with_other_texts(
    dated: Path, tmp_path: Path, on: Callable[[int], None]
) -> None:
    out, seen = tmp_path / "m", list[Progress]()

    def stop(progress: Progress) -> None:
        if progress.share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dated, out, on_progress=stop)
    on(2)
    with pytest.raises(InvalidInputError, match=f"{REFUSED}{out} with {TOKEN_IDS}"):
        run(dated, out, on_progress=seen.append)
    assert [progress.stage for progress in seen] == ["loading"], "nothing is decoded"
    on(1)
    assert run(dated, out).complete
    on(3)
    assert run(dated, out, on_progress=seen.append).complete
    assert len(seen) == 1, "a finished measurement is returned without the model"


def test_a_date_that_changes_during_a_run_ends_it(
    dated: Path, tmp_path: Path, on: Callable[[int], None]
) -> None:
    def midnight(progress: Progress) -> None:
        if progress.stage == "ranked":
            on(2)

    with pytest.raises(InvalidInputError, match="same texts throughout a run; got others than at"):
        run(dated, tmp_path / "m", on_progress=midnight)


def test_exits_are_not_trained_on_texts_of_two_days(
    dated: Path, tmp_path: Path, on: Callable[[int], None]
) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "decoding" and progress.share > 0.3:
            raise KeyboardInterrupt

    given: dict[str, Any] = {"max_new_tokens": 3, "batch_size": 3, "n_threads": 1, "device": "cpu"}
    given["exit_layers"] = [2]
    with pytest.raises(KeyboardInterrupt):
        train_flat(locate(str(dated)), MANY, tmp_path / "e", on_progress=stop, **given)
    on(2)
    with pytest.raises(InvalidInputError, match=REFUSED):
        train_flat(locate(str(dated)), MANY, tmp_path / "e", **given)


def test_a_validation_is_not_resumed_with_other_texts(tmp_path: Path) -> None:
    header = {"model": "m", TOKEN_IDS: "1"}
    _RunLog(tmp_path / "v", header)
    _RunLog(tmp_path / "v", header)
    with pytest.raises(InvalidInputError, match=f"{REFUSED}runs in {tmp_path / 'v'} with"):
        _RunLog(tmp_path / "v", {**header, TOKEN_IDS: "2"})
    _RunLog(tmp_path / "old", {"model": "m"})
    _RunLog(tmp_path / "old", header)
