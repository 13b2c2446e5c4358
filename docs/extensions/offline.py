"""The site must read without a network: a page that loads anything from elsewhere is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ELSEWHERE = r"""["']?\s*(?:https?:)?//[^"'\s>)]+"""
#: what a browser loads by itself; links that readers may follow are not among them
LOADED = re.compile(
    rf"<(?:script|link|img|iframe|source|video|audio|object|embed|use)\b[^>]*?"
    rf"\b(?:src|href|srcset|data)\s*=\s*{ELSEWHERE}",
    flags=re.IGNORECASE,
)
STYLE = re.compile(rf"(?:url\(\s*{ELSEWHERE}|@import\s+{ELSEWHERE})", flags=re.IGNORECASE)


def loaded_from_elsewhere(folder: Path) -> Iterator[str]:
    """Each thing that a page or style sheet under a folder would load over a network."""
    for path in sorted(folder.rglob("*")):
        patterns = {".html": (LOADED, STYLE), ".css": (STYLE,), ".svg": (LOADED, STYLE)}
        for pattern in patterns.get(path.suffix, ()):
            for match in pattern.finditer(path.read_text("utf-8")):
                yield f"{path.relative_to(folder)}: {match[0]}"


def check(app: Sphinx, failure: Exception | None) -> None:
    """Fail the build if there is any."""
    found = list(loaded_from_elsewhere(app.outdir)) if failure is None else []
    if found:
        raise ExtensionError("the site must need no network; got " + "; ".join(found[:5]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at what was built, after all else."""
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
