"""The least time of a step: values by hand on every backend."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.backends import BACKENDS, check_all_have_values, check_golden

#: (function, arguments, value); values worked out by hand
GOLDEN: list[tuple[str, tuple[Any, ...], float]] = [
    ("roofline_time", (10, 1, 2, 4, 100), 5.0),
    ("roofline_time", (10, 8, 2, 4, 16), 10.0),
    ("roofline_time", (12, 4, 2, 4, 16), 6.0),
]


@pytest.mark.parametrize(("name", "arguments", "value"), GOLDEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_value_on_every_backend(
    name: str, arguments: tuple[Any, ...], value: float, backend: str
) -> None:
    check_golden(name, arguments, value, backend)


def test_every_formula_has_golden_values() -> None:
    check_all_have_values("roofline", GOLDEN)
