"""Any bad file, path or value ends in exit code 2 and one line that names it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shlex
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ppdmodel import fit, save
from ppdmodel.cli import BAD_INPUT, DONE, run
from ppdmodel.cli.app import app_of
from ppdmodel.errors import InvalidInputError, visible
from ppdmodel.measure.models.packaged import sha256
from ppdmodel.pipeline.options import PpdSetting
from ppdmodel.pipeline.prediction_error import Corrections, SettingRuns
from ppdmodel.pipeline.validation import PREDICTIONS_FILE, RUNS_FILE, _RunLog
from ppdmodel.results.files import GUESSES_FILE, MEASUREMENT
from ppdmodel.results.parquet import write_guesses
from tests.conftest import make_measurement, make_tiny_llama
from tests.measure.models.test_gguf_header import gguf
from tests.pipeline.test_prediction_error import a_timing
from tests.results.test_changed_files import OTHERS, places
from tests.support.runs import snapshot
from tests.support.tables import repeating_guesses

DATA = Path(__file__).parents[2] / "data"
#: what no message of a foreseen fault begins with
UNFORESEEN = "the run failed; got"
CONFIG = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "head_dim": 16,
}
COUNTS = "exit_layer,k,hits,n,prompt_id\n" + "".join(
    f"{e},{k},{hits},9,{prompt}\n"
    for prompt in "ab"
    for (e, k), hits in {(2, 1): 3, (2, 2): 5, (3, 1): 4, (3, 2): 6}.items()
)
#: what the commands below are refused for after they have read a sound file, so that they end soon
AFTERWARDS = (
    "no.gguf", "dtype must be one of", "/no without them", "a plot must end in one of",
    "exit_layer must not exceed layers",
)  # fmt: skip
#: files of a model's folder
MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "model.safetensors",
)  # fmt: skip
#: a command that reads each file
READERS = {
    "cal.json": (
        "estimate --from {at}/cal.json --exit-layer 2",
        "optimize {at}/cal.json",
        "compare {at}/cal.json",
    ),
    "timing.json": (
        "decode --exit-layer 2 --prompt x --model {at}/no.gguf --timing {at}/timing.json",
    ),
    "m/summary.json": ("estimate --from {at}/m",),
    "m/tokens.parquet": ("estimate --from {at}/m", "merge {at}/m --out {at}/merged"),
    "m/guesses.parquet": ("compare {at}/m", "merge {at}/m --out {at}/merged"),
    "validation.json": ("plot --kind predicted {at}/validation.json --out {at}/plot.txt",),
    "exits/exits.json": (
        "measure --exits {at}/exits --model {at}/model --dtype none --out {at}/out",
    ),
    "exits/exits.safetensors": (
        "measure --exits {at}/exits --model {at}/model --dtype none --out {at}/out",
    ),
    "config.json": ("optimize {at}/cal.json --roofline {at}/config.json",),
    "counts.csv": (
        "fit --table {at}/counts.csv --layers 4 --resamples 400 --family 'rank tail' "
        "--out {at}/out.json",
    ),
    "prompts.jsonl": ("measure --prompts {at}/prompts.jsonl --model {at}/no.gguf --out {at}/out",),
    **dict.fromkeys(
        map("llama/{}".format, MODEL_FILES),
        ("decode --model {at}/llama --exit-layer 9 --prompt x",),
    ),
    "model.gguf": ("measure --model {at}/model.gguf --exits {at}/no --out {at}/out",),
}
#: what is read quickly more often than a model, whose field at fault is found by trying each
NAMES = [name for name in READERS for _ in range(1 if name.startswith("llama/") else 4)]
DOCUMENTS = [name for name in NAMES if name.endswith(".json")]
TABLES = ("m/tokens.parquet", "m/guesses.parquet")


@pytest.fixture(scope="module", autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is made here is where pytest clears away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("bad-input")))
        yield


@cache
def sound() -> Path:
    """A folder with a sound file of each kind."""
    at = Path(tempfile.mkdtemp(prefix="sound-"))
    measured = make_measurement(prompts=4, tokens=6, layers=4)
    save(measured, at / "m")
    write_guesses(repeating_guesses(measured), at / "m" / GUESSES_FILE)
    guesses = repeating_guesses(measured)
    save(
        fit(measured, guesses=guesses, k_max=2, family="rank tail", resamples=400), at / "cal.json"
    )
    save(a_timing(), at / "timing.json")
    report = json.loads((DATA / "smollm2-135m-validation" / "validation.json").read_text("utf-8"))
    report["cells"] = report["cells"][:2]
    (at / "validation.json").write_text(json.dumps(report))
    (at / "config.json").write_text(json.dumps(CONFIG))
    (at / "counts.csv").write_text(COUNTS)
    (at / "model.gguf").write_bytes(gguf())
    rows = [{"id": n, "text": f"the {n} fox", "category": "a"} for n in ("p", "q")]
    (at / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_tiny_llama(at / "llama", layers=2)
    (at / "model").mkdir()
    save_file({"w": torch.zeros(2)}, at / "model" / "model.safetensors")
    (at / "exits").mkdir()
    maps = {f"layer_{n}": (torch.eye(4), torch.zeros(4)) for n in (1, 2)}
    save_file(
        {
            f"{n}.{part}": t
            for n, two in maps.items()
            for part, t in zip(("weight", "bias"), two, strict=True)
        },
        at / "exits" / "exits.safetensors",
    )
    row = {"penalty": 1.0, "epochs": 0, "validation_hits": [0.5], "validation_hits_logit": [0.5]}
    document = {
        "schema": "ppdmodel/trained-exits", "schema_version": 1, "layers": 3, "objective": "ridge",
        "n_tokens": 9, "n_prompts": 2, "n_choosing": 1, "by_layer": {"1": row, "2": row},
        "trained_on": ["0" * 16], "sha256": sha256(at / "exits" / "exits.safetensors"),
        "provenance": {
            "model": "made-up", "prompts_sha256": "0",
            "weights_sha256": [sha256(at / "model" / "model.safetensors")],
        },
    }  # fmt: skip
    (at / "exits" / "exits.json").write_text(json.dumps(document))
    return at


@cache
def parser(name: str) -> Any:
    """The parser of one command; making it anew takes longer than most of what is done here."""
    return typer.main.get_command(app_of([name]))


@cache
def place() -> Path:
    """A copy of the sound files."""
    return Path(shutil.copytree(sound(), Path(tempfile.mkdtemp(prefix="bad-")) / "at"))


@cache
def contents() -> dict[str, bytes]:
    """The sound files."""
    return snapshot(sound())


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A copy of the sound files, in which only what a case changed is put back after it."""
    at = place()
    try:
        yield at
    finally:
        kept = {at / path.relative_to(sound()) for path in sound().rglob("*")}
        for path in sorted(set(at.rglob("*")) - kept, reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        for name, content in contents().items():
            (at / name).parent.mkdir(exist_ok=True)
            if not (at / name).exists() or (at / name).read_bytes() != content:
                (at / name).write_bytes(content)


def outcome(words: list[str]) -> tuple[int, str]:
    """The exit code of a command, and its error without notes; a refusal prints nothing else."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch("ppdmodel.cli.app.app_for", lambda argv: parser(argv[0])),
    ):
        code = run(words)
    said = err.getvalue()
    assert UNFORESEEN not in said, (words, said)
    assert code in (DONE, BAD_INPUT), (words, code, said)
    if code == DONE:
        return code, ""
    assert out.getvalue() == "", words
    *notes, error = said.splitlines()
    assert error.startswith("error: "), said
    assert not any(note.startswith(("error", "Traceback")) for note in notes), said
    assert visible(error) == error
    return code, error


def read(at: Path, name: str, which: int) -> tuple[int, str]:
    """What a command that reads one file of a folder ends with."""
    command = READERS[name][which % len(READERS[name])]
    return outcome([word.format(at=at) for word in shlex.split(command)])


def is_told(code: int, error: str, at: Path, name: str) -> bool:
    """Whether a file was read, or is named in a message, or the folder that it belongs to."""
    path = at / name
    named = str(path) in error or (path.parent != at and str(path.parent) in error)
    return code == DONE or named or any(words in error for words in AFTERWARDS)


@pytest.mark.parametrize("name", READERS)
def test_a_sound_file_is_read(name: str) -> None:
    """So that a refusal below is of the change."""
    for which in range(len(READERS[name])):
        with scratch_folder() as at:
            code, error = read(at, name, which)
            assert code == DONE or any(words in error for words in AFTERWARDS), error


# ---------------------------------------------------------------- files


#: which of a file's readers, mostly the first, which is the fastest
WHICH = st.sampled_from([0, 0, 0, 1, 2])


def changed(document: Any, data: st.DataObject) -> tuple[Any, str]:
    """The document with one value changed or removed; the field where a message must name it."""
    found = list(places(document))
    # a field of the document first, since most places are in its largest table
    field = data.draw(st.sampled_from(sorted({str(place[0]) for place in found})))
    *above, last = data.draw(st.sampled_from([p for p in found if str(p[0]) == field]))
    inner = document
    for step in above:
        inner = inner[step]
    how = data.draw(st.sampled_from(["other", "other", "removed", "deep", "half"]))
    if how == "removed":
        del inner[last]
    elif how == "deep":
        inner[last] = json.loads("[" * 900 + "]" * 900)
    else:
        inner[last] = data.draw(OTHERS) if how == "other" else "\ud800"
    return document, field if how in ("deep", "half") else ""


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_document_with_a_changed_value(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(DOCUMENTS))
    document, field = changed(json.loads((sound() / name).read_text("utf-8")), data)
    with scratch_folder() as at:
        (at / name).write_text(json.dumps(document), encoding="utf-8")
        code, error = read(at, name, data.draw(WHICH))
        assert is_told(code, error, at, name), error
        # the library that reads tokenizer.json names no field
        assert not field or field in error or name == "llama/tokenizer.json", error


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_table_with_changed_metadata(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(TABLES))
    with scratch_folder() as at:
        table = pq.read_table(at / name)
        key = MEASUREMENT.encode()
        document, field = changed(json.loads(table.schema.metadata[key]), data)
        metadata = {**table.schema.metadata, key: json.dumps(document)}
        pq.write_table(table.replace_schema_metadata(metadata), at / name)
        code, error = read(at, name, data.draw(WHICH))
        assert is_told(code, error, at, name), error
        assert not field or field in error, error


def flipped(content: bytes, data: st.DataObject) -> bytes:
    """Bytes with some of them changed, lost or added."""
    at = data.draw(st.integers(0, len(content)))
    piece = data.draw(
        st.sampled_from([b"", b"\0", b"\xff\xfe", b"NaN", b"[", b"9" * 400, b"\x1b["])
    )
    kept = data.draw(st.sampled_from([0, 0, 1, 8, len(content)]))
    return content[:at] + piece + content[at + kept :]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_file_with_changed_bytes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    with scratch_folder() as at:
        (at / name).write_bytes(flipped((at / name).read_bytes(), data))
        code, error = read(at, name, data.draw(WHICH))
        assert is_told(code, error, at, name), error


def other_columns(table: pa.Table) -> dict[str, Callable[[int, int], pa.Table]]:
    """What may happen to a table: a column or rows of it lost, doubled, or of another type."""
    names = table.column_names

    def put(column: int, values: Any) -> pa.Table:
        return table.set_column(column, names[column], values)

    def one(column: int, row: int, value: Any) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value if not isinstance(values[row], list) else [value] * len(values[row])
        try:
            return put(column, pa.array(values, table.schema.field(column).type))
        except (pa.ArrowException, OverflowError, TypeError):
            return put(column, pa.array([str(value)] * len(values)))

    return {
        "no column": lambda c, _: table.drop_columns([names[c]]),
        "renamed": lambda c, _: table.rename_columns([*names[:c], "x", *names[c + 1 :]]),
        "twice": lambda c, _: table.append_column(names[c], table.column(c)),
        "text": lambda c, _: put(c, pa.array(["x"] * len(table))),
        "doubles": lambda c, _: put(c, pa.array([0.5] * len(table))),
        "nothing": lambda c, _: put(c, pa.nulls(len(table))),
        "a null": lambda c, r: one(c, r, None),
        "NaN": lambda c, r: one(c, r, math.nan),
        "zero": lambda c, r: one(c, r, 0),
        "negative": lambda c, r: one(c, r, -1),
        "large": lambda c, r: one(c, r, 30_000),
        "a row less": lambda _, r: pa.concat_tables([table[:r], table[r + 1 :]]),
        "a row twice": lambda _, r: pa.concat_tables([table[: r + 1], table[r:]]),
        "no rows": lambda *_: table[:0],
        "backwards": lambda *_: table.take(list(range(len(table)))[::-1]),
    }


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_table_with_other_columns_or_rows(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(TABLES))
    with scratch_folder() as at:
        table = pq.read_table(at / name)
        kinds = other_columns(table)
        column = data.draw(st.integers(0, table.num_columns - 1))
        row = data.draw(st.integers(0, len(table) - 1))
        change = data.draw(st.sampled_from(list(kinds)))
        pq.write_table(kinds[change](column, row), at / name)
        code, error = read(at, name, data.draw(WHICH))
        assert is_told(code, error, at, name), (change, error)


CELLS = st.sampled_from(
    ["", "-1", "0", "1.5", "nan", "inf", "9" * 30, "9" * 5000, "x", "\x1b[31m", "٣", '"']
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_csv_table_with_a_changed_cell(data: st.DataObject) -> None:
    rows = [line.split(",") for line in COUNTS.splitlines()]
    row = data.draw(st.integers(0, len(rows) - 1))
    cell = data.draw(st.integers(0, 4))
    rows[row][cell] = data.draw(CELLS)
    if data.draw(st.booleans()):
        rows[row].append(data.draw(CELLS))
    with scratch_folder() as at:
        (at / "counts.csv").write_text("".join(",".join(r) + "\n" for r in rows), encoding="utf-8")
        code, error = read(at, "counts.csv", 0)
        assert is_told(code, error, at, "counts.csv"), error


EXITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda t: t["layer_1.weight"][0].fill_(math.nan),
    "infinite": lambda t: t["layer_2.bias"].fill_(-math.inf),
    "whole numbers": lambda t: t.update({"layer_1.bias": torch.zeros(4, dtype=torch.int64)}),
    "no bias": lambda t: t.pop("layer_1.bias"),
    "another name": lambda t: t.update({"layer_x.bias": torch.zeros(4)}),
    "no name": lambda t: t.update({"": torch.zeros(4)}),
    "a name with an escape": lambda t: t.update({"\x1b[31m": torch.zeros(4)}),
    "nothing": lambda t: t.clear(),
}


@pytest.mark.parametrize("change", EXITS)
def test_exits_with_other_arrays(change: str) -> None:
    with scratch_folder() as at:
        path = at / "exits" / "exits.safetensors"
        tensors = load_file(path)
        EXITS[change](tensors)
        save_file(tensors, path)
        about = path.with_name("exits.json")
        document = json.loads(about.read_text()) | {"sha256": sha256(path)}
        about.write_text(json.dumps(document))
        code, error = read(at, "exits/exits.safetensors", 0)
        assert (code, str(path) in error) == (BAD_INPUT, True), error


def test_a_header_of_safetensors_that_lies() -> None:
    for size in (0, 7, 2**31, 2**63):
        with scratch_folder() as at:
            path = at / "exits" / "exits.safetensors"
            path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
            document = json.loads((at / "exits" / "exits.json").read_text())
            document |= {"sha256": sha256(path)}
            (at / "exits" / "exits.json").write_text(json.dumps(document))
            _, error = read(at, "exits/exits.safetensors", 0)
            assert str(path) in error


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no length": lambda h: h["lm"].pop("data_offsets"),
    "another type": lambda h: h["lm"].update(dtype="F17"),
    "another shape": lambda h: h["lm"].update(shape=[7, 5]),
    "negative": lambda h: h["lm"].update(shape=[-1, 32]),
    "huge": lambda h: h["lm"].update(shape=[2**40, 2**40]),
    "beyond the end": lambda h: h["lm"].update(data_offsets=[0, 2**50]),
    "backwards": lambda h: h["lm"].update(data_offsets=[64, 0]),
    "another name": lambda h: h.update(other=h.pop("lm")),
    "no tensor": lambda h: h.clear(),
    "metadata": lambda h: h.update(__metadata__=[1]),
}


@pytest.mark.parametrize("change", HEADERS)
def test_weights_whose_header_lies(change: str) -> None:
    """The header of the embedding's weights, called lm here."""
    name = "model.embed_tokens.weight"
    with scratch_folder() as at:
        path = at / "llama" / "model.safetensors"
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        header["lm"] = header.pop(name)
        HEADERS[change](header)
        if "lm" in header:
            header[name] = header.pop("lm")
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
        code, error = read(at, "llama/model.safetensors", 0)
        assert code == BAD_INPUT, error
        assert str(path.parent) in error, error


WEIGHTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda t: t["model.layers.0.mlp.up_proj.weight"][0].fill_(math.nan),
    "infinite": lambda t: t["model.norm.weight"].fill_(math.inf),
    "whole numbers": lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int64)}),
    "no norm": lambda t: t.pop("model.norm.weight"),
    "one more": lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
    "another size": lambda t: t.update({"model.norm.weight": torch.ones(33)}),
}


@pytest.mark.parametrize("change", WEIGHTS)
def test_weights_with_other_arrays(change: str) -> None:
    """Numbers that are not finite are found when the model runs, not when it is loaded."""
    with scratch_folder() as at:
        path = at / "llama" / "model.safetensors"
        tensors = load_file(path)
        WEIGHTS[change](tensors)
        save_file(tensors, path, {"format": "pt"})
        words = "measure --model {at}/llama --prompts {at}/prompts.jsonl --limit 1 --out {at}/out"
        code, error = outcome([word.format(at=at) for word in words.split()])
        assert (code, str(path.parent) in error) == (BAD_INPUT, True), error


@cache
def validation_lines() -> list[str]:
    """Settings and the runs of two settings on two texts, of a committed validation."""
    path = DATA / "smollm2-135m-validation" / RUNS_FILE
    first, *rows = path.read_text("utf-8").splitlines()
    header = json.loads(first)["settings"]
    header |= {"cells": header["cells"][:2], "prompts": header["prompts"][:1]}
    kept = [
        row
        for row in map(json.loads, rows)
        if row["cell"] in header["cells"] and row["prompt_id"] in header["prompts"]
    ]
    return [json.dumps(row) for row in ({"settings": header}, *kept)]


def validation_predictions() -> dict[str, Any]:
    """A new document, which a test may change."""
    document = json.loads((DATA / "smollm2-135m-validation" / PREDICTIONS_FILE).read_text("utf-8"))
    settings = json.loads(validation_lines()[0])["settings"]
    return {**document, "settings": settings, "predictions": document["predictions"][:2]}


def read_validation(folder: Path) -> None:
    """Read a folder as `validate` does that goes on, up to the runs."""
    header = json.loads(validation_lines()[0])["settings"]
    log = _RunLog(folder, header)
    for row in log.rows:
        SettingRuns.of_rows(PpdSetting(1), [row])
    nothing = Corrections({}, 1.0, 1, 1.0, 1.0)
    predictions, _ = log.predictions(nothing, lambda: pytest.fail("it holds predictions"))
    assert len(predictions) == 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_validation_with_a_changed_line(data: st.DataObject) -> None:
    """Of its runs or its predictions: read, or refused with the file."""
    lines, predictions = list(validation_lines()), validation_predictions()
    name = data.draw(st.sampled_from([RUNS_FILE, PREDICTIONS_FILE]))
    if name == PREDICTIONS_FILE:
        predictions, _ = changed(predictions, data)
    else:
        number = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["changed", "changed", "bytes", "twice"]))
        if how == "changed":
            lines[number] = json.dumps(changed(json.loads(lines[number]), data)[0])
        elif how == "twice":
            lines.insert(number, lines[number])
        else:
            lines[number] = flipped(lines[number].encode(), data).decode(errors="replace")
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / RUNS_FILE).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        (at / PREDICTIONS_FILE).write_text(json.dumps(predictions), encoding="utf-8")
        error = ""
        try:
            read_validation(at)
        except InvalidInputError as caught:
            error = str(caught)
        assert not error or str(at) in error, error


# ---------------------------------------------------------------- paths and values

#: a whole command of each kind, of files as above; those that run a model have none
BASES = {
    "estimate": "--p-correct 0.7 --layers 40",
    "formulas": "latency_per_token",
    "explore": "{at}/cal.json --out {at}/page.html",
    "measure": "--prompts {at}/prompts.jsonl --model {at}/no.gguf --out {at}/out",
    "merge": "{at}/m --out {at}/merged",
    "train-exits": "--prompts {at}/prompts.jsonl --model {at}/no.gguf --out {at}/out",
    "differ": "{at}/m {at}/m",
    "fit": "--table {at}/counts.csv --layers 4 --resamples 400 --family 'rank tail' "
    "--out {at}/out.json",
    "optimize": "{at}/cal.json",
    "compare": "{at}/m",
    "replay": "{at}/m --exit-layer 2",
    "plot": "--kind theory --out {at}/plot.txt",
    "time": "--model {at}/no.gguf --out {at}/out.json",
    "decode": "--model {at}/no.gguf --exit-layer 2 --prompt x",
    "validate": "--model {at}/no.gguf --calibration {at}/cal.json --timing {at}/timing.json "
    "--out {at}/out",
}


@cache
def parameters() -> list[tuple[str, Any]]:
    """Every option that takes a value, and every argument, of every command."""
    return [
        (name, parameter)
        for name in BASES
        for parameter in parser(name).commands[name].params
        if not getattr(parameter, "is_flag", False) and parameter.name != "help"
    ]


def words_with(at: Path, command: str, parameter: Any, value: str) -> list[str]:
    """A command with one more value: of an option, or of an argument before the others."""
    words = [command, *(word.format(at=at) for word in shlex.split(BASES[command]))]
    is_option = parameter.param_type_name == "option"
    return [*words, parameter.opts[0], value] if is_option else [command, value, *words[1:]]


#: what the parser says of a value that it takes for another word
OTHER_WORDS = (
    "No such option: -",
    "Got unexpected extra argument",
    "got two kinds; give a measurement folder, or --table",
)


def names_option(code: int, error: str, parameter: Any, value: str) -> bool:
    """Whether a value was taken, or a message names its option, or the file that it is."""
    if code == DONE or any(words in error for words in AFTERWARDS):
        return True
    if "the words of a command must be UTF-8" in error:
        return repr(value) in error
    is_argument = parameter.param_type_name == "argument"
    if is_argument or "path" in type(parameter.type).__name__.lower():
        shown = {visible(" ".join(text.split()))[:100] for text in (value, str(Path(value)))}
        if any(text in error for text in shown):
            return True
        if is_argument:
            return any(words in error for words in OTHER_WORDS)
    names = {name.lstrip("-").replace("-", "_") for name in (parameter.name, *parameter.opts)}
    words = re.findall(r"[a-z_]+", error.replace("-", "_"))
    return not names.isdisjoint(word.strip("_") for word in words)


VALUES = st.one_of(
    st.sampled_from(
        ["nan", "inf", "-inf", "-0", "1e308", "1e-308", "1e999", "-1", "0", "1.5", "1000000",
         "999999999", "999999999999999999", "9" * 400, "9" * 5000, "0x10", "1_0", "٣", "", " ",
         ",", "1,", "1,2,1",
         ",".join(map(str, range(1, 2000))), "\udcff", "x\udcff.json", "\x1b[31mred", "a\nb", "$x$",
         "x" * 200_000, "x" * 300, "/", "/dev/full", "--", "true", "cpu", "cuda:99"]
    ),
    # the same text as without an alphabet, which is made by encoding every character there is
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


@settings(max_examples=320, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_command_with_any_value(data: st.DataObject) -> None:
    command, parameter = data.draw(st.sampled_from(parameters()))
    value = data.draw(VALUES)
    with scratch_folder() as at, contextlib.chdir(at):
        code, error = outcome(words_with(at, command, parameter, value))
        assert names_option(code, error, parameter, value), (command, parameter.opts, error)


def hostile(at: Path) -> dict[str, str]:
    """Paths at which no file can be, or none that ends."""
    os.mkfifo(at / "pipe")
    (at / "loop").symlink_to(at / "loop")
    (at / "text").write_text("no result")
    (at / "zeros").write_bytes(b"")
    os.truncate(at / "zeros", 2**40)
    names = ("pipe", "loop", "text", "zeros", "text/below", "loop/below", "n" * 300, "d/" * 2500)
    devices = ("/dev/zero", "/dev/full", "/dev/null", "/dev/random", "/proc/self/mem")
    return {name[:10]: str(at / name) for name in names} | {name: name for name in devices}


def test_a_path_to_what_no_command_may_read_or_write() -> None:
    places = [(c, p) for c, p in parameters() if "path" in type(p.type).__name__.lower()]
    assert len(places) > 25
    with scratch_folder() as at:
        for kind, path in hostile(at).items():
            for command, parameter in places:
                if parameter.name in ("out", "trace") and kind in (
                    "text",
                    "zeros",
                    "/proc/self/mem",
                ):
                    continue  # a file there may be replaced
                code, _ = outcome(words_with(at, command, parameter, path))
                assert code == BAD_INPUT, (kind, command, parameter.name)
