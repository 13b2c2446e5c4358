"""`ppdmodel formulas`: the closed forms in mathematical notation, with proofs."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from .format import WIDTH, print_json
from .options import Json, depth_value, option


def formulas_command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One formula; default: list all.")
    ] = None,
    as_latex: Annotated[bool, option("--latex", "LaTeX, nothing else.")] = False,
    depth: Annotated[str | None, option("--depth", "At this depth; inf is unlimited.", "N")] = None,
    derivative: Annotated[
        str | None, option("--derivative", "Derivative with respect to it.", "PARAMETER")
    ] = None,
    as_json: Json = False,
) -> None:
    """The closed forms, in symbols.

    Example: ppdmodel formulas latency_per_token --depth 1 --latex
    """
    from ..formulas import symbolic

    if name is None:
        if as_latex or depth is not None or derivative is not None:
            raise InvalidInputError(
                "--latex, --depth and --derivative must come with a formula; got none; give a NAME"
            )
        if as_json:
            print_json([_entry(entry) for entry in symbolic.catalogue()])
        else:
            _print_list()
        return
    entry = symbolic.formula(name)
    fixed: dict[str, Any] = {} if depth is None else {"depth": depth_value(depth)}
    if entry.is_recursion:
        if fixed or derivative is not None:
            raise InvalidInputError(
                f"--depth and --derivative must come with a closed form; got {name}, a recursion; "
                "leave them out"
            )
        said, text = None, r",\quad ".join(entry.written)
    elif derivative is not None:
        if derivative not in entry.parameters:
            raise InvalidInputError(
                f"derivative must be with respect to a parameter of {name}; got {derivative!r}; "
                f"give {' or '.join(entry.parameters)}"
            )
        said = symbolic.Statement(symbolic.derivative(name, derivative, **fixed), {})
        text = symbolic.as_latex(said)
    else:
        said = symbolic.statement(name, **fixed)
        text = symbolic.as_latex(said)
    if as_json:
        expression = None if said is None else str(said.expression)
        where = {} if said is None else {str(s): str(meaning) for s, meaning in said.where.items()}
        print_json(_entry(entry) | {"expression": expression, "where": where, "latex": text})
    elif as_latex:
        typer.echo(text)
    else:
        _print_one(entry, said, text, fixed)


def _entry(entry: Any) -> dict[str, Any]:
    names = ("name", "parameters", "summary", "page", "equation", "test")
    return {name: getattr(entry, name) for name in names}


def _print_list() -> None:
    from ..formulas import symbolic

    for entry in symbolic.catalogue():
        start = f"({entry.equation})".ljust(7) + entry.name.ljust(31)
        lines = textwrap.wrap(entry.summary, WIDTH - len(start))
        typer.echo(start + lines[0])
        for line in lines[1:]:
            typer.echo(" " * len(start) + line)
    typer.echo("One of them in full: ppdmodel formulas NAME; proofs: theory/ in the repository.")


def _print_one(entry: Any, said: Any, text: str, fixed: Collection[str]) -> None:
    from ..formulas import symbolic

    typer.echo(textwrap.fill(f"{entry.name}({', '.join(entry.parameters)})", WIDTH))
    typer.echo(textwrap.fill(f"{entry.summary}.", WIDTH) + "\n")
    if said is None:
        typer.echo(f"A recursion; in LaTeX:\n{textwrap.fill(text, WIDTH)}")
    else:
        typer.echo(_pretty(said.expression))
        for symbol, meaning in said.where.items():
            shown = meaning if isinstance(meaning, str) else _pretty(meaning)
            typer.echo(_beside(f"{_pretty(symbol)} = ", shown))
        free = [p for p in entry.parameters if p not in fixed]
        letters = [(_pretty(symbolic.SYMBOLS[p]), p) for p in free]
        symbols = [letter if letter == p else f"{letter} {p}" for letter, p in letters]
        typer.echo("\n" + textwrap.fill("where " + ", ".join(symbols), WIDTH))
    typer.echo(f"\nderived in  {entry.page}, equation ({entry.equation})")
    typer.echo(f"proved by   {entry.test}")


def _pretty(expression: Any) -> str:
    import sympy

    from ..formulas import symbolic

    script = {symbolic.SYMBOLS["tokens"]: sympy.Symbol("ℓ", positive=True, integer=True)}
    shown = expression.xreplace(script)
    text: str = sympy.pretty(shown, use_unicode=True, num_columns=WIDTH)
    return text


def _beside(label: str, block: str) -> str:
    """`label` before the middle line of a block of text."""
    lines = block.splitlines()
    middle = len(lines) // 2
    return "\n" + "\n".join(
        (label if number == middle else " " * len(label)) + line
        for number, line in enumerate(lines)
    )
