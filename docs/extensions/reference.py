"""Directives that make reference pages from the code: public names, commands, file schemas."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from typer.main import get_command

import ppdmodel
from ppdmodel.cli.app import app_of

from .tables import Cell, code, table


def public_names(module_name: str) -> list[str]:
    """The full names that a module brings to the public, in the order of its file.

    Names of `ppdmodel` itself come first; a module without any shows its own.
    """
    module = importlib.import_module(f"ppdmodel.{module_name}")
    homes = {name: getattr(ppdmodel, name) for name in ppdmodel.__all__}
    own = [n for n, obj in homes.items() if getattr(obj, "__module__", "") == module.__name__]
    if own:
        return [f"ppdmodel.{name}" for name in sorted(own, key=lambda n: _line(homes[n]))]
    shown = getattr(module, "__all__", None) or [
        name
        for name, obj in vars(module).items()
        if not name.startswith("_") and getattr(obj, "__module__", "") == module.__name__
    ]
    return [f"{module.__name__}.{name}" for name in shown if callable(getattr(module, name))]


def _names(given: str) -> list[str]:
    return [given] if given.startswith("ppdmodel.") else public_names(given)


def _line(obj: Any) -> int:
    return inspect.getsourcelines(inspect.unwrap(obj))[1]


class Names(SphinxDirective):
    """The documentation of every public name of the modules that are given, and of full names."""

    required_arguments = 1
    optional_arguments = 20

    def run(self) -> list[nodes.Node]:
        """Let autodoc write each name."""
        lines = ["```{eval-rst}"]
        for name in [n for given in self.arguments for n in _names(given)]:
            home, _, last = name.rpartition(".")
            is_class = inspect.isclass(getattr(importlib.import_module(home), last))
            lines.append(f".. auto{'class' if is_class else 'function'}:: {name}")
            lines += ["   :members:"] * is_class + [""]
        return self.parse_text_to_nodes("\n".join([*lines, "```"]))


class Commands(SphinxDirective):
    """A section for each command, with what its help says."""

    def run(self) -> list[nodes.Node]:
        """Walk the application."""
        return [self._section(name, command) for name, command in _walk(get_command(app_of()))]

    def _section(self, name: str, command: Any) -> nodes.section:
        section = nodes.section("", nodes.title("", name), ids=[nodes.make_id(name)])
        self.state.document.note_explicit_target(section)
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            example, found, line = paragraph.partition("Example: ")
            if example:
                section += nodes.paragraph("", " ".join(example.split()))
            if found:
                text = " ".join(line.split())
                section += nodes.literal_block(text, text, language="sh")
        rows = [_option(parameter) for parameter in command.params]
        if rows:
            section += table(("option", "what it does"), rows, (30, 70))
        return section


def _walk(group: Any, path: str = "ppdmodel") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        whole = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from _walk(command, whole)
        elif not command.hidden:
            yield whole, command


def _option(parameter: Any) -> list[Cell]:
    is_flag = getattr(parameter, "is_flag", False)
    metavar = parameter.metavar or "|".join(getattr(parameter.type, "choices", ()))
    if parameter.param_type_name == "argument":
        name = metavar or parameter.name.upper()
    else:
        value = "" if is_flag else f" {metavar or parameter.type.name.upper()}"
        name = "/".join([*parameter.opts, *parameter.secondary_opts]) + value
    return [[code(name)], _said(parameter, is_flag)]


def _said(parameter: Any, is_flag: bool) -> list[nodes.Node]:
    """What an option is for, and what holds without it."""
    said = parameter.help or ""
    if getattr(parameter, "multiple", False):
        said += " May be given several times."
    if parameter.required:
        return [nodes.Text(f"{said} Required.")]
    if is_flag or parameter.default in (None, ()):
        return [nodes.Text(said)]
    default = str(getattr(parameter.default, "value", parameter.default))
    return [nodes.Text(f"{said} Default: "), code(default), nodes.Text(".")]


class Schema(SphinxDirective):
    """The fields of a JSON document, from its schema."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write what the document is, and a row per field."""
        file = resources.files("ppdmodel.results") / "schemas" / f"{self.arguments[0]}.schema.json"
        document = json.loads(file.read_text("utf-8"))
        rows: list[list[Cell]] = [
            [[code(name)], kind, "yes" if needed else "", said]
            for name, kind, needed, said in _fields(document, document)
        ]
        said = _with_code(document["description"])
        made = table(("field", "type", "required", "what"), rows, (30, 24, 10, 36))
        return [nodes.paragraph("", "", *said), made]


def _fields(
    part: dict[str, Any], whole: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, str, bool, str]]:
    required = part.get("required", ())
    known = part.get("properties", {})
    for name, found in {**{n: {} for n in required}, **known}.items():
        field = _resolved(found, whole)
        yield path + name, _kind(field, whole), name in required, field.get("description", "")
        inner, at = field, f"{path}{name}."
        while "items" in inner:
            inner, at = _resolved(inner["items"], whole), at[:-1] + "[]."
        if "$ref" not in found:
            yield from _fields(inner, whole, at)
        extra = field.get("additionalProperties")
        if isinstance(extra, dict):
            value = _resolved(extra, whole)
            yield f"{path}{name}.*", _kind(value, whole), False, value.get("description", "")
            if "$ref" not in extra:
                yield from _fields(value, whole, f"{path}{name}.*.")


def _resolved(part: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    part = part | {k: v for inner in part.get("allOf", ()) for k, v in inner.items()}
    if "$ref" not in part:
        return part
    named = whole["$defs"][part["$ref"].rsplit("/", 1)[-1]]
    return {**named, **{key: value for key, value in part.items() if key != "$ref"}}


def _kind(field: dict[str, Any], whole: dict[str, Any]) -> str:
    """A field's type in words."""
    if "const" in field:
        return f'"{field["const"]}"'
    if "enum" in field:
        return " or ".join(f'"{value}"' for value in field["enum"])
    either = field.get("anyOf") or field.get("oneOf")
    if either:
        return " or ".join(_kind(_resolved(one, whole), whole) for one in reversed(either))
    given = field.get("type", "any")
    kinds = given if isinstance(given, list) else [given]
    if "array" in kinds and "items" in field:
        inner = _kind(_resolved(field["items"], whole), whole)
        kinds = [f"array of {inner}" if kind == "array" else kind for kind in kinds]
    limits = []
    if field.get("minimum") is not None:
        limits.append(f"≥ {field['minimum']}")
    if field.get("exclusiveMinimum") is not None:
        limits.append(f"> {field['exclusiveMinimum']}")
    for name, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")):
        if field.get(name) is not None:
            limits.append(f"{sign} {field[name]}")
    return " ".join([" or ".join(kinds), ", ".join(limits)]).strip()


def _with_code(text: str) -> list[nodes.Node]:
    parts = re.split(r"`([^`]+)`", text)
    return [code(part) if n % 2 else nodes.Text(part) for n, part in enumerate(parts)]


class LinkNames(SphinxPostTransform):
    """Names of documented functions and classes in code font become links."""

    default_priority = 401

    def run(self, **_: Any) -> None:
        """Link `ppdmodel.name` and `ppd.name`, wherever they stand."""
        objects = self.env.domains.python_domain.objects
        for literal in list(self.document.findall(nodes.literal)):
            name = re.sub(r"^ppd\.", "ppdmodel.", literal.astext())
            if name in objects and not isinstance(literal.parent, nodes.reference):
                found = objects[name]
                page = self.app.builder.get_relative_uri(self.env.docname, found.docname)
                uri = f"{page}#{found.node_id}"
                literal.replace_self(nodes.reference("", "", literal.deepcopy(), refuri=uri))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    for name, directive in (("names", Names), ("commands", Commands), ("schema", Schema)):
        app.add_directive(name, directive)
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
