"""The errors that the package raises on purpose: one base, and what else each of them is."""

from __future__ import annotations

import pytest

from ppdmodel.errors import InvalidInputError, MissingExtraError, PpdModelError, RunFailedError


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
