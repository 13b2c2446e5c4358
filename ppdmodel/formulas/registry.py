"""The registry of public formulas; the decorator of a formula adds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Registered(NamedTuple):
    """A public formula and its derivation in `theory/`.

    `equation` is the number of its equation, and `page` the name of the page without ".md".
    """

    function: Callable[..., Any]
    equation: str
    page: str
    is_recursion: bool


#: formulas by name, in the order of their definitions
FORMULAS: dict[str, Registered] = {}


def register(function: F, *, equation: str, page: str, is_recursion: bool) -> F:
    """Add a formula to the list, and what the decorator knows to its docstring."""
    function.__doc__ = _with_source(function.__doc__ or "", equation, page)
    FORMULAS[function.__name__] = Registered(function, equation, page, is_recursion)
    return function


def _with_source(docstring: str, equation: str, page: str) -> str:
    """The docstring with its errors and its source before the example."""
    words, example, result = inspect.cleandoc(docstring).partition(">>> ")
    if "Raises:" not in words:
        words += "Raises:\n    InvalidInputError: an argument is outside its domain.\n\n"
    return f"{words}Source:\n    theory/{page}.md, equation ({equation}).\n\n{example}{result}"


def recursion(*, equation: str, page: str) -> Callable[[F], F]:
    """Register a formula that is no closed form: it checks its arguments itself.

    Args:
        equation: number of its equation in `theory/`, such as "6.1".
        page: the page that derives it, such as "06-exits-and-gates".
    """
    return lambda function: register(function, equation=equation, page=page, is_recursion=True)
