"""Argument checks that all closed forms share, and the decorator that applies them.

The body of a closed form is assignments and one return, on operators and `ops`; whatever needs a
branch (domains, unlimited depth, overflow) happens here, once for all of them.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from typing import Any, ParamSpec

from ..checks import POSSIBLE_AUTOCORRELATION, possible_autocorrelation
from ..errors import InvalidInputError
from . import ops
from .ops import Operand
from .registry import register

P = ParamSpec("P")

_LARGEST = sys.float_info.max
#: most tokens in flight for which a formula is computed: far deeper than any model
_DEEPEST = 10_000

#: the condition in words, its test, and the fix that an error message names
Domain = tuple[str, Callable[[Any], Any], str]


def _probability(fix: str) -> Domain:
    return "lie in [0, 1]", lambda p: (p >= 0) & (p <= 1), fix


def _positive(fix: str) -> Domain:
    return "be a positive number", lambda x: (x > 0) & (x <= _LARGEST), fix


def _at_least(least: int, fix: str) -> Domain:
    return f"be a number of at least {least}", lambda x: (x >= least) & (x <= _LARGEST), fix


def _whole(least: int, fix: str) -> Domain:
    return (
        f"be a whole number of at least {least}",
        lambda n: (n >= least) & (n % 1 == 0),
        fix,
    )


#: domains by parameter name: a name means the same in every closed form
DOMAINS: dict[str, Domain] = {
    "p_correct": _probability("give a probability"),
    "layers": _positive("give a layer count"),
    "exit_layer": _positive("count layers from 1"),
    "k": _at_least(1, "give the guesses per exit"),
    "depth": _whole(1, "use None for unlimited"),
    "overhead": _at_least(0, "give it in layer units"),
    "tokens": _whole(1, "give 1 or more"),
    "matches": _at_least(0, "count the tokens after the first that a guess held"),
    "groups": _at_least(0, "count the matches that complete D+1 of their run"),
    "autocorrelation": (
        "lie in [-1, 1)",
        lambda r: (r >= -1) & (r < 1),
        "0 means independent matches",
    ),
    "share": _probability("give the share of tokens that pass the gate"),
    "exponent": _positive("give a > 0 of p_correct = (e/d)**a"),
    "price": _at_least(0, "give extra layer executions per layer time saved"),
    "acceptance_rate": _probability("give the rate at which drafted tokens are accepted"),
    "draft_tokens": _whole(0, "0 means plain decoding"),
    "draft_time": _at_least(0, "give a draft step's time over a target step's"),
    "draft_compute": _at_least(0, "give a draft step's operations over a target step's"),
    "reuse": _probability("1: verification reuses the drafted tokens' layers, 0: it does not"),
    "found_rate": _probability("give the share of rounds with a draft"),
    "verification_time": _at_least(0, "give a pass over a draft's tokens over one of one token"),
    "block_tokens": _whole(1, "give the tokens drafted during a target step"),
    "stages": _whole(1, "give the pipeline's stages"),
    "draft_layers": _at_least(0, "give the draft's time per cycle in layer times"),
    "tokens_per_round": _at_least(1, "a round always yields one token"),
    "tree_depth": _whole(0, "give the drafted levels below the root"),
    "tree_nodes": _whole(1, "count the root"),
    "drafted_from": _whole(0, "count the nodes that have children"),
    "units": _whole(1, "give the devices"),
    "efficiency": _positive("1 is perfect splitting"),
    "layer_time": _positive("give the time of a layer while the other unit waits"),
    "busy_layer_time": _positive("give the time of a layer while sub-processes run"),
    "batch_layer_time": _positive("give the time of a layer of all k sub-processes"),
    "head_time": _at_least(0, "give it in the unit of layer_time"),
    "plain_head_time": _at_least(0, "give it in the unit of layer_time"),
    "exit_time": _at_least(0, "give it in the unit of layer_time"),
    "token_time": _at_least(0, "give it in the unit of layer_time"),
    "start_delay": _at_least(0, "give it in the unit of layer_time"),
    "promotion_delay": _at_least(0, "give it in the unit of layer_time"),
    "link_time": _at_least(0, "give it in the unit of layer_time"),
    "all_reduce_time": _at_least(0, "give it in the unit of layer_time"),
    "all_reduce_messages": _at_least(1, "two units exchange theirs in 1"),
    "messages_per_match": _at_least(0, "1 is the state at the exit"),
    "weights": _positive("count the numbers in the matrices"),
    "rows": _whole(1, "give the tokens in the batch"),
    "bytes_per_weight": _positive("16 bits are 2"),
    "bytes_per_second": _positive("give what the memory delivers"),
    "flops_per_second": _positive("give floating-point operations"),
    "unfinished": _probability("give the share of a batch layer that is left at a verdict"),
}


def closed_form(
    *, equation: str, page: str
) -> Callable[[Callable[P, Operand]], Callable[P, Operand]]:
    """Register a closed form, and check its arguments at each call before it computes.

    The domain of each argument follows from its name. Integer arrays become float64, since powers
    of them would wrap around. A result too large for a float is `inf`, as it is for an array.

    Args:
        equation: number of its equation in `theory/`, such as "2.1".
        page: the page that derives it, such as "02-latency".
    """

    def decorate(function: Callable[P, Operand]) -> Callable[P, Operand]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> Operand:
            bound = _signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            values = _checked(bound.arguments)
            try:
                with quiet(values.values()):
                    return function(**values)  # type: ignore[call-arg]
            except OverflowError:
                return math.inf

        return register(checked, equation=equation, page=page, is_recursion=False)

    return decorate


#: cached and lazy, because inspecting a signature takes as long as computing some formulas
_signature = functools.cache(inspect.signature)
_SCHEDULE = ("layers", "exit_layer", "depth")


def _checked(values: dict[str, Operand]) -> dict[str, Operand]:
    """The checked arguments of a closed form: floating point, `depth` cut as in (2.2)."""
    for name, value in values.items():
        if not (name == "depth" and value is None):
            array = value.to_numpy() if hasattr(value, "to_numpy") else value  # pandas
            check(name, array)
            values[name] = as_real(array)
    check_kinds(values)
    if "exit_layer" in values:
        check_order(values["exit_layer"], values["layers"])
    if "autocorrelation" in values:
        check_autocorrelation(values["autocorrelation"], values["p_correct"])
    if "depth" in values:
        values["depth"] = _settled_depth(**{name: values[name] for name in _SCHEDULE})
    return values


def check(name: str, value: Operand, shown: str = "") -> None:
    """Raise `InvalidInputError` unless `value`, or each element of it, lies in `name`'s domain.

    `shown` is the parameter's name in the message, `name` by default.
    """
    must, rule, fix = DOMAINS[name]
    require(value, f"{shown or name} must {must}", fix, rule)


def check_order(exit_layer: Operand, layers: Operand) -> None:
    """Raise `InvalidInputError` unless `exit_layer <= layers`, elementwise."""
    if not any(is_unknown(x) for x in (exit_layer, layers)):
        fix = f"exit layers run from 1 to {layers}" if isinstance(layers, (int, float)) else ""
        must = "exit_layer must not exceed layers"
        require(exit_layer, must, fix or "lower it", lambda e: e <= layers)


def check_autocorrelation(autocorrelation: Operand, p_correct: Operand) -> None:
    """Raise `InvalidInputError` unless a Markov chain of matches has this correlation."""
    if not any(is_unknown(x) for x in (autocorrelation, p_correct)):
        require(
            autocorrelation,
            *POSSIBLE_AUTOCORRELATION,
            lambda r: possible_autocorrelation(r, p_correct),
        )


def require(value: Operand, must: str, fix: str, rule: Callable[[Any], Any]) -> None:
    """Raise `InvalidInputError` unless `rule` holds for `value`, or for each element of it.

    The message names the first element that fails and its index. Symbols pass.
    """
    if is_unknown(value):
        return
    if ops.is_array(value) and value.dtype.kind not in "fiub":
        raise InvalidInputError(f"{must}; got an array of {value.dtype}; give real numbers")
    try:
        with quiet([value]):
            holds = rule(value)
    except TypeError:
        is_list = isinstance(value, (list, tuple))
        hint = "make an array of it: numpy.asarray" if is_list else fix
        raise InvalidInputError(f"{must}; got {value!r}; {hint}") from None
    if not getattr(holds, "shape", ()):
        if not holds:
            raise InvalidInputError(f"{must}; got {value}; {fix}")
    elif not holds.all():
        package = sys.modules["torch" if ops.is_tensor(holds) else "numpy"]
        index = tuple(package.argwhere(~holds)[0].tolist())
        is_one = not getattr(value, "shape", ())
        element = value if is_one else package.broadcast_to(value, holds.shape)[index]
        first, *others = index
        where = index if others else first
        raise InvalidInputError(f"{must}; got {element} at index {where}; {fix}")


def check_kinds(values: dict[str, Operand]) -> None:
    """Raise `InvalidInputError` unless the arguments are of one kind and their shapes broadcast.

    Arrays, tensors and symbols each mix with numbers, but not with each other.
    """
    shaped = {name: x for name, x in values.items() if getattr(x, "shape", ())}
    kinds = {"tensors" if ops.is_tensor(x) else "arrays" for x in shaped.values()}
    kinds |= {"symbols" for x in values.values() if is_unknown(x)}
    if len(kinds) > 1:
        raise InvalidInputError(
            f"arguments must be of one kind beside plain numbers; got {' and '.join(sorted(kinds))}"
            "; make them the same"
        )
    for sizes in zip_longest(*(x.shape[::-1] for x in shaped.values()), fillvalue=1):
        if len({*sizes} - {1}) > 1:
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in shaped.items())
            raise InvalidInputError(
                f"the shapes of the arguments must broadcast; got {shapes}; give them equal "
                "lengths, or axes of their own"
            )


def listed(name: str, values: Any, what: str) -> list[Operand]:
    """`values` as a list with an element for each exit or rank."""
    if isinstance(values, (str, bytes, Mapping, Set)) or not getattr(values, "shape", True):
        given = None
    else:
        given = list(values) if hasattr(values, "__len__") else None
    if not given:
        raise InvalidInputError(
            f"{name} must have one value per {what}; got {values!r}; give a list, also of one"
        )
    return [as_real(x.to_numpy() if hasattr(x, "to_numpy") else x) for x in given]


def is_unknown(value: Operand) -> bool:
    """Whether `value` holds a symbol, so that no domain can be checked."""
    return ops.is_symbolic(value) and not value.is_number


def as_real(value: Operand) -> Operand:
    """Floating point for arrays and tensors of integers or booleans; anything else as it is."""
    if ops.is_array(value) and value.dtype.kind in "iub":
        return value.astype(float)
    if ops.is_tensor(value) and not value.is_floating_point():
        return value.to(sys.modules["torch"].get_default_dtype())
    return value


def _settled_depth(layers: Operand, exit_layer: Operand, depth: Operand) -> Operand:
    """The depth, at most the largest that changes the schedule: theory equation (2.2).

    A formula holds for any depth, so symbols are kept. Numbers are cut, so that a larger one
    costs nothing.
    """
    if isinstance(depth, int) and depth == 1:
        return depth
    if any(is_unknown(x) for x in (layers, exit_layer, depth)):
        return ops.ceil(layers / exit_layer) - 1 if depth is None else depth
    reach = ops.maximum(ops.ceil(layers / exit_layer) - 1, 1)
    settled = reach if depth is None else ops.minimum(depth, reach)
    require(
        settled,
        f"the tokens in flight must not exceed {_DEEPEST}",
        "raise exit_layer or lower depth",
        lambda n: n <= _DEEPEST,
    )
    return settled


def quiet(values: Iterable[Operand]) -> AbstractContextManager[Any]:
    """Without NumPy's warnings of overflow, where one of the values is an array."""
    if any(map(ops.is_array, values)):
        found: AbstractContextManager[Any] = sys.modules["numpy"].errstate(
            over="ignore", invalid="ignore"
        )
        return found
    return nullcontext()
