"""Processes that start whole and end with the program that started them.

This module imports only the standard library, so that a new process watches its parent before it
imports torch, which takes seconds.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

#: what asks a program to end: Ctrl-C, what `kill` sends, and the end of its terminal
ENDING = tuple(signal.Signals[n] for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))
#: of Linux's prctl
PR_SET_PDEATHSIG = 1
_CAN_MASK = hasattr(signal, "pthread_sigmask")


def start_process(method: str, target: Callable[..., None], *args: Any) -> Any:
    """Start a process that calls `target`, and ends with this one.

    It does not import the program's main module, so that a program needs no guard against starting
    itself. From its first moment it is deaf to Ctrl-C, which reaches all processes of a terminal:
    its parent ends it. Call it within `signals_held`.

    Args:
        method: how processes are started, a name that `multiprocessing` knows.
        target: what it calls, a function of a module.
        args: of the call.

    Returns:
        The started `multiprocessing.Process`.
    """
    context: Any = multiprocessing.get_context(method)
    lasts = threading.current_thread() is threading.main_thread()
    process = context.Process(target=_main, args=(_Call(target, args), lasts), daemon=True)
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
    return process


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals wait until the end, so that no process is half started or left behind."""
    came: list[int] = []

    def resend() -> None:
        for number in came:
            signal.raise_signal(number)

    with ExitStack() as stack:
        stack.callback(resend)
        if threading.current_thread() is threading.main_thread():  # it runs the handlers
            for number in ENDING:
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):  # what is ignored, processes ignore too
                    stack.callback(signal.signal, number, before)
                    signal.signal(number, lambda held, _frame: came.append(held))
        if _CAN_MASK:  # processes inherit it; the handlers they do not
            resource_tracker.ensure_running()  # starting it would unblock them
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        yield


class _Call:
    """A call that a new process unpickles, and so imports what it needs, only when it makes it."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.target, self.args = target, args

    def __getstate__(self) -> dict[str, bytes]:
        return {"pickled": bytes(ForkingPickler.dumps((self.target, self.args)))}

    def __call__(self) -> None:
        target, args = ForkingPickler.loads(vars(self)["pickled"])
        target(*args)


def _main(call: _Call, from_main_thread: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux" and from_main_thread:
        # the kernel ends this process with the thread that started it, even amid an import, where
        # no other thread can run
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _end_with_parent(timeout=0)  # which may have ended before
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if _CAN_MASK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    call()


def _end_with_parent(timeout: float | None = None) -> None:
    """Wait so many seconds for the end of the parent, or until it comes; then end at once."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if wait([parent.sentinel], timeout):
        os._exit(1)
