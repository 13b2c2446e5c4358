"""Whatever stops a run, nothing finished is lost, nothing counts twice, and the words are clear."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from socket import gethostname
from typing import Any

import pyarrow.parquet as pq
import pytest

from ppdmodel.measure.batch import measure_batch
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import read_prompts
from ppdmodel.measure.store import UNFINISHED, Store
from ppdmodel.progress import Progress
from ppdmodel.results.files import GUESSES_FILE, MEASUREMENT, TOKENS_FILE
from ppdmodel.results.locks import LOCK_FILE
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_tiny_llama
from tests.support.runs import (
    alone,
    assert_same,
    be_nobody,
    command,
    deaths,
    die_at,
    ended,
    fill_disk_at,
    limit_files,
    measure_flat,
    measuring,
    run_until_killed,
    snapshot,
    start,
    training,
    write_prompts,
)

COUNT = 7


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", COUNT)


@pytest.fixture(scope="module")
def whole(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The measurement that every other one must end as."""
    out = tmp_path_factory.mktemp("whole") / "m"
    assert command(*measuring(tiny_model, prompts, out)).code == 0
    return out


@pytest.fixture(scope="module")
def three_batches(
    tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as a run leaves it that is killed after three of its four batches."""
    out = tmp_path_factory.mktemp("killed") / "killed"
    batches = itertools.count(1)

    def add_three(store: Store, *parts: Any) -> None:
        kept(store, *parts)
        if next(batches) == 3:
            raise KeyboardInterrupt

    kept = Store.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "add", add_three)
        patch.setattr(Store, "join_batches", lambda store: None)
        assert command(*measuring(tiny_model, prompts, out)).code == 130
    assert len(list((out / UNFINISHED).glob(f"*.{TOKENS_FILE}"))) == 3
    return out


@pytest.fixture
def killed(three_batches: Path, tmp_path: Path) -> Path:
    """The same folder, to be changed."""
    return shutil.copytree(three_batches, tmp_path / "killed")


@pytest.fixture
def interrupted(killed: Path) -> Path:
    """A folder as a run leaves it that is interrupted after three batches and could join them."""
    from ppdmodel.measure.store import join_batches

    join_batches(sorted((killed / UNFINISHED).glob(f"*.{TOKENS_FILE}")), killed)
    shutil.rmtree(killed / UNFINISHED)
    return killed


def finished(out: Path) -> set[str]:
    """Prompts whose tokens are whole on disk."""
    tables = [*out.glob(TOKENS_FILE), *(out / UNFINISHED).glob(f"[0-9]*.{TOKENS_FILE}")]
    return {str(name) for table in tables for name in pq.read_table(table)["prompt_id"].to_pylist()}


def resume(model: Path, prompts: Path, out: Path) -> tuple[Measurement, list[Progress]]:
    """Take a run up again, and see what it did."""
    seen: list[Progress] = []
    result = measure_flat(
        locate(str(model)),
        read_prompts(prompts),
        out,
        max_new_tokens=4,
        batch_size=2,
        n_threads=1,
        device="cpu",
        on_progress=seen.append,
    )
    return result, seen


# ---------------------------------------------------------------- killed


def test_killed_at_any_change_of_a_file_it_ends_as_if_it_had_not_been(
    tiny_model: Path, prompts: Path, whole: Path, tmp_path: Path
) -> None:
    """Every rename, removal and new folder, while measuring, joining and clearing away."""
    out, moments = tmp_path / "m", 0
    for moment in deaths(measuring(tiny_model, prompts, out), out, tmp_path / "copies"):
        done = finished(out)
        batches_left = len({int(f"{n}"[0]) // 2 for n in range(COUNT) if f"p{n}" not in done})
        result, seen = resume(tiny_model, prompts, out)
        assert result.complete, moment
        assert sum(p.stage == "ranked" for p in seen) == batches_left, "what is done is kept"
        assert_same(out, whole)
        moments += 1
    assert_same(out, whole)
    assert moments > 10, "batches, guesses, tables, the summary and what is cleared away"


def test_a_copy_before_a_change_is_what_a_kill_there_leaves(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    """What the other tests rest on; here a process is really killed, once."""
    out, moment = tmp_path / "m", 9
    words = measuring(tiny_model, prompts, out)
    copied = [sizes(out) for nth in deaths(words, out, tmp_path / "copies", 8) if nth == moment]
    shutil.rmtree(out)
    assert alone(words, functools.partial(die_at, out, moment)) is None
    assert [sizes(out)] == copied


def sizes(folder: Path) -> dict[str, int]:
    """Bytes by file, whichever process wrote it."""
    return {re.sub(r"-\d+", "", name): len(data) for name, data in snapshot(folder).items()}


def test_killed_again_and_again_it_gets_there(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    """SIGKILL from outside, at whatever a process is doing after its next batch is on disk."""
    options = ["--batch-size", "1", "--max-new-tokens", "16"]
    expected, out = tmp_path / "whole", tmp_path / "m"
    assert command(*measuring(tiny_model, prompts, expected, *options)).code == 0
    words = measuring(tiny_model, prompts, out, *options)
    counts = [0]
    while counts[-1] < COUNT - 1:
        process = start(run_until_killed, words)
        deadline = time.monotonic() + 60
        while len(list((out / UNFINISHED).glob(f"*.{TOKENS_FILE}"))) <= counts[-1]:
            assert process.exitcode is None or finished(out), "it ended without a batch"
            if process.exitcode is not None:
                break
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        ended(process)
        found = len(finished(out))
        assert found > counts[-1], "each process added to what was there"
        counts.append(found)
    assert len(counts) > 3, "it was killed a few times"
    assert command(*measuring(tiny_model, prompts, out, *options)).code == 0
    assert_same(out, expected)


def test_a_merged_folder_survives_being_killed_while_completed(
    tiny_model: Path, prompts: Path, whole: Path, tmp_path: Path
) -> None:
    """Joining replaces tables that hold what was finished before: they must never be the price."""
    shard, out = tmp_path / "shard", tmp_path / "m"
    assert command(*measuring(tiny_model, prompts, shard, "--shard", "1/2")).code == 0
    assert command("merge", shard, "--out", out).code == 0
    had = finished(out)
    for moment in deaths(measuring(tiny_model, prompts, out), out, tmp_path / "copies"):
        assert finished(out) >= had, moment
        assert resume(tiny_model, prompts, out)[0].complete
        assert_same(out, whole)
    assert_same(out, whole)


# ---------------------------------------------------------------- two at once


@pytest.mark.parametrize("killed_first", [False, True], ids=["goes on", "is killed"])
@pytest.mark.parametrize("kind", ["measure", "train-exits"])
def test_a_second_run_on_a_folder_is_refused_and_disturbs_nothing(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    prompts: Path,
    tmp_path: Path,
    kind: str,
    killed_first: bool,
) -> None:
    """The first is held up when it owns the folder; then it goes on, or a third takes over."""
    out = tmp_path / "m"
    if kind == "measure":
        words = measuring(tiny_model, prompts, out)
    else:
        questions = request.getfixturevalue("questions")
        words = training(tiny_model, questions, out, "--batch-size", "5")
    first = start(run_until_killed, words)
    deadline = time.monotonic() + 60
    while not (out / LOCK_FILE).is_file() or not (out / LOCK_FILE).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)
    before = snapshot(out)
    for _ in range(2):
        outcome = command(*words)
        assert outcome.code == 2
        words_said = f"got {out}, which process {first.pid} on {gethostname()} is using"
        assert words_said in outcome.err.splitlines()[-1]
    assert snapshot(out) == before
    if killed_first:
        first.kill()
        ended(first)
        assert command(*words).code == 0, "at once"
    else:
        os.kill(first.pid, signal.SIGCONT)
        assert ended(first) == 0
    if kind == "measure":
        assert_same(out, request.getfixturevalue("whole"))
    else:
        assert about_exits(out) == about_exits(request.getfixturevalue("exits"))
    assert LOCK_FILE not in snapshot(out)


# ---------------------------------------------------------------- refused by the file system


def test_a_rename_that_fails_at_any_moment(
    tiny_model: Path,
    prompts: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unlike a death this is reported: in one line, and with no part of a file left behind."""
    rename, renames = os.replace, 2 * 4 + 3
    each_kind = (1, 2, 5, 8, 9, 10, 11, 12)  # of the first batch, the third, the last; and joined
    for nth in range(1, renames + 2) if os.environ.get("EVERY_MOMENT") else each_kind:
        out, calls = tmp_path / str(nth), itertools.count(1)

        def refuse(*names: Any, calls: Any = calls, nth: int = nth) -> None:
            if next(calls) == nth:
                raise OSError(28, "No space left on device")
            rename(*names)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            outcome = command(*measuring(tiny_model, prompts, out))
        if nth > renames:
            assert outcome.code == 0, "all renames were tried"
            break
        assert outcome.code == 1
        assert "must be writable; got No space left on device" in outcome.error
        assert not [name for name in snapshot(out) if ".part-" in name]
        done = finished(out)
        assert len(done) >= min(COUNT, 2 * ((nth - 1) // 2)), "what was finished is kept"
        assert command(*measuring(tiny_model, prompts, out)).code == 0
        assert_same(out, whole)


@pytest.mark.parametrize(
    ("name", "prompts_done"),
    [
        ("000000.guesses.parquet", 0),
        ("000002.guesses.parquet", 2),
        ("000002.tokens.parquet", 2),
        ("guesses.parquet", COUNT),
        ("tokens.parquet", COUNT),
        ("summary.json", COUNT),
    ],
)
def test_a_full_disk_while_measuring(
    tiny_model: Path, prompts: Path, whole: Path, tmp_path: Path, name: str, prompts_done: int
) -> None:
    out = tmp_path / "m"
    outcome = alone(measuring(tiny_model, prompts, out), functools.partial(fill_disk_at, name))
    assert outcome is not None
    assert outcome.code == 1
    assert "parquet must be writable; got" in outcome.error or "summary.json must be" in outcome.err
    assert "File too large" in outcome.err
    for path in out.rglob("*"):
        assert ".part-" not in path.name
        if path.suffix == ".parquet":
            assert pq.read_table(path).num_rows > 0, "no table is half written"
    assert len(finished(out)) == prompts_done
    assert command(*measuring(tiny_model, prompts, out)).code == 0
    assert_same(out, whole)


def about_exits(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "exits.json").read_text("utf-8"))
    document.pop("provenance")
    return document


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What exits are trained on."""
    return write_prompts(tmp_path_factory.mktemp("questions") / "questions.jsonl", 9)


@pytest.fixture(scope="module")
def exits(tiny_model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exits") / "e"
    outcome = command(*training(tiny_model, questions, out, "--batch-size", "5"))
    assert outcome.code == 0, outcome
    return out


@pytest.mark.parametrize(
    "name", ["000005.safetensors", "layer_02.safetensors", "exits.safetensors", "exits.json"]
)
def test_a_full_disk_while_training_exits(
    tiny_model: Path, questions: Path, exits: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "e"
    words = training(tiny_model, questions, out, "--batch-size", "5")
    outcome = alone(words, functools.partial(fill_disk_at, name))
    assert outcome is not None
    assert outcome.code == 1
    assert f"{name} must be writable; got" in outcome.error
    assert not [path for path in snapshot(out) if ".part-" in path]
    assert (out / UNFINISHED / "000000.safetensors").is_file(), "what was done is kept"
    outcome = command(*words)
    assert outcome.code == 0, outcome
    assert about_exits(out) == about_exits(exits)


def test_killed_at_any_change_of_a_file_training_goes_on(
    tiny_model: Path, questions: Path, exits: Path, tmp_path: Path
) -> None:
    out, moments = tmp_path / "e", 0
    words = training(tiny_model, questions, out, "--batch-size", "5")
    for moment in deaths(words, out, tmp_path / "copies"):
        outcome = command(*words)
        assert outcome.code == 0, (moment, outcome, sorted(snapshot(out)))
        assert about_exits(out) == about_exits(exits), moment
        moments += 1
    assert about_exits(out) == about_exits(exits)
    assert moments > 2


@pytest.mark.skipif(sys.platform != "linux", reason="gives up privileges as Linux has them")
def test_a_folder_that_may_not_be_written(
    tiny_model: Path, prompts: Path, whole: Path, tmp_path: Path
) -> None:
    """An empty one is refused in one line; a finished one is simply read."""
    empty, full = tmp_path / "empty", shutil.copytree(whole, tmp_path / "full")
    empty.mkdir()
    for folder in (empty, full):
        folder.chmod(0o555)
    try:
        outcome = alone(measuring(tiny_model, prompts, empty), be_nobody)
        assert outcome is not None
        assert outcome.code == 1
        assert "must be writable; got" in outcome.error
        assert not any(empty.iterdir())
        outcome = alone(measuring(tiny_model, prompts, full), be_nobody)
        assert outcome is not None
        assert (outcome.code, outcome.notes) == (0, [])
        assert_same(full, whole)
    finally:
        for folder in (empty, full):
            folder.chmod(0o755)


def test_any_number_of_batches_is_joined_with_few_open_files(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Sixty batches, and a system that lets a process open no more than eighty files."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n\n".join(f"text {n}" for n in range(60)), encoding="utf-8")
    words = measuring(tiny_model, prompts, tmp_path / "m", "--batch-size", 1)
    outcome = alone([*words, "--max-new-tokens", "1"], functools.partial(limit_files, 80))
    assert outcome is not None
    assert (outcome.code, outcome.notes) == (0, [])


# ---------------------------------------------------------------- folders of something else


@pytest.mark.parametrize("state", ["killed", "interrupted", "whole"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "1"], "decoding 'greedy' instead of 'sampled'"),
        (["--no-guesses"], "guesses True instead of False"),
        (["--shard", "1/2"], "shard None instead of '1/2 of batches of 2'"),
        (["--limit", "6"], "n_prompts 7 instead of 6"),
        (["--max-new-tokens", "5"], "max_new_tokens 4 instead of 5"),
    ],
)
def test_other_settings_are_refused_and_leave_the_folder_alone(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    prompts: Path,
    state: str,
    options: list[str],
    words: str,
) -> None:
    out: Path = request.getfixturevalue(state)
    before = snapshot(out)
    outcome = command(*measuring(tiny_model, prompts, out, *options))
    assert outcome.code == 2
    assert "the out folder must hold this same measurement; got" in outcome.error
    assert words in outcome.error or "prompts_sha256" in outcome.error
    assert snapshot(out) == before


def test_a_model_of_the_same_name_is_another_model(
    prompts: Path, killed: Path, tmp_path: Path
) -> None:
    namesake, before = make_tiny_llama(tmp_path / "tiny-llama", seed=1), snapshot(killed)
    outcome = command(*measuring(namesake, prompts, killed))
    assert outcome.code == 2
    assert "with weights_sha256" in outcome.error
    assert snapshot(killed) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)


def other_table(path: Path) -> None:
    tokens = path.name.endswith(TOKENS_FILE)
    names = (TOKENS_FILE, GUESSES_FILE) if tokens else (GUESSES_FILE, TOKENS_FILE)
    shutil.copy(path.with_name(path.name.replace(*names)), path)


def other_metadata(text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        pq.write_table(pq.read_table(path).replace_schema_metadata({MEASUREMENT: text}), path)

    return change


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut short": cut,
    "empty": empty,
    "foreign": foreign,
    "the other table": other_table,
    "metadata cut": other_metadata('{"schema": "ppdm'),
    "metadata of another kind": other_metadata("[1, 2]"),
    "metadata without a key": other_metadata('{"schema_version": 1, "layers": 5}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", [TOKENS_FILE, GUESSES_FILE])
@pytest.mark.parametrize("state", ["killed", "interrupted"])
def test_a_damaged_table_is_named_and_nothing_is_thrown_away(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    prompts: Path,
    state: str,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    """Or it is made again: then the folder must be as if nothing had happened."""
    out: Path = request.getfixturevalue(state)
    path = out / UNFINISHED / f"000002.{name}" if state == "killed" else out / name
    damage(path)
    before = snapshot(out)
    outcome = command(*measuring(tiny_model, prompts, out))
    if outcome.code == 0:
        assert_same(out, request.getfixturevalue("whole"))
        return
    assert outcome.code == 2
    assert str(path) in outcome.error
    after = snapshot(out)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("state", ["killed", "interrupted", "finished"])
def test_tokens_whose_guesses_are_gone_are_never_half_a_result(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    prompts: Path,
    whole: Path,
    tmp_path: Path,
    state: str,
) -> None:
    """One batch's guesses lost must not cost those of all others, without a word."""
    if state == "finished":
        out = shutil.copytree(whole, tmp_path / "finished")
    else:
        out = request.getfixturevalue(state)
    lost = out / UNFINISHED / f"000002.{GUESSES_FILE}" if state == "killed" else out / GUESSES_FILE
    lost.unlink()
    before = snapshot(out)
    outcome = command(*measuring(tiny_model, prompts, out))
    if outcome.code == 0:
        assert_same(out, whole)
        return
    assert GUESSES_FILE in outcome.error
    after = snapshot(out)
    assert {name: after.get(name) for name in before} == before


def test_guesses_without_tokens_do_not_count(
    tiny_model: Path, prompts: Path, whole: Path, killed: Path
) -> None:
    """They are written first: a death before the tokens leaves them, whole or not."""
    (killed / UNFINISHED / f"000002.{TOKENS_FILE}").unlink()
    (killed / UNFINISHED / f"000005.{GUESSES_FILE}").write_bytes(b"PAR1 cut short")
    shutil.copy(whole / GUESSES_FILE, killed / GUESSES_FILE)
    result, seen = resume(tiny_model, prompts, killed)
    assert result.complete
    assert sum(progress.stage == "ranked" for progress in seen) == 2
    assert_same(killed, whole)


def test_only_guesses_are_as_good_as_nothing(
    tiny_model: Path, prompts: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    (out / UNFINISHED).mkdir(parents=True)
    (out / UNFINISHED / f"000000.{GUESSES_FILE}").write_bytes(b"PAR1 cut short")
    assert command(*measuring(tiny_model, prompts, out)).code == 0
    assert_same(out, whole)


def test_a_batch_that_is_there_twice_counts_once(
    tiny_model: Path, prompts: Path, whole: Path, interrupted: Path
) -> None:
    """The joined tables again, named as a batch, as a death while clearing leaves them."""
    (interrupted / UNFINISHED).mkdir()
    for name in (TOKENS_FILE, GUESSES_FILE):
        shutil.copy(interrupted / name, interrupted / UNFINISHED / f"000000.{name}")
    result, _ = resume(tiny_model, prompts, interrupted)
    assert result.complete
    assert_same(interrupted, whole)


def test_another_batch_size_goes_on_with_what_is_left(
    tiny_model: Path, prompts: Path, whole: Path, killed: Path
) -> None:
    """Left are p6 alone and, of the first three batches of two, nothing."""
    outcome = command(*measuring(tiny_model, prompts, killed, "--batch-size", "5"))
    assert outcome.code == 0
    assert_same(killed, whole)


def test_interrupted_twice_with_the_same_signal_it_says_so(
    tiny_model: Path, prompts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while it decodes: exit code 130, a note, and a folder that can be read."""
    out, batches = tmp_path / "m", itertools.count(1)
    decode = measure_batch

    def interrupt(*args: Any, **options: Any) -> Any:
        if next(batches) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return decode(*args, **options)

    monkeypatch.setattr("ppdmodel.measure.run.measure_batch", interrupt)
    outcome = command(*measuring(tiny_model, prompts, out))
    assert outcome.code == 130
    assert f"finished prompts are kept in {out}; the same command goes on from there" in outcome.err
    assert outcome.notes == ["error: the run was interrupted; got Ctrl-C"]
    assert finished(out) == {"p0", "p1"}
    assert command(*measuring(tiny_model, prompts, out)).code == 0
    assert_same(out, whole)
