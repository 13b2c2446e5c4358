"""The list of formulas: what a decorator enters, and that nothing is entered twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ppdmodel.formulas import registry
from ppdmodel.formulas.contract import closed_form
from ppdmodel.formulas.registry import FORMULAS, recursion

THEORY = Path(__file__).parents[2] / "theory"


def test_decorators_enter_a_formula_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, registry.Registered] = {}
    monkeypatch.setattr(registry, "FORMULAS", found)

    @recursion(equation="6.1", page="06-exits-and-gates")
    def followed(layers: int) -> int:
        """Follow.

        Raises:
            InvalidInputError: layers run out.

        >>> followed(1)
        2
        """
        return layers + 1

    @closed_form(equation="2.10", page="02-latency")
    def doubled(layers: float) -> float:
        return 2 * layers

    assert found == {
        "followed": (followed, "6.1", "06-exits-and-gates", True),
        "doubled": (doubled, "2.10", "02-latency", False),
    }
    assert followed(1) == 2
    assert doubled(4) == 8
    raises, source = "Raises:\n    InvalidInputError: ", "\n\nSource:\n    theory/"
    assert followed.__doc__ == (
        f"Follow.\n\n{raises}layers run out.{source}06-exits-and-gates.md, equation (6.1).\n\n"
        ">>> followed(1)\n2"
    )
    assert doubled.__doc__ == (
        f"{raises}an argument is outside its domain.{source}02-latency.md, equation (2.10).\n\n"
    )


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_a_formula_names_an_equation_of_a_page_that_there_is(name: str) -> None:
    function, equation, page, _ = FORMULAS[name]
    assert function.__name__ == name
    assert re.fullmatch(r"[1-9]\d?\.[1-9]\d?", equation)
    assert int(equation.split(".")[0]) == int(page[:2])
    assert (THEORY / f"{page}.md").is_file()
    assert [x.equation for x in FORMULAS.values()].count(equation) == 1
