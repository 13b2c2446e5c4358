"""The command line: each command parses, makes one library call, and renders."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidInputError, MissingExtraError, PpdModelError, visible

#: characters of an error that are shown: a path has at most 4096
LONGEST = 6000
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


#: the signals that interrupt a run, by their names in its message
SIGNALS = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}
_got: list[int] = []  #: those that came


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; an error is one line on standard error."""
    _on_signals(_interrupt)
    sys.unraisablehook = _unraisable
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    try:
        code = run(sys.argv[1:] if argv is None else argv)
        _on_signals(signal.SIG_DFL)  # from here on they end the process without a word
    except KeyboardInterrupt:  # again, while the first was reported
        _on_signals(signal.SIG_DFL)
        code = INTERRUPTED
    sys.exit(code)


def _on_signals(answer: Any) -> None:
    """Answer the signals, except those that whoever started this process has it ignore."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, answer)


def _interrupt(number: int, _: object) -> None:
    _got.append(number)
    raise KeyboardInterrupt


def _unraisable(about: sys.UnraisableHookArgs) -> None:
    """An interrupt inside a destructor or the like, which Python drops: it comes again."""
    if about.exc_type is KeyboardInterrupt and _got:
        threading.Timer(0.01, os.kill, (os.getpid(), _got[-1])).start()
    else:
        sys.__unraisablehook__(about)


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    try:
        from .app import app_for

        _check_words(argv)
        code = app_for(argv)(list(argv), prog_name="ppdmodel", standalone_mode=False)
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        sys.stderr.close()
        return FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if not _got:
            return _report(*_explained(error))
        code = INTERRUPTED  # which a library has made another error of
    if code == INTERRUPTED:
        name = signal.Signals([*_got, signal.SIGINT][0]).name
        return _report(f"the run was interrupted; got {SIGNALS[name]}", INTERRUPTED)
    return code if isinstance(code, int) else DONE


def _check_words(argv: Sequence[str]) -> None:
    """Refuse names in another encoding than UTF-8, which no result could record."""
    for word in argv:
        if "\0" in word or word.encode(errors="replace").decode() != word:
            raise InvalidInputError(
                f"the words of a command must be UTF-8; got {word!r}; rename the file"
            )


def _explained(error: Exception) -> tuple[str, int]:
    """An error's message and exit code."""
    if isinstance(error, PpdModelError):
        is_input = isinstance(error, (InvalidInputError, MissingExtraError))
        return str(error), BAD_INPUT if is_input else FAILED
    if isinstance(error, ModuleNotFoundError):
        return str(MissingExtraError("measure", error.name or "torch")), BAD_INPUT
    if isinstance(error, OSError) and error.filename is None:  # no file or folder: the output
        return f"the output must be writable; got {error.strerror or error}", FAILED
    usage = getattr(error, "format_message", None)  # the parser's message on wrong options
    if usage is not None:
        message = usage().rstrip(".")
        return message and f"{message}; see: ppdmodel --help", BAD_INPUT
    return f"the run failed; got {type(error).__name__}: {error}", FAILED


def _report(message: str, code: int) -> int:
    if not message:  # a group of commands without a command: its help is on the screen
        return code
    line = visible(" ".join(message.split()))
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    print(f"error: {line}", file=sys.stderr)  # noqa: T201
    return code
