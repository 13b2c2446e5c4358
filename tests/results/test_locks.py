"""One owner at a time: who is refused, what a killed owner leaves, and what needs no lock."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.results.locks import LOCK_FILE, lock, only_one, owned, owns_out

OWNER = """
import ctypes, os, socket, sys, time
from pathlib import Path
from ppdmodel.results.locks import owned
if sys.argv[2:]:
    assert ctypes.CDLL(None).unshare(0x04000000) == 0  # CLONE_NEWUTS: a host name of its own
    socket.sethostname(sys.argv[2])
with owned(Path(sys.argv[1])):
    print("owns", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(folder: Path, *host: str) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a folder, on a host of another name if one is given."""
    words = [sys.executable, "-c", OWNER, str(folder), *host]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "owns\n"
        try:
            yield process
        finally:
            process.kill()


def own(folder: Path) -> None:
    with owned(folder):
        pass


def test_the_second_is_refused_by_name_and_a_killed_owner_blocks_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with another_process(folder) as first:
        words = f"got {folder}, which process {first.pid} on {socket.gethostname()} is using; "
        for _ in range(2):
            with pytest.raises(InvalidInputError, match=re.escape(words)):
                own(folder)
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE], "it is undisturbed"
        os.kill(first.pid, signal.SIGSTOP)  # it is as much the owner when it does nothing
        with pytest.raises(InvalidInputError, match=re.escape(words)):
            own(folder)
        first.kill()
        first.wait()
        assert (folder / LOCK_FILE).exists()
        with owned(folder):
            assert str(first.pid) not in (folder / LOCK_FILE).read_text()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="names a host as root")
def test_a_process_on_another_host_is_refused_and_named(tmp_path: Path) -> None:
    with (
        another_process(tmp_path, "node-17") as first,
        pytest.raises(InvalidInputError, match=f"which process {first.pid} on node-17 is using"),
    ):
        own(tmp_path)
    own(tmp_path)


def test_a_folder_that_was_made_and_stays_empty_is_removed(tmp_path: Path) -> None:
    with owned(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).is_file()
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InvalidInputError, match="the out folder must be a folder; got the file"):
        own(file)
    with pytest.raises(RunFailedError, match="must be writable; got Not a directory; choose"):
        own(file / "m")


def test_a_lock_file_that_is_replaced_under_its_owner_is_left_to_the_next(tmp_path: Path) -> None:
    """As by a user who removes the folder while a run is at work, and starts another."""
    with owned(tmp_path):
        (tmp_path / LOCK_FILE).unlink()
        with owned(tmp_path):
            pass
        (tmp_path / LOCK_FILE).write_text("of the next")
    assert (tmp_path / LOCK_FILE).read_text() == "of the next"


def test_a_lock_that_is_removed_while_it_is_awaited_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it the owner ends, and removes it."""
    path, flock = tmp_path / "l", fcntl.flock

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    file = lock(path)
    assert file is not None
    with file:
        assert os.path.samestat(os.fstat(file.fileno()), path.stat())


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refused)
    words = re.escape(f"({os.strerror(error)}): start no second run on it")
    with pytest.warns(RuntimeWarning, match=f"{tmp_path} is not locked, since .* {words}"):
        own(tmp_path)
    with only_one(tmp_path / "l") as alone:
        assert not alone


def test_a_waiting_process_goes_on_when_the_other_dies(tmp_path: Path) -> None:
    with another_process(tmp_path) as first:
        os.kill(first.pid, signal.SIGSTOP)
        waiting = subprocess.Popen(
            [sys.executable, "-c", WAITING, str(tmp_path / LOCK_FILE)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with waiting:
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == "waits\n"
            first.kill()
            assert waiting.communicate(timeout=60)[0] == "True\n"
    assert not (tmp_path / LOCK_FILE).exists()


WAITING = """
import sys
from pathlib import Path
from ppdmodel.results.locks import only_one
print("waits", flush=True)
with only_one(Path(sys.argv[1])) as alone:
    print(alone)
"""


def test_a_decorated_function_owns_its_out_folder(tmp_path: Path) -> None:
    @owns_out
    def work(what: str, out: Path) -> str:
        assert (out / LOCK_FILE).is_file()
        with pytest.raises(InvalidInputError, match=f"process {os.getpid()} on"):
            work(what, out=out)
        return what

    assert work("done", tmp_path) == "done"
    assert not (tmp_path / LOCK_FILE).exists()
