"""The errors that the package raises on purpose: one base, and what else each of them is."""

from __future__ import annotations

import pytest

from ppdmodel.errors import (
    InvalidInputError,
    MissingExtraError,
    PpdModelError,
    RunFailedError,
    names_on_demand,
)


@pytest.mark.parametrize(
    ("error", "builtin"), [(InvalidInputError, ValueError), (RunFailedError, RuntimeError)]
)
def test_each_is_of_the_package_and_of_a_builtin_kind(
    error: type[PpdModelError], builtin: type[Exception]
) -> None:
    assert issubclass(error, PpdModelError)
    assert issubclass(error, builtin)
    assert str(error("x must be y; got z; give y")) == "x must be y; got z; give y"


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    error = MissingExtraError("measure", "torch")
    assert isinstance(error, PpdModelError)
    assert isinstance(error, RuntimeError)
    assert error.extra == "measure"
    assert str(error) == (
        "this needs the optional extra [measure]; got no package 'torch'; install it with: "
        "pip install 'ppdmodel[measure]'"
    )


def test_names_are_imported_on_demand_and_their_failure_names_the_extra() -> None:
    find, names = names_on_demand("ppdmodel", {"lost": ("b",), "errors": ("RunFailedError", "a")})
    assert names == ["RunFailedError", "a", "b"]
    assert find("RunFailedError") is RunFailedError
    with pytest.raises(AttributeError, match="module 'ppdmodel' has no attribute 'c'"):
        find("c")
    with pytest.raises(MissingExtraError, match=r"\[measure\]; got no package 'ppdmodel.lost'"):
        find("b")
