"""The errors that the package raises on purpose.

Each message is one line: the invariant, the value received, and the fix or the options.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: characters of another library's message that an error cites
EXCERPT = 200
#: controls, line separators, marks that reverse the direction of text, and halves of characters
_HIDDEN = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


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


def visible(text: str) -> str:
    r"""Text with what a terminal or a browser would obey, or hide, as the escapes of JSON.

    >>> visible("red: \x1b[31m")
    'red: \\u001b[31m'
    """
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def excerpt(error: BaseException) -> str:
    """The beginning of another library's message, in one line.

    >>> excerpt(ValueError("so  much    space"))
    'so much space'
    """
    return " ".join(str(error).split())[:EXCERPT]


def names_on_demand(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], list[str]]:
    """`__getattr__` and `__all__` of a package whose names need the extra `measure`.

    A name is imported when it is first used; where that fails, the error names the extra.

    Args:
        package: its `__name__`.
        modules: the public names of each of its modules.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(f".{homes[name]}", package), name)
        except ModuleNotFoundError as error:
            raise MissingExtraError("measure", error.name or "torch") from None

    return find, sorted(homes)
