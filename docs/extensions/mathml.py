"""Mathematics as MathML that browsers draw themselves, with equation numbers to link to."""

from __future__ import annotations

import re
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from math_core import LatexToMathML
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform

CONVERTER = LatexToMathML(fancy_error=False)
TAG = re.compile(r"\\tag\{([^}]*)\}")
#: a number of an equation in the text: page and place, as in (2.1)
NUMBER = re.compile(r"\((\d+\.\d+)\)")
#: Latin, Greek, arrows, operators, brackets, and the letters of mathematics
CHARACTERS = "0020-007E,00A0-00FF,0370-03FF,2000-22FF,2300-230B,23DC-23E1,25A0-25FF,27C0-27FF"
LETTERS = "1D400-1D7FF"


def convert(latex: str, *, block: bool) -> str:
    r"""The MathML of an equation; its \tag is not in it."""
    # GitHub eats one backslash of two, so pages write \cr for the end of a row
    plain = TAG.sub("", latex).replace(r"\cr", r"\\").strip()
    return CONVERTER.convert_with_local_state(plain, displaystyle=block)


def anchor(number: str) -> str:
    """The name of an equation's place on its page."""
    return "equation-" + number.replace(".", "-")


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write mathematics within a line."""
    translator.body.append(convert(node.astext(), block=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """Write an equation, with its number as a link to itself."""
    latex = node.astext()
    found = TAG.search(latex)
    name = f' id="{anchor(found[1])}"' if found else ""
    translator.body.append(f'<div class="equation"{name}><div class="scroll">')
    translator.body.append(convert(latex, block=True) + "</div>")
    if found:
        number = escape(found[1])
        translator.body.append(f'<a class="number" href="#{anchor(number)}">({number})</a>')
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Remember on which page each numbered equation is."""
    homes = equation_homes(app.env)
    for node in doctree.findall(nodes.math_block):
        if found := TAG.search(node.astext()):
            homes[found[1]] = app.env.docname


def equation_homes(env: BuildEnvironment) -> dict[str, str]:
    """The page of each equation by its number."""
    if not hasattr(env, "ppdmodel_equations"):
        env.ppdmodel_equations = {}  # type: ignore[attr-defined]
    return env.ppdmodel_equations  # type: ignore[attr-defined, no-any-return]


class LinkEquations(SphinxPostTransform):
    """Numbers of equations in the text become links to them."""

    default_priority = 400

    def run(self, **_: Any) -> None:
        """Link every number that some page has."""
        for text in list(self.document.findall(nodes.Text)):
            skipped = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block)
            inside = isinstance(text.parent, (*skipped, nodes.reference, nodes.raw, nodes.title))
            if not inside and NUMBER.search(text.astext()):
                text.parent.replace(text, self._linked(text.astext()))

    def _linked(self, text: str) -> list[nodes.Node]:
        homes, found = equation_homes(self.env), []
        rest = 0
        for match in NUMBER.finditer(text):
            home = homes.get(match[1])
            if home is None:
                continue
            found.append(nodes.Text(text[rest : match.start()]))
            page = self.app.builder.get_relative_uri(self.env.docname, home)
            target = f"{page}#{anchor(match[1])}"
            found.append(nodes.reference("", match[0], refuri=target, internal=True))
            rest = match.end()
        return [*found, nodes.Text(text[rest:])]


def write_font(app: Sphinx, failure: Exception | None) -> None:
    """Put the part of a mathematical font that pages may need beside them."""
    if failure is not None or app.builder.format != "html":
        return
    # the package is there for its font alone, and importing it warns
    home = find_spec("ziamath").submodule_search_locations[0]  # type: ignore[union-attr, index]
    whole = Path(home) / "fonts" / "STIXTwoMath-Regular.ttf"
    options = subset.Options(flavor="woff", layout_features=["ssty", "kern"], notdef_outline=True)
    with subset.load_font(str(whole), options) as font:
        worker = subset.Subsetter(options)
        worker.populate(unicodes=subset.parse_unicodes(f"{CHARACTERS},{LETTERS}"))
        worker.subset(font)
        subset.save_font(font, str(app.outdir / "_static" / "mathematics.woff"), options)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer, the links and the font."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.add_post_transform(LinkEquations)
    app.connect("doctree-read", collect)
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
