"""The documentation site: python -m sphinx -c docs -W . build/docs, or make docs.

The source folder is the repository, so that pages, theory and notebooks stay where they are and
their links work in a checkout too. The result needs no network: mathematics is MathML, fonts and
scripts lie beside the pages.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

import ppdmodel

project = "ppdmodel"
author = "The ppdmodel authors"
version = release = ppdmodel.__version__
html_title = f"ppdmodel {version}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "extensions.mathml",
    "extensions.docstrings",
    "extensions.reference",
    "extensions.offline",
]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/reference/*.md",
    "theory/*.md",
    "notebooks/*.ipynb",
    "data/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [
    ".*",
    "build",
    "results",
    "ppdmodel",
    "tests",
    "benchmarks",
    "experiments",
    "quality",
    "**/.*",
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "notes_style")]
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "py:obj"
python_display_short_literal_types = True
maximum_signature_line_length = 90

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False
html_show_search_summary = False  # a page opened from disk cannot read others
html_theme_options: dict[str, list[str]] = {"footer_icons": [], "top_of_page_buttons": []}
highlight_language = "none"  # a block without a language is no code
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def write_first_page(app: Sphinx, failure: Exception | None) -> None:
    """Lead from the folder that is opened to the first page."""
    if failure is None and app.builder.format == "html":
        (app.outdir / "index.html").write_text(
            '<!doctype html><meta charset="utf-8"><title>ppdmodel</title>'
            '<meta http-equiv="refresh" content="0; url=docs/index.html">'
            '<a href="docs/index.html">ppdmodel</a>\n',
            encoding="utf-8",
        )


def setup(app: Sphinx) -> None:
    """Show tables of numbers as plain text; make the first page."""
    app.add_lexer("csv", TextLexer)
    app.connect("build-finished", write_first_page)
