"""What every closed form checks before it computes, and how it treats its arguments.

The body of a closed form is assignments and one return, on operators and `ops`; whatever needs a
branch (domains, unlimited depth, overflow) happens here, once for all of them.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec

from .. import ops
from ..errors import InvalidInputError
from ..ops import Operand

P = ParamSpec("P")

#: parameter name -> (what must hold, the rule, the fix)
DOMAINS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "p_correct": ("lie in [0, 1]", lambda p: (p >= 0) & (p <= 1), "give a probability"),
    "layers": ("be a positive number", lambda d: (d > 0) & (d < math.inf), "give a layer count"),
    "exit_layer": (
        "be a positive number",
        lambda e: (e > 0) & (e < math.inf),
        "count layers from 1",
    ),
    "k": (
        "be a number of at least 1",
        lambda k: (k >= 1) & (k < math.inf),
        "give the guesses per exit",
    ),
    "depth": (
        "be a whole number of at least 1",
        lambda n: (n >= 1) & (n % 1 == 0),
        "use None for unlimited",
    ),
    "overhead": (
        "be a number of at least 0",
        lambda o: (o >= 0) & (o < math.inf),
        "give it in layer units",
    ),
}


def closed_form(function: Callable[P, Operand]) -> Callable[P, Operand]:
    """Check the domain of each argument by its name, settle `depth`, then compute.

    Integer arrays become float64, since powers of them would wrap around. A result too large for
    a float is `inf`, as it is for an array.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Operand:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        for name, value in values.items():
            if not (name == "depth" and value is None):
                check(name, value)
                values[name] = _as_real(value)
        if "exit_layer" in values:
            check_order(values["exit_layer"], values["layers"])
        if "depth" in values:
            values["depth"] = _settled_depth(**{n: values[n] for n in _SCHEDULE})
        try:
            with _quiet(values):
                return function(**values)  # type: ignore[call-arg]
        except OverflowError:
            return math.inf

    return checked


_SCHEDULE = ("layers", "exit_layer", "depth")


def check(name: str, value: Operand) -> None:
    """Raise `InvalidInputError` unless `value`, or each element of it, lies in `name`'s domain."""
    must, rule, fix = DOMAINS[name]
    _require(value, f"{name} must {must}", fix, rule)


def check_order(exit_layer: Operand, layers: Operand) -> None:
    """Raise `InvalidInputError` unless `exit_layer <= layers`, elementwise."""
    if not any(_is_unknown(x) for x in (exit_layer, layers)):
        fix = f"exit layers run from 1 to {layers}" if isinstance(layers, (int, float)) else ""
        must = "exit_layer must not exceed layers"
        _require(exit_layer, must, fix or "lower it", lambda e: e <= layers)


def _require(value: Operand, must: str, fix: str, rule: Callable[[Any], Any]) -> None:
    if _is_unknown(value):
        return
    try:
        holds = rule(value)
    except TypeError:
        raise InvalidInputError(f"{must}; got {value!r}; {fix}") from None
    if isinstance(holds, bool) or not hasattr(holds, "all"):
        if not holds:
            raise InvalidInputError(f"{must}; got {value}; {fix}")
    elif not holds.all():
        index = (
            tuple(int(i[0]) for i in (~holds).nonzero())
            if ops.is_array(holds)
            else (tuple(int(i) for i in (~holds).nonzero()[0]))
        )
        at = value[index] if getattr(value, "shape", ()) == holds.shape else value
        where = f" at index {index[0] if len(index) == 1 else index}" if index else ""
        raise InvalidInputError(f"{must}; got {at}{where}; {fix}")


def _is_unknown(value: Operand) -> bool:
    return ops.is_symbolic(value) and not value.is_number


def _as_real(value: Operand) -> Operand:
    if ops.is_array(value) and value.dtype.kind in "iub":
        return value.astype(float)
    if ops.is_tensor(value) and not value.is_floating_point():
        return value.to(sys.modules["torch"].get_default_dtype())
    return value


def _settled_depth(layers: Operand, exit_layer: Operand, depth: Operand) -> Operand:
    """The depth that a schedule can use: theory equation (2.2).

    A formula holds for any depth, so symbols keep theirs. Numbers are cut at the depth where
    nothing changes any more, so that a large one costs nothing.
    """
    if isinstance(depth, int) and depth == 1:
        return depth
    if any(_is_unknown(x) for x in (layers, exit_layer, depth)):
        return ops.ceil(layers / exit_layer) - 1 if depth is None else depth
    reach = ops.maximum(ops.ceil(layers / exit_layer) - 1, 1)
    return reach if depth is None else ops.minimum(depth, reach)


def _quiet(values: dict[str, Operand]) -> AbstractContextManager[Any]:
    if any(ops.is_array(value) for value in values.values()):
        quiet: AbstractContextManager[Any] = sys.modules["numpy"].errstate(over="ignore")
        return quiet
    return nullcontext()
