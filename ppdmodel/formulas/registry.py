"""The list of public formulas; a formula enters it where it is defined, by its decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Registered(NamedTuple):
    """A public formula, and where `theory/` derives it.

    `equation` is the number of its equation, and `page` the name of the page without ".md".
    """

    function: Callable[..., Any]
    equation: str
    page: str
    is_recursion: bool


#: by name, in the order in which they are defined
FORMULAS: dict[str, Registered] = {}


def register(function: F, *, equation: str, page: str, is_recursion: bool) -> F:
    """Add a formula to the list."""
    FORMULAS[function.__name__] = Registered(function, equation, page, is_recursion)
    return function


def recursion(*, equation: str, page: str) -> Callable[[F], F]:
    """Register a formula that is no closed form: it checks its arguments itself.

    Args:
        equation: number of its equation in `theory/`, such as "6.1".
        page: the page that derives it, such as "06-exits-and-gates".
    """
    return lambda function: register(function, equation=equation, page=page, is_recursion=True)
