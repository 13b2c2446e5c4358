"""A closed form is assignments and one return on operators and `ops`: no branch, no `math`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ppdmodel.formulas

FOLDER = Path(ppdmodel.formulas.__file__).parent
SUPPORT = ("__init__", "contract", "ops")
RECURSIONS = ("distribution", "draft_tree", "early_exit", "multi_exit")
BRANCHES = (
    ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.BoolOp, ast.Compare, ast.ListComp,
    ast.GeneratorExp, ast.Match, ast.With, ast.Raise, ast.Assert,
)  # fmt: skip


def closed_forms() -> list[tuple[str, ast.FunctionDef]]:
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem not in RECURSIONS + SUPPORT:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [(path.stem, n) for n in tree.body if isinstance(n, ast.FunctionDef)]
    return found


@pytest.mark.parametrize(
    ("module", "function"), closed_forms(), ids=lambda x: getattr(x, "name", x)
)
def test_closed_form_is_straight(module: str, function: ast.FunctionDef) -> None:
    """So are the parts that several closed forms share, whose names begin with an underscore."""
    decorators = [d.id for d in function.decorator_list if isinstance(d, ast.Name)]
    assert decorators == ([] if function.name.startswith("_") else ["closed_form"])
    *steps, last = function.body[1:]
    assert isinstance(last, ast.Return)
    assert all(isinstance(step, (ast.Assign, ast.FunctionDef)) for step in steps)
    for node in ast.walk(function):
        assert not isinstance(node, BRANCHES), ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id == "ops", ast.unparse(node)
    docstring = ast.get_docstring(function) or ""
    if function.name.startswith("_"):
        assert "quation (" in docstring
        return
    for part in ("Returns:", "Source:", "theory/", ">>> "):
        assert part in docstring, f"{function.name} lacks {part}"


def test_there_are_closed_forms_to_check() -> None:
    found = {f.name for _, f in closed_forms() if not f.name.startswith("_")}
    recursions = {
        "DraftTree", "calibrated_early_latency", "draft_tree",
        "multi_exit_compute", "multi_exit_latency",
    }  # fmt: skip
    assert found | recursions == set(ppdmodel.formulas.__all__)
    assert set(ppdmodel.formulas.__all__) < set(ppdmodel.__all__)


def test_formulas_import_nothing_but_ops_and_their_contract() -> None:
    for module in sorted({name for name, _ in closed_forms()}):
        tree = ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))
        imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in imports for alias in node.names}
        shared = {"_latency", "_dropped_family"}  # from ppd.py
        assert names <= {"annotations", "ops", "Operand", "closed_form"} | shared
