"""The documentation site: built with warnings as errors, complete, and readable offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile
from typer.main import get_command

import ppdmodel
from ppdmodel.cli.app import app_of
from ppdmodel.results.files import KINDS
from tests.support.pages import PAGES, ROOT, blocks

sys.path.insert(0, str(ROOT / "docs"))
from extensions.docstrings import readable
from extensions.mathml import convert
from extensions.offline import loaded_from_elsewhere


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site that make docs has built, or else a new one without the outputs of notebooks."""
    if "SITE" in os.environ:
        return ROOT / os.environ["SITE"]
    folder = tmp_path_factory.mktemp("site")
    command = f"-m sphinx -q -W --keep-going -c docs -d {folder}/trees -D nb_execution_mode=off ."
    built = subprocess.run(
        [sys.executable, *command.split(), str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


def page(site: Path, name: str) -> str:
    return (site / name).read_text("utf-8")


def test_every_page_is_there_and_reached_from_the_first(site: Path) -> None:
    left = {"README.md", "CITATION.cff"}
    expected = {name.removesuffix(".md") for name in PAGES if name not in left}
    expected |= {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    first = page(site, "docs/index.html")
    for name in expected:
        assert (site / f"{name}.html").is_file(), name
        if name != "docs/index":
            address = f"../{name}.html" if not name.startswith("docs/") else f"{name[5:]}.html"
            assert f'href="{address}"' in first, name
    assert "url=docs/index.html" in page(site, "index.html")


def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    assert list(loaded_from_elsewhere(site)) == []
    assert (site / "_static" / "mathematics.woff").stat().st_size < 400_000


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.example/x.js">',
        "<link rel=stylesheet href=//a.example/x.css>",
        "<style>@font-face { src: url('https://a.example/f.woff') }</style>",
        '<img alt="" src="http://a.example/x.png">',
    ],
)
def test_what_would_be_loaded_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f'<a href="https://a.example">fine</a>{text}')
    assert len(list(loaded_from_elsewhere(tmp_path))) == 1


def test_links_within_the_site_arrive(site: Path) -> None:
    text = {path.resolve(): path.read_text("utf-8") for path in site.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', html)) for path, html in text.items()}
    for path, html in text.items():
        for link in map(unescape, re.findall(r'href="([^"]+)"', html)):
            address, _, place = link.partition("#")
            if re.match(r"[a-z]+:", link) or link.startswith("#svg") or not address + place:
                continue
            target = (path.parent / address.split("?")[0]).resolve() if address else path
            assert target.exists(), f"{path.name} links to {link}"
            assert not place or place in places[target], f"{path.name} links to {link}"


def test_every_public_name_is_documented(site: Path) -> None:
    with (site / "objects.inv").open("rb") as file:
        known = InventoryFile.load(file, "", lambda base, path: path)
    names = {name for kind, found in known.items() if kind.startswith("py:") for name in found}
    missing = {f"ppdmodel.{n}" for n in ppdmodel.__all__} - names
    assert missing == {"ppdmodel.__version__", "ppdmodel.symbolic"}
    others = {"formulas.symbolic.latex", "pipeline.Pipeline", "show.plots.theory"}
    assert {f"ppdmodel.{name}" for name in others} < names


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    text = page(site, "docs/reference/commands.html")
    text = re.sub(r"<[^>]+>", "", unescape(text))
    for name, command in get_command(app_of()).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {"": command})
        for last, each in inner.items():
            assert f"ppdmodel {name} {last}".strip() in text
            for parameter in each.params:
                for option in [*parameter.opts, *parameter.secondary_opts]:
                    assert option in text or parameter.param_type_name == "argument"


def test_every_kind_of_file_is_described(site: Path) -> None:
    text = unescape(page(site, "docs/reference/files.html"))
    for kind in KINDS:
        assert f"{kind}" in text


def test_equations_are_drawn_numbered_and_linked(site: Path) -> None:
    numbers = 0
    for path in (ROOT / "theory").glob("[01]*.md"):
        html = page(site, f"theory/{path.stem}.html")
        for number in re.findall(r"\\tag\{([\d.]+)\}", path.read_text("utf-8")):
            at = f"equation-{number.replace('.', '-')}"
            assert f'id="{at}"><div class="scroll"><math' in html
            assert f'<a class="number" href="#{at}">({number})</a>' in html
            numbers += 1
        assert "$" not in re.sub(r"<(code|pre)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert numbers > 50
    assert 'href="01-setting.html#equation-1-1"' in page(site, "theory/02-latency.html")
    forms = page(site, "docs/reference/formulas.html")
    assert 'href="../../theory/02-latency.html#equation-2-1"' in forms
    assert "$" not in re.sub(r"<(code|pre)\b.*?</\1>", "", forms, flags=re.DOTALL)


def test_names_of_functions_are_links(site: Path) -> None:
    text = page(site, "theory/02-latency.html")
    assert 'href="../docs/reference/formulas.html#ppdmodel.latency_per_token"' in text


def test_latex_becomes_mathml() -> None:
    made = convert(r"\begin{cases}a & b\cr c & d\end{cases} \tag{1.1}", block=True)
    assert made.startswith("<math")
    assert made.count("<mtr>") == 2
    assert "tag" not in made


def test_docstrings_become_readable() -> None:
    found = readable("At $x^2$, by theory/02-latency.md.\n\n>>> f('$5')\n'$5'\n")
    assert found == ("At \\ :math:`x^2`\\ , by :doc:`/theory/02-latency`.\n\n>>> f('$5')\n'$5'\n")


def test_directives_are_on_pages_that_the_site_makes() -> None:
    for name in PAGES:
        if any(block.kind.startswith("{") for block in blocks(name)):
            assert name.startswith(("docs/reference/", "docs/index")), "GitHub would show its code"
