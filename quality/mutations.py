"""Every small change that can be made to a module: operators, comparisons, numbers, returns.

Cosmic Ray's operators make the changes. What no test should have to find is left out: type
annotations, decorators, `__all__`, imports for type checking, `strict=` of `zip`, and the values
of named constants of a module (NAME = 0.5), which are choices.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

BINARY = [
    "Add_Sub",
    "Sub_Add",
    "Mul_Div",
    "Div_Mul",
    "FloorDiv_Mul",
    "Mod_FloorDiv",
    "Pow_Mul",
    "BitOr_BitAnd",
    "BitAnd_BitOr",
    "BitXor_BitOr",
    "LShift_RShift",
    "RShift_LShift",
]
COMPARISON = [
    "Lt_LtE",
    "Lt_GtE",
    "LtE_Lt",
    "LtE_Gt",
    "Gt_GtE",
    "Gt_LtE",
    "GtE_Gt",
    "GtE_Lt",
    "Eq_NotEq",
    "NotEq_Eq",
    "Is_IsNot",
    "IsNot_Is",
]
OTHER = [
    "ReplaceUnaryOperator_Delete_USub",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_Invert",
    "NumberReplacer",
    "AddNot",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ZeroIterationForLoop",
]
# where * and / are not operators: def f(a, /, *, b), {**a}
SEPARATORS = ("parameters", "param", "lambdef", "typedargslist", "varargslist", "dictorsetmaker")

Position = tuple[int, int]
Span = tuple[Position, Position]


class ReturnNone:
    """`return x` becomes `return None`."""

    def mutation_positions(self, node: Any) -> Iterator[Span]:
        """Where a value is returned."""
        if node.type == "return_stmt" and node.children[1].get_code().strip() != "None":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, _index: int) -> Any:
        """Replace the value by None."""
        node.children[1] = get_ast(" None")
        return node


class NegateMembership:
    """`in` becomes `not in` and the reverse."""

    def mutation_positions(self, node: Any) -> Iterator[Span]:
        """Where membership is asked for."""
        if node.type == "comparison":
            for _ in self._places(node):
                yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Negate the index-th membership of a comparison."""
        place = self._places(node)[index]
        negated = " in" if " ".join(node.children[place].get_code().split()) != "in" else " not in"
        node.children[place] = get_ast(negated)
        return node

    @staticmethod
    def _places(node: Any) -> list[int]:
        code = [" ".join(child.get_code().split()) for child in node.children]
        return [place for place in range(1, len(code), 2) if code[place] in ("in", "not in")]


@cache
def operators() -> dict[str, Any]:
    """Every operator by its name."""
    provider = OperatorProvider()
    names = [f"ReplaceBinaryOperator_{name}" for name in BINARY]
    names += [f"ReplaceComparisonOperator_{name}" for name in COMPARISON]
    found = {name: provider[name]() for name in names + OTHER}
    return found | {"ReturnNone": ReturnNone(), "NegateMembership": NegateMembership()}


@dataclass(frozen=True)
class Place:
    """Where an operator can change a module.

    `code` is the line without its indentation; `twin` counts the places of the module that have
    the same operator and code.
    """

    module: str
    line: int
    code: str
    operator: str
    occurrence: int
    twin: int

    def rank(self, seed: int) -> str:
        """A random number that stays when other lines of the package change."""
        named = (seed, self.module, self.operator, self.code, self.twin)
        return hashlib.sha256(repr(named).encode()).hexdigest()


@dataclass(frozen=True)
class Mutant:
    """A changed module: its source, and the changed line before and after."""

    place: Place
    source: str
    before: str
    after: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the change wherever its line moves to."""
        return key(self.place.module, self.before, self.after)


def key(module: str, before: str, after: str) -> tuple[str, str, str]:
    """The name of a change: module, and line before and after without white space."""
    return module, re.sub(r"\s+", "", before), re.sub(r"\s+", "", after)


def places_of(module: str, source: str) -> list[Place]:
    """Every place of a module, whose path from the root is `module`."""
    excluded, lines = _excluded(source), source.splitlines()
    nodes = list(ast_nodes(get_ast(source)))
    twins: Counter[tuple[str, str]] = Counter()
    found = []
    for name, operator in operators().items():
        spans = ((node, span) for node in nodes for span in operator.mutation_positions(node))
        for occurrence, (node, (start, _end)) in enumerate(spans):
            if _is_separator(name, node) or any(a <= start < b for a, b in excluded):
                continue
            code = lines[start[0] - 1].strip()
            twins[name, code] += 1
            found.append(Place(module, start[0], code, name, occurrence, twins[name, code]))
    return found


def mutant_at(place: Place, source: str) -> Mutant | None:
    """The changed module; None where the change is no valid code."""
    mutated: str | None = mutate_code(source, operators()[place.operator], place.occurrence)
    if mutated is None or not _compiles(mutated):
        return None
    pairs = zip(source.splitlines(), mutated.splitlines(), strict=False)
    before, after = next((a.strip(), b.strip()) for a, b in pairs if a != b)
    return Mutant(place, mutated, before, after)


def sample(root: Path, package: str, room: str, size: int, seed: int) -> list[Mutant]:
    """The mutants of a room that a seed draws, in random order."""
    sources = {module: (root / module).read_text() for module in modules_of(root, package, room)}
    places = [place for module, source in sources.items() for place in places_of(module, source)]
    places.sort(key=lambda place: place.rank(seed))
    drawn = (mutant_at(place, sources[place.module]) for place in places)
    return list(islice((mutant for mutant in drawn if mutant is not None), size))


def modules_of(root: Path, package: str, room: str) -> list[str]:
    """The modules of a room, as paths from the root; `__init__` files only hand names on."""
    paths = sorted((root / package / room).rglob("*.py"))
    return [path.relative_to(root).as_posix() for path in paths if path.name != "__init__.py"]


def _is_separator(operator: str, node: Any) -> bool:
    return operator.startswith("ReplaceBinary") and node.parent.type in SEPARATORS


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _excluded(source: str) -> list[Span]:
    """The spans of code that are not mutated."""
    lines = source.splitlines()

    def position(number: int, offset: int) -> Position:  # ast counts bytes, parso characters
        return number, len(lines[number - 1].encode()[:offset].decode())

    return [
        (position(n.lineno, n.col_offset), position(n.end_lineno, n.end_col_offset))
        for n in _unmutated(ast.parse(source))
    ]


def _unmutated(tree: ast.Module) -> Iterator[Any]:
    yield from (n for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign))
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as annotation):
                yield annotation
            case ast.AnnAssign():
                yield node.annotation
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from [*node.decorator_list, *([node.returns] if node.returns else [])]
            case ast.ClassDef():
                yield from node.decorator_list
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield node
            case ast.keyword(arg="strict"):
                yield node.value
