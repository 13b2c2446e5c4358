"""The command line: each command parses, makes one library call, and renders."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import InvalidInputError, MissingExtraError, PpdModelError

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; an error is one line on standard error."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    from .app import app_for

    try:
        code = app_for(argv)(list(argv), prog_name="ppdmodel", standalone_mode=False)
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        sys.stderr.close()
        return FAILED
    except Exception as error:
        return _report(*_explained(error))
    if code == INTERRUPTED:
        return _report("the run was interrupted; got Ctrl-C", INTERRUPTED)
    return code if isinstance(code, int) else DONE


def _explained(error: Exception) -> tuple[str, int]:
    """An error's message and exit code."""
    if isinstance(error, PpdModelError):
        is_input = isinstance(error, (InvalidInputError, MissingExtraError))
        return str(error), BAD_INPUT if is_input else FAILED
    if isinstance(error, ModuleNotFoundError):
        return str(MissingExtraError("measure", error.name or "torch")), BAD_INPUT
    usage = getattr(error, "format_message", None)  # the parser's message on wrong options
    if usage is not None:
        message = usage().rstrip(".")
        return message and f"{message}; see: ppdmodel --help", BAD_INPUT
    return f"the run failed; got {type(error).__name__}: {error}", FAILED


def _report(message: str, code: int) -> int:
    if not message:  # a group of commands without a command: its help is on the screen
        return code
    print("error: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    return code
