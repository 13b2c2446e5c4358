"""Processes that a launcher starts share one measurement, and give what one process gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ppdmodel.measure.distributed import Group
from ppdmodel.measure.store import UNFINISHED
from ppdmodel.results.files import TOKENS_FILE
from ppdmodel.results.locks import owned
from tests.support.runs import (
    KILLED,
    assert_same,
    command,
    ended,
    measuring,
    start,
    write_prompts,
)

LONG = ("--max-new-tokens", "24", "--batch-size", "1")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launched(words: list[str]) -> list[str]:
    """Two CPU processes, by Accelerate.

    Its --cpu starts only one, unless through MPI; --multi_gpu starts as many as it is told, and
    `--device cpu` keeps them off any GPU.
    """
    return [
        sys.executable, "-m", "accelerate.commands.launch",
        "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", str(free_port()), "-m", "ppdmodel", *words,
    ]  # fmt: skip


def as_rank(rank: int, port: int, words: list[str], told: Path | None) -> None:
    """One of two processes, with the variables that the launcher gives; told what it printed."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    outcome = command(*words)
    if told is not None:
        with told.open("a") as file:
            file.write(outcome.out)
    sys.exit(outcome.code)


def started(words: list[str], told: Path | None = None) -> list[Any]:
    """Both processes, forked with everything imported: a launcher imports it three times."""
    port = free_port()
    return [start(as_rank, rank, port, words, told) for rank in range(2)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.mark.parametrize("told", [{}, {"WORLD_SIZE": "1"}], ids=["no launcher", "launched alone"])
def test_a_process_by_itself_is_a_group_of_one(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str]
) -> None:
    """Accelerate, which would choose a device, is not asked."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with Group(on_cpu=True) as group:
        group.wait()
        assert (group.rank, group.size, group.device) == (0, 1, None)


def test_two_processes_give_what_one_gives_and_say_it_once(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    alone, out = tmp_path / "alone", tmp_path / "m"
    assert command(*measuring(tiny_model, prompts, alone)).code == 0
    words = launched(measuring(tiny_model, prompts, out, "--json"))
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # one document: two would not be JSON
    assert (told["n_prompts"], told["complete"], told["out"]) == (7, True, str(out))
    assert done.stderr.count("loading the model") == 2, "both processes had work"
    assert_same(out, alone)


def test_killed_in_the_middle_both_are_taken_up_again(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    """SIGKILL to both processes, when each of the two has a batch on disk."""
    alone, out = tmp_path / "alone", tmp_path / "m"
    assert command(*measuring(tiny_model, prompts, alone, *LONG)).code == 0
    words = measuring(tiny_model, prompts, out, *LONG)
    processes = started(words)
    deadline = time.monotonic() + 120
    while len(parities(out)) < 2:
        assert all(p.exitcode is None for p in processes), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for process in processes:
        process.kill()
    assert [ended(process) for process in processes] == [KILLED, KILLED]
    done = finished(out)
    assert 2 <= len(done) < 7, "it was killed in the middle"
    before = {path: path.stat().st_mtime_ns for path in (out / UNFINISHED).glob("[0-9]*")}

    told = tmp_path / "told"
    assert [ended(process) for process in started(words, told)] == [0, 0]
    assert told.read_text().count("p_correct by exit layer") == 1
    assert told.read_text().count("with intervals:") == 1
    assert before, "finished batches were there to be kept"
    assert_same(out, alone)
    assert not (out / UNFINISHED).exists()


def test_a_second_group_on_a_folder_is_refused_in_all_its_processes(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    """The first process alone asks for the folder; the others neither wait for it nor work."""
    with owned(tmp_path / "m"):
        words = measuring(tiny_model, prompts, tmp_path / "m")
        assert [ended(process) for process in started(words)] == [2, 2]
    assert not (tmp_path / "m").exists()


def parities(out: Path) -> set[int]:
    """Of which of two processes there are batches: they take turns."""
    paths = (out / UNFINISHED).glob(f"[0-9]*.{TOKENS_FILE}")
    return {int(path.name.split(".")[0]) % 2 for path in paths}


def finished(out: Path) -> set[str]:
    tables = (out / UNFINISHED).glob(f"[0-9]*.{TOKENS_FILE}")
    return {str(name) for table in tables for name in pq.read_table(table)["prompt_id"].to_pylist()}
