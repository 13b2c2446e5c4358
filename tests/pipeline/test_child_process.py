"""Processes that start whole, and of which nothing is left; signals reach them at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, count, cycle
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ppdmodel.pipeline import child_process
from ppdmodel.pipeline.child_process import ENDING, signals_held
from ppdmodel.pipeline.shared_engine import SharedEngine
from ppdmodel.pipeline.worker_pool import WorkerPool
from tests.pipeline.conftest import CAPACITY, CPUS
from tests.support import runs

#: moments at which units get a signal: calls of functions between two of them while they are
#: started, and seconds after that, while they import their libraries
EVERY_CALLS, AFTER_S = 1100, [0.1, 0.5]
if os.environ.get("EVERY_MOMENT"):
    EVERY_CALLS, AFTER_S = 1, [n / 100 for n in range(300)]
#: seconds in which all processes of a program must be gone
GONE_S = 2.0


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def left_of(session: int) -> list[str]:
    """Processes of a session that still run after the time that they have to end."""
    deadline = time.monotonic() + GONE_S
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, fields = path.read_text().rsplit(")", 1)
            except OSError:
                continue
            state, _, _, its_session = fields.split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(name)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


# ---------------------------------------------------------------- signals that wait


def hold(*body: Callable[[], object], times: int = 1) -> None:
    """Do something while signals are held, or held several times over."""
    if not times:
        for step in body:
            step()
        return
    with signals_held():
        hold(*body, times=times - 1)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_waits_until_the_end(number: signal.Signals, times: int) -> None:
    before = signal.signal(number, interrupt)
    seen: list[str] = []
    sends = (partial(signal.raise_signal, number), partial(os.kill, os.getpid(), number))
    try:
        with pytest.raises(KeyboardInterrupt):
            hold(*sends, partial(seen.append, "went on"), times=times)
        assert seen == ["went on"]
        assert signal.getsignal(number) is interrupt
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(ENDING)
    finally:
        signal.signal(number, before)


def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    with pytest.raises(ZeroDivisionError):
        hold(lambda: 1 / 0)
    assert [signal.getsignal(number) for number in ENDING] == before


def test_another_thread_leaves_the_handlers_alone() -> None:
    seen: list[Any] = []
    thread = threading.Thread(
        target=hold, args=(lambda: seen.extend(map(signal.getsignal, ENDING)),)
    )
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(number) for number in ENDING]


def test_what_a_program_ignores_its_processes_ignore() -> None:
    """As `nohup` has it; a process inherits that, but no handler."""
    seen: list[Any] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hold(lambda: seen.append(signal.getsignal(signal.SIGHUP)))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == [signal.SIG_IGN]


def test_without_signal_masks_signals_wait_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "_CAN_MASK", False)
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        hold(partial(signal.raise_signal, signal.SIGINT), partial(seen.append, "went on"))
    assert seen == ["went on"]


# ---------------------------------------------------------------- processes


def program(lines: str) -> subprocess.Popen[str]:
    """A program in a session of its own, which prints a line when it is ready."""
    head = (
        "import ctypes, os, sys, time, threading\n"
        "from ppdmodel.pipeline.child_process import signals_held, start_process\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", head + lines],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    return process


def test_a_process_watches_its_parent_before_it_loads_anything() -> None:
    code = "import ppdmodel.pipeline.child_process, sys; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("killed", ["by another", "by itself, before the processes run"])
@pytest.mark.parametrize("importing", [False, True])
def test_a_process_ends_with_its_killed_parent(
    importing: bool, killed: str, tmp_path: Path
) -> None:
    """Also within a call that lets no other thread run, as the import of a large library is."""
    last = "time.sleep(60)"
    if killed != "by another":
        last = "print('ready', flush=True); os.kill(os.getpid(), 9)"
    if importing and sys.platform != "linux":
        pytest.skip("elsewhere a process ends when its import lets a thread run")
    (tmp_path / "slow.py").write_text(
        "import ctypes, time\n"
        "def sleep(seconds):\n"
        "    print('ready', flush=True)\n"
        f"    {'ctypes.PyDLL(None).sleep(60)' if importing else 'time.sleep(60)'}\n"
    )
    process = program(
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import slow\n"
        "with signals_held():\n"
        "    children = [start_process('spawn', slow.sleep, 60) for _ in range(2)]\n"
        f"{last}\n"
    )
    process.kill()
    assert left_of(process.pid) == []
    assert process.communicate(timeout=10)[1] == ""


def test_a_process_outlives_the_thread_that_started_it() -> None:
    process = program(
        "started = []\n"
        "def start():\n"
        "    started.append(start_process('spawn', time.sleep, 60))\n"
        "thread = threading.Thread(target=start)\n"
        "thread.start()\n"
        "thread.join()\n"
        "time.sleep(0.5)\n"
        "assert started[0].is_alive()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process.kill()
    assert left_of(process.pid) == []
    assert process.communicate(timeout=10)[1] == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process ignores")
def test_a_process_is_deaf_to_ctrl_c_from_its_first_moment() -> None:
    """Also the first one of a program, which comes after the resource tracker of its library."""
    process = program(
        "with signals_held():\n"
        "    child = start_process('spawn', time.sleep, 60)\n"
        "def hears():\n"
        "    with open(f'/proc/{child.pid}/status') as status:\n"
        "        masks = [line.split()[1] for line in status if line[:6] in ('SigBlk', 'SigIgn')]\n"
        "    return not any(int(mask, 16) & 2 for mask in masks)\n"
        "assert not any(hears() or time.sleep(1e-3) for _ in range(300))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    os.killpg(process.pid, signal.SIGTERM)
    assert left_of(process.pid) == []
    assert process.communicate(timeout=10)[1] == ""


def test_a_process_does_not_import_the_main_module(tmp_path: Path) -> None:
    """A program without a guard starts no second one."""
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import time\n"
        "from ppdmodel.pipeline.child_process import start_process\n"
        "print('main', flush=True)\n"
        "start_process('spawn', print, 'child').join()\n"
    )
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("main\nchild\n", "")


# ---------------------------------------------------------------- a pool that gets a signal


def signal_at(nth: int, number: signal.Signals) -> Callable[[], bool]:
    """Send a signal to this process's group at the nth call of a function from now on.

    Returns:
        Whether it was sent.
    """
    calls = count(1)
    sent = []

    def watch(_frame: Any, _event: str, _argument: Any) -> None:
        if next(calls) == nth:
            sys.setprofile(None)
            sent.append(nth)
            os.killpg(0, number)

    sys.setprofile(watch)
    return lambda: bool(sent)


def start_pool(
    engine: SharedEngine, moment: int | float, number: signal.Signals, said: Path, done: Path
) -> None:
    """Start units, and get a signal meanwhile; what it and they say goes to a file.

    The moment is a number of calls of functions, or of seconds after the start.
    """
    os.setsid()
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    for each in ENDING:
        signal.signal(each, interrupt)
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = None  # it must be started, as in a new program, and not be the server's
    pool = WorkerPool(engine, CPUS, CAPACITY)
    in_seconds = isinstance(moment, float)
    try:
        sent = signal_at(0 if in_seconds else int(moment), number)
        pool.start()
        sys.setprofile(None)
        if in_seconds:
            time.sleep(moment)
            os.killpg(0, number)
        if in_seconds or sent():
            time.sleep(1)  # in vain
        done.write_text("started")
    except KeyboardInterrupt:
        done.write_text("interrupted")
    finally:
        sys.setprofile(None)
        pool.close()


def test_a_signal_to_the_group_while_units_start(engine: SharedEngine, tmp_path: Path) -> None:
    """At every moment each of the signals ends all of them, and they say nothing."""
    said, done = tmp_path / "said", tmp_path / "done"
    moments = chain(AFTER_S, count(1, EVERY_CALLS))
    for moment, number in zip(moments, cycle(ENDING), strict=False):
        process = runs.start(start_pool, engine, moment, number, said, done)
        assert runs.ended(process) == 0, said.read_text()
        assert left_of(process.pid) == []
        assert said.read_text() == "", f"at {moment}"
        if done.read_text() == "started":
            break
        assert done.read_text() == "interrupted"
    assert moment > 2 * EVERY_CALLS, "every signal was tried"
