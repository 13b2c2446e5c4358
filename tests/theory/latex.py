r"""The equations of the pages and docstrings as SymPy expressions.

A parser for the notation that they use and no more. SymPy's own LaTeX parsers read `p (1 - p)` as
a call, `d e` as a differential, and know neither `\max` nor sums after a factor.

    sum     = ["-"] product {("+" | "-") product}
    product = power {["/" | "\cdot"] power}
    power   = atom ["^" group]
    atom    = number | symbol | "(" sum ")" | \frac group group | \max "(" sum "," sum ")"
            | \sum "_" "{" letter "=" sum "}" "^" group product | \lfloor sum \rfloor | ...
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sympy

from ppdmodel.formulas import symbolic

THEORY = Path(__file__).parents[2] / "theory"

#: what the pages write where the symbol has another name
ALIASES = {"p_s": "p", "hat c": "chat"}
#: what equations call other formulas
LETTERS = {
    "Lambda": "latency_per_token",
    "C": "compute_per_token",
    "T": "calibrated_latency",
    "T_0": "calibrated_plain_latency",
}
_TOKEN = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]|\d+|\S")
_NO_MEANING = re.compile(r"\\(?:[,;! ]|qquad|quad|(?:[bB]igg?[lr]|left|right)(?![a-z]))")
_EXTREMA = {r"\max": sympy.Max, r"\min": sympy.Min}
_ROUNDED = {r"\lfloor": (sympy.floor, r"\rfloor"), r"\lceil": (sympy.ceiling, r"\rceil")}


def tagged_equations(page: str) -> dict[str, str]:
    """Tag -> LaTeX of each numbered equation of a page, with the definitions displayed after it.

    Those stand in blocks of their own, after the words "with" and "and".
    """
    text = (THEORY / page).read_text(encoding="utf-8")
    defined = re.compile(r"(\\tag\{[\d.]+\})\$\$\s+(?:with|and)\s+\$\$(.+?)\.?\$\$")
    while defined.search(text):
        text = defined.sub(r"\\qquad \2 \1$$", text)
    found = {}
    for block in re.findall(r"\$\$(.+?)\$\$", text, flags=re.DOTALL):
        body, sign, tag = block.partition(r"\tag{")
        if sign:
            found[tag.split("}")[0]] = body
    return found


def resolved(latex: str, own_name: str) -> Any:
    """The right side of the first equation, with the definitions beside it put in.

    `LETTERS` stand for the formulas that they name, unless the equation defines them.
    """
    (first, expression), *rest = equations(latex).items()
    definitions = dict(rest)
    for letter, name in LETTERS.items():
        if name != own_name and first != letter:
            definitions[letter] = computed(name)
    known = {sympy.Symbol(letter): value for letter, value in definitions.items()}
    for _ in known:  # definitions may use each other
        expression = expression.xreplace(known)
    return expression


def equations(latex: str) -> dict[str, Any]:
    """Left side -> right side of each `left = right`, separated by wide spaces."""
    found = {}
    for part in re.split(r",?\s*\\q?quad", latex):
        left, sign, right = part.strip().rstrip(".,").partition(" = ")
        if sign:
            found[re.sub(r"[{}\\\s]", "", left)] = parsed(right)
    return found


@cache
def computed(name: str) -> Any:
    """What a closed form gives for symbols, without assumptions on them."""
    return letters_of(symbolic.expr(name))


def letters_of(expression: Any) -> Any:
    """Symbols without their assumptions, as the parser makes them."""
    return expression.xreplace({s: sympy.Symbol(s.name) for s in expression.atoms(sympy.Symbol)})


def parsed(latex: str) -> Any:
    """One expression."""
    parser = _Parser(_TOKEN.findall(_NO_MEANING.sub(" ", latex)))
    expression = parser.sum()
    assert not parser.tokens, f"cannot read {latex!r} from {''.join(reversed(parser.tokens))!r}"
    return expression


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]

    def peek(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, *expected: str) -> str:
        token = self.tokens.pop()
        assert not expected or token in expected, f"{token!r} instead of {expected}"
        return token

    def sum(self) -> Any:
        sign = -1 if self.peek() == "-" and self.take() else 1
        total = sign * self.product()
        while self.peek() in ("+", "-"):
            total = total + (1 if self.take() == "+" else -1) * self.product()
        return total

    def product(self) -> Any:
        result = self.power()
        while self.peek() not in ("", "+", "-", ")", "]", "}", ",", *_closings()):
            operator = self.take() if self.peek() in ("/", r"\cdot") else r"\cdot"
            result = result / self.power() if operator == "/" else result * self.power()
        return result

    def power(self) -> Any:
        base = self.atom()
        if self.peek() == "^":
            self.take()
            return base ** self.group()
        return base

    def group(self) -> Any:
        """What braces hold, or one token."""
        if self.peek() == "{":
            return self.enclosed("{", "}")
        return self.atom()

    def enclosed(self, opening: str, closing: str) -> Any:
        self.take(opening)
        inner = self.sum()
        self.take(closing)
        return inner

    def atom(self) -> Any:
        token = self.peek()
        if token in "([":
            return self.enclosed(token, {"(": ")", "[": "]"}[token])
        special: dict[str, Callable[[], Any]] = {r"\frac": self.fraction, r"\sum": self.sigma}
        if token in special:
            self.take()
            return special[token]()
        if token in _EXTREMA:
            return _EXTREMA[self.take()](*self.pair())
        if token in _ROUNDED:
            rounded, closing = _ROUNDED[token]
            return rounded(self.enclosed(token, closing))
        return sympy.Integer(self.take()) if token.isdigit() else self.symbol()

    def fraction(self) -> Any:
        above = self.group()
        return above / self.group()

    def sigma(self) -> Any:
        self.take("_")
        self.take("{")
        index = sympy.Symbol(self.take())
        self.take("=")
        first = self.sum()
        self.take("}")
        self.take("^")
        last = self.group()
        return sympy.Sum(self.product(), (index, first, last))

    def pair(self) -> tuple[Any, Any]:
        opening = self.take("(", "[")
        one = self.sum()
        self.take(",")
        two = self.sum()
        self.take({"(": ")", "[": "]"}[opening])
        return one, two

    def symbol(self) -> Any:
        name = self.take().lstrip("\\")
        assert name.isalpha(), f"cannot read {name!r}"
        if name == "hat":
            name = f"hat {self.take()}"
        if self.peek() == "_":
            self.take()
            name += f"_{self.take()}"
        return sympy.Symbol(ALIASES.get(name, name))


def _closings() -> tuple[str, ...]:
    return tuple(closing for _, closing in _ROUNDED.values())
