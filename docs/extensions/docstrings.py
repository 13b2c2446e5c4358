"""Docstrings are written for readers of the code; here they become what Sphinx reads."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

MATH = re.compile(r"(?<![\\\w])\$([^$\n](?:[^$]*[^$\n])?)\$", flags=re.DOTALL)
PAGE = re.compile(r"\btheory/([\w-]+)\.md")


def readable(text: str) -> str:
    """LaTeX between dollars and names of theory pages as roles; code examples stay as they are."""
    parts = re.split(r"((?:^ *>>> .*\n(?:^ *\S.*\n?)*)+)", text, flags=re.MULTILINE)
    return "".join(part if number % 2 else _prose(part) for number, part in enumerate(parts))


def _prose(text: str) -> str:
    def role(match: re.Match[str]) -> str:
        latex = " ".join(match[1].split())
        return rf"\ :math:`{latex}`\ "

    return PAGE.sub(r":doc:`/theory/\1`", MATH.sub(role, text))


def process(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Rewrite one docstring in place."""
    lines[:] = readable("\n".join(lines)).split("\n")


def plain_signature(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, given: str, returned: str
) -> tuple[str, str] | None:
    """Formulas take and give anything that calculates: `Any` would say less than nothing."""
    whole = f"{given} -> {returned}".replace("~typing.", "")
    if given and ": Any" in whole and whole.endswith("-> Any"):
        bare = whole.removesuffix(" -> Any")
        return bare.replace(": Any = ", "=").replace(": Any", ""), ""
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the rewriting, before napoleon's."""
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-process-signature", plain_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
