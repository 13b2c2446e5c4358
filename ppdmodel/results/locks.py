"""One owner at a time of a folder or a file, by locks that the kernel takes back at any death.

`flock` holds between the processes of a machine, and between machines where their shared file
system passes locks on: NFS does on Linux (flock(2)). A lock file that is found says nothing by
itself; only the lock on it does.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..errors import InvalidInputError, RunFailedError

#: in a folder that a process owns; it names the process
LOCK_FILE = ".lock"

#: errors of a system or a file system without locks, and of a folder that may not be written
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)

P = ParamSpec("P")
T = TypeVar("T")


def lock(path: Path, *, wait: bool = False) -> FileIO | None:
    """Lock a file, which is made if there is none.

    Args:
        path: the file.
        wait: whether to wait for a process that holds it.

    Returns:
        The open file, locked until it is closed or this process ends; None where another open
        file holds the lock.

    Raises:
        OSError: the file can neither be written nor read, or its file system has no locks.
    """
    while True:
        file = _opened(path)
        try:
            if not _flock(file, wait):
                file.close()
                return None
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder had removed it meanwhile


def _opened(path: Path) -> FileIO:
    try:
        return path.open("a+b", buffering=0)
    except PermissionError:  # another user's, or none
        if not path.exists():
            raise
        return path.open("rb", buffering=0)


def _flock(file: FileIO, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOSYS, "no file locks on this system") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # held by another
        return False
    return True


def _is_at(file: FileIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


@contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Wait until no other process is in here with the same lock file, which is removed at the end.

    Yields whether that is certain: not where the file system has no locks.
    """
    file = None
    with suppress(OSError):
        file = lock(path, wait=True)
    try:
        yield file is not None
    finally:
        if file is not None:
            _drop(file, path)


def _drop(file: FileIO, path: Path) -> None:
    with file, suppress(OSError):
        if _is_at(file, path):
            path.unlink()


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a folder, which is made if there is none, and removed again if it stays empty.

    A folder that may not be written is not locked: this process can change nothing there. Where
    the file system has no locks, a warning says so.

    Raises:
        InvalidInputError: another process owns the folder, or it is a file.
        RunFailedError: the file system refused.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"the out folder must be a folder; got the file {folder}")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    file = _own(folder)
    try:
        yield
    finally:
        if file is not None:
            _drop(file, folder / LOCK_FILE)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _own(folder: Path) -> FileIO | None:
    """The lock file of a folder, locked and with this process's name; None without a lock."""
    path = folder / LOCK_FILE
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # its last owner has just removed the empty folder
                file = lock(path)
                if file is None:
                    raise InvalidInputError(
                        f"the out folder must belong to one run; got {folder}, which "
                        f"{_owner(path)} is using; wait for its end or choose another --out"
                    )
                if file.writable() and not os.fstat(file.fileno()).st_size:
                    break
                with file:  # of a killed process: a file made anew never has an old name in it
                    path.unlink()
    except OSError as error:
        if error.errno in _NO_LOCKS:
            warnings.warn(
                f"{folder} is not locked, since its file system has no locks ({error.strerror}): "
                "start no second run on it",
                RuntimeWarning,
                stacklevel=2,
            )
        elif error.errno not in _NOT_OURS or not folder.is_dir():
            raise RunFailedError(
                f"{folder} must be writable; got {error.strerror}; choose another place"
            ) from error
        return None
    with suppress(OSError):  # a full disk
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        os.fsync(file.fileno())  # so that other machines see it
    return file


def _owner(path: Path) -> str:
    with suppress(OSError):
        return path.read_text("utf-8", "replace")[:200] or "another process"
    return "another process"


def owns_out(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: the function owns the folder that is its argument `out` while it runs."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def owning(*args: P.args, **kwargs: P.kwargs) -> T:
        with owned(Path(signature.bind(*args, **kwargs).arguments["out"])):
            return function(*args, **kwargs)

    return owning
