"""A closed form is assignments and one return on operators and `ops`: no branch, no `math`."""

from __future__ import annotations

import ast
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sympy
import torch

import ppdmodel
from ppdmodel import formulas
from ppdmodel.errors import InvalidInputError
from ppdmodel.formulas import registry
from ppdmodel.formulas.contract import as_real, check, closed_form, listed
from ppdmodel.formulas.registry import FORMULAS
from tests.support.backends import check_refused

#: the modules that hold closed forms hold nothing else
MODULES = sorted({x.function.__module__ for x in FORMULAS.values() if not x.is_recursion})
BRANCHES = (
    ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.BoolOp, ast.Compare, ast.ListComp,
    ast.GeneratorExp, ast.Match, ast.With, ast.Raise, ast.Assert,
)  # fmt: skip


def syntax(module: str) -> ast.Module:
    return ast.parse(Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8"))


def functions() -> list[ast.FunctionDef]:
    return [n for m in MODULES for n in syntax(m).body if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize("function", functions(), ids=lambda x: x.name)
def test_closed_form_is_straight(function: ast.FunctionDef) -> None:
    """So are the parts that several closed forms share, whose names begin with an underscore."""
    assert len(function.decorator_list) == (not function.name.startswith("_"))
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
    for part in ("Args", "Returns:", ">>> "):
        assert part in docstring, f"{function.name} lacks {part}"


def test_there_are_closed_forms_to_check() -> None:
    found = {f.name for f in functions() if not f.name.startswith("_")}
    recursions = {name for name, registered in FORMULAS.items() if registered.is_recursion}
    assert found == set(FORMULAS) - recursions
    assert len(found) > 40
    assert recursions == {
        "calibrated_early_latency", "draft_tree", "multi_exit_compute", "multi_exit_latency",
    }  # fmt: skip
    assert set(FORMULAS) < set(ppdmodel.__all__)
    assert all(getattr(formulas, name) is x.function for name, x in FORMULAS.items())


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_the_docstring_has_errors_and_source_once_before_the_example(name: str) -> None:
    registered = FORMULAS[name]
    docstring = registered.function.__doc__ or ""
    source = f"Source:\n    theory/{registered.page}.md, equation ({registered.equation}).\n\n>>> "
    assert docstring.count(source) == docstring.count("Source:") == docstring.count("Raises:") == 1
    assert docstring.index("Raises:") < docstring.index("Source:")
    assert (Path("theory") / f"{registered.page}.md").exists()


def test_formulas_import_nothing_but_ops_and_their_contract() -> None:
    for module in MODULES:
        found = ast.walk(syntax(module))
        imports = [n for n in found if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in imports for alias in node.names}
        shared = {"_latency", "_dropped_family"}  # from ppd.py
        assert names <= {"annotations", "ops", "Operand", "closed_form"} | shared


def test_integer_arrays_do_not_wrap_around() -> None:
    k = np.array([10], dtype=np.int64)
    large = formulas.compute_per_token(0.5, 60, 1, k, None)
    assert large[0] == pytest.approx(formulas.compute_per_token(0.5, 60, 1, 10, None), rel=1e-12)
    assert large[0] > 1e50


def test_only_arrays_and_tensors_of_whole_numbers_change_their_type() -> None:
    for dtype in (torch.int64, torch.uint8, torch.bool):
        assert as_real(torch.ones(2, dtype=dtype)).dtype == torch.get_default_dtype()
    for dtype in (torch.float16, torch.float64):
        assert as_real(torch.ones(2, dtype=dtype)).dtype == dtype
    for kind in (np.int32, np.uint8, np.bool_):
        assert as_real(np.ones(2, dtype=kind)).dtype == np.float64
    assert as_real(np.ones(2, dtype=np.float32)).dtype == np.float32
    assert isinstance(as_real(3), int)


def test_too_many_processes_for_a_float_is_infinite() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert formulas.compute_per_token(0.5, 400, 1, 10.0, None) == math.inf
        result = formulas.compute_per_token(0.5, 400, np.array([1, 200]), 10, None)
    assert result[0] == math.inf
    assert result[1] == pytest.approx(formulas.compute_per_token(0.5, 400, 200, 10, None))


def test_a_column_of_a_table_is_an_array() -> None:
    table = pd.DataFrame({"p": [0.1, 0.5], "e": [10, 20]})
    found = formulas.latency_per_token(table["p"], 40, table["e"], None)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [37.0, 30.0]


LARGEST = sys.float_info.max


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("p_correct", (0, 0.5, 1), (-1e-9, 1 + 1e-9, math.nan)),
        ("layers", (5e-324, 1, LARGEST), (0, -1, math.inf, math.nan)),
        ("overhead", (0, 0.5, LARGEST), (-1e-9, math.inf, math.nan)),
        ("k", (1, 1.5, LARGEST), (1 - 1e-9, math.inf, math.nan)),
        ("tree_depth", (0, 1, 2), (-1, 0.5, math.inf, math.nan)),
        ("depth", (1, 2, 3), (0, 1.5, math.inf, math.nan)),
        ("autocorrelation", (-1, 0), (-1 - 1e-9, 1, math.nan)),
    ],
)
def test_a_domain_ends_where_it_says(
    name: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    """One name of each kind, for numbers and for elements of arrays."""
    for value in inside:
        check(name, value)
        check(name, np.array([value]))
    for value in outside:
        for given in (value, np.array([value])):
            with pytest.raises(InvalidInputError, match=f"^{name} must "):
                check(name, given)


def test_a_depth_is_cut_to_the_largest_that_changes_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Equation (2.2). A depth of 1 stays a number beside arrays: no sum runs over each element."""
    monkeypatch.setattr(registry, "FORMULAS", {})

    @closed_form(equation="2.2", page="02-latency")
    def settled(layers: Any, exit_layer: Any, depth: Any = 1) -> Any:
        return depth

    for d, e, depth, expected in (
        (8, 1, None, 7), (8, 1, 5, 5), (8, 1, 99, 7), (8, 3, None, 2), (8, 8, 4, 1),
        (8, 8, None, 1), (8, 1, 1, 1), (10_001, 1, None, 10_000),
    ):  # fmt: skip
        assert settled(d, e, depth) == expected
    assert settled(np.array([8, 6]), 2, None).tolist() == [3, 2]
    assert settled(np.array([8, 6]), 2) == 1
    layers, exit_layer, n = sympy.symbols("d e D", positive=True)
    assert settled(layers, exit_layer, None) == sympy.ceiling(layers / exit_layer) - 1
    assert settled(layers, exit_layer, n) == n
    with pytest.raises(
        InvalidInputError, match="tokens in flight must not exceed 10000; got 10001"
    ):
        settled(10_002, 1, None)


def test_shapes_that_broadcast_and_symbols_are_accepted() -> None:
    column, row = np.full((3, 1), 0.5), np.array([10, 40])
    assert formulas.latency_per_token(column, 40, row).shape == (3, 2)
    assert formulas.latency_per_token(row / 80, np.full((3, 1), 40), 10).shape == (3, 2)
    p, rho, d, e = sympy.symbols("p rho d e", positive=True)
    assert formulas.correlated_latency(p, d, e, 1, rho).free_symbols == {p, rho, d, e}


BAD: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: formulas.latency_per_token(np.float64(1.5), 40, 20),
        "p_correct must lie in [0, 1]; got 1.5; give a probability",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 40, np.int64(50)),
        "exit_layer must not exceed layers; got 50.0; exit layers run from 1 to 40",
    ),
    (
        lambda: formulas.latency_per_token([0.5, 0.6], 40, 20),
        "p_correct must lie in [0, 1]; got [0.5, 0.6]; make an array of it: numpy.asarray",
    ),
    (
        lambda: formulas.latency_per_token(np.array([0.5 + 1j]), 40, 20),
        "p_correct must lie in [0, 1]; got an array of complex128; give real numbers",
    ),
    (
        lambda: formulas.latency_per_token(np.array([0.1, 0.2, 0.3]), 40, np.array([10, 20])),
        "the shapes of the arguments must broadcast; got p_correct (3,), exit_layer (2,); "
        "give them equal lengths, or axes of their own",
    ),
    (
        lambda: formulas.latency_per_token(np.full((3, 1), 0.5), 40, np.array([[1], [2]])),
        "the shapes of the arguments must broadcast; got p_correct (3, 1), exit_layer (2, 1); "
        "give them equal lengths, or axes of their own",
    ),
    (
        lambda: formulas.correlated_latency(0.1, 8, 1, 1, -0.5),
        "autocorrelation must be at least -p/(1-p) and -(1-p)/p; got -0.5; "
        "no sequence of matches at this match rate alternates that much",
    ),
    (
        lambda: formulas.latency_per_token(np.array([0.1, 0.2]), 40, torch.tensor([10.0, 20.0])),
        "arguments must be of one kind beside plain numbers; got arrays and tensors; "
        "make them the same",
    ),
    (
        lambda: formulas.latency_per_token(np.array([0.1, 0.2]), 40, sympy.Symbol("e")),
        "arguments must be of one kind beside plain numbers; got arrays and symbols; "
        "make them the same",
    ),
    (
        lambda: formulas.latency_per_token(pd.Series([0.1, 1.2]), 40, 20),
        "p_correct must lie in [0, 1]; got 1.2 at index 1; give a probability",
    ),
    (
        lambda: formulas.compute_per_token(0.5, 10**6, 1, 2, None),
        "the tokens in flight must not exceed 10000; got 999999; raise exit_layer or lower depth",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 10**400, 1),
        f"layers must be a positive number; got {10**400}; give a layer count",
    ),
    (
        lambda: formulas.latency_per_token(0.5, np.array([[40], [10]]), np.array([3, 20])),
        "exit_layer must not exceed layers; got 20.0 at index (1, 1); lower it",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 8, 4, np.array([1, math.inf])),
        "depth must be a whole number of at least 1; got inf at index 1; use None for unlimited",
    ),
    (
        lambda: formulas.latency_per_token(1.2, 40, 20),
        "p_correct must lie in [0, 1]; got 1.2; give a probability",
    ),
    (
        lambda: formulas.latency_per_token(math.nan, 40, 20),
        "p_correct must lie in [0, 1]; got nan; give a probability",
    ),
    (
        lambda: formulas.latency_per_token("half", 40, 20),
        "p_correct must lie in [0, 1]; got 'half'; give a probability",
    ),
    (
        lambda: formulas.speedup(0.5, 40, 41),
        "exit_layer must not exceed layers; got 41; exit layers run from 1 to 40",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 40, 0),
        "exit_layer must be a positive number; got 0; count layers from 1",
    ),
    (
        lambda: formulas.latency_per_token(0.5, math.inf, 1),
        "layers must be a positive number; got inf; give a layer count",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 40, 20, 1.5),
        "depth must be a whole number of at least 1; got 1.5; use None for unlimited",
    ),
    (
        lambda: formulas.latency_per_token(np.array([[0.1, 0.2], [0.3, math.nan]]), 40, 20),
        "p_correct must lie in [0, 1]; got nan at index (1, 1); give a probability",
    ),
    (
        lambda: formulas.latency_per_token(np.array([[0.1, 1.2], [2.0, 0.4]]), 40, 20),
        "p_correct must lie in [0, 1]; got 1.2 at index (0, 1); give a probability",
    ),
    (
        lambda: formulas.latency_per_token(torch.tensor([[0.5, 0.5], [-1.0, 2.0]]), 40, 20),
        "p_correct must lie in [0, 1]; got -1.0 at index (1, 0); give a probability",
    ),
    (
        lambda: formulas.latency_per_token(0.5, torch.tensor([20.0, 10.0]), 20),
        "exit_layer must not exceed layers; got 20 at index 1; lower it",
    ),
    (
        lambda: formulas.latency_per_token(torch.tensor([0.5, -1.0]), 40, 20),
        "p_correct must lie in [0, 1]; got -1.0 at index 1; give a probability",
    ),
    (
        lambda: formulas.latency_per_token(0.5, 40, np.array([3, 50])),
        "exit_layer must not exceed layers; got 50.0 at index 1; exit layers run from 1 to 40",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], message: str) -> None:
    check_refused(call, message)


def test_a_value_for_each_exit_is_a_list_of_any_kind() -> None:
    for given in ([1, 2], (1, 2), np.array([1, 2]), pd.Series([1, 2])):
        assert listed("k", given, "exit") == [1, 2]
    wrongs: tuple[Any, ...] = ("12", b"12", {1: 2}, {1, 2}, 3, np.array(3), [], iter([1]))
    for wrong in wrongs:
        with pytest.raises(InvalidInputError, match="k must have one value per exit; got"):
            listed("k", wrong, "exit")
