"""The errors that the package raises on purpose.

Each message is one line: the invariant, the value received, and the fix or the options.
"""

from __future__ import annotations


class PpdModelError(Exception):
    """Base of every error that ppdmodel raises on purpose."""


class InvalidInputError(PpdModelError, ValueError):
    """An argument or a file breaks a stated invariant; the command line exits with 2."""


class MissingExtraError(PpdModelError, RuntimeError):
    """A command needs an optional dependency that is not installed; exit code 2."""

    def __init__(self, extra: str, package: str) -> None:
        self.extra = extra
        super().__init__(
            f"this needs the optional extra [{extra}]; got no package {package!r}; "
            f"install it with: pip install 'ppdmodel[{extra}]'"
        )


class RunFailedError(PpdModelError, RuntimeError):
    """The input was fine and the run did not succeed; exit code 1."""
