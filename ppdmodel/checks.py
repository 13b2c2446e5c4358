"""Checks for the places where only whole numbers make sense: commands, files, simulations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .errors import InvalidInputError

#: layers of a model that is measured: Llama 3.1 405B has 126
MOST_LAYERS = 1000
#: guesses per exit: beyond a hundred, an exit's next guess is nearly never right
MOST_K = 1000
#: resamples of a bootstrap: 1000 are usual
MOST_RESAMPLES = 10_000
#: numbers that a bootstrap may hold at once, of 8 bytes: 1 GiB
MOST_DRAWS = 2**27
#: the largest of the whole numbers that a command or a file names; of others, `MOST`
LIMITS: Mapping[str, int] = MappingProxyType(
    {
        "layers": MOST_LAYERS,
        "exit_layer": MOST_LAYERS,
        "exit_layers": MOST_LAYERS,
        "k": MOST_K,
        "k_max": MOST_K,
        "depth": MOST_LAYERS,
        "max_depth": MOST_LAYERS,
        "resamples": MOST_RESAMPLES,
        "max_new_tokens": 10**8,
        "threads": 4096,
        "rounds": 10_000,
        "epochs": 1000,
        "units_per_process": 1024,
    }
)
MOST = 10**15


def positive_integer(name: str, value: Any, fix: str = "", most: float = math.inf) -> int:
    """Return `value` as an `int`, or raise `InvalidInputError` with one line.

    >>> positive_integer("layers", 40)
    40
    """
    try:
        whole = not isinstance(value, bool) and int(value) == value
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or value < 1:
        raise InvalidInputError(
            f"{name} must be a positive integer; got {value}; {fix or 'give 1 or more'}"
        )
    if value > most:
        raise InvalidInputError(f"{name} must be at most {most}; got {value}; {fix or 'give less'}")
    return int(value)


def check_seed(seed: int) -> int:
    """Return a seed of 0 to 2^63 - 1, which every generator and every file takes, or raise."""
    if not 0 <= seed < 2**63:
        raise InvalidInputError(f"seed must be 0 or more; got {seed}; give one below 2^63")
    return seed


def check_draws(resamples: int, each: int, what: str) -> None:
    """Raise `InvalidInputError` where a bootstrap of `each` numbers would not fit in memory."""
    if resamples * each > MOST_DRAWS:
        raise InvalidInputError(
            f"{what} times the resamples must be at most {MOST_DRAWS}; got {each} and {resamples}; "
            "lower one of them"
        )


def real_number(name: str, value: Any, least: float, fix: str) -> Any:
    """Return `value`, or raise `InvalidInputError` unless it is one finite number >= `least`.

    >>> real_number("start_delay", 0.5, 0, "give it in layer times")
    0.5
    """
    try:
        holds = bool(least <= value < math.inf)
    except (TypeError, ValueError, RuntimeError):
        holds = False
    if not holds:
        raise InvalidInputError(
            f"{name} must be a number of at least {least:g}; got {value!r}; {fix}"
        )
    return value


def probability(name: str, value: Any, fix: str = "give a probability") -> Any:
    """Return `value`, or raise `InvalidInputError` unless it is one number in [0, 1].

    >>> probability("share", 0.5)
    0.5
    """
    try:
        holds = bool(0 <= value <= 1)
    except (TypeError, ValueError, RuntimeError):
        holds = False
    if not holds:
        raise InvalidInputError(f"{name} must lie in [0, 1]; got {value}; {fix}")
    return value


#: what must hold of an autocorrelation, and what it means where it does not
POSSIBLE_AUTOCORRELATION = (
    "autocorrelation must be at least -p/(1-p) and -(1-p)/p",
    "no sequence of matches at this match rate alternates that much",
)


def possible_autocorrelation(autocorrelation: Any, p_correct: Any) -> Any:
    """Whether a two-state Markov chain has this rate and lag-1 autocorrelation, elementwise.

    Its probabilities of a match after a miss, p(1 - rho), and after a match, p + rho(1 - p), must
    both lie in [0, 1].
    """
    after_miss = p_correct * (1 - autocorrelation)
    after_match = p_correct + autocorrelation * (1 - p_correct)
    return (after_miss <= 1 + 1e-12) & (after_match >= 0)


def check_schedule(layers: Any, exit_layer: Any, k: Any = 1, depth: Any = 1) -> None:
    """Raise unless all four are positive integers and `exit_layer <= layers`; depth may be None."""
    positive_integer("layers", layers)
    positive_integer("exit_layer", exit_layer)
    positive_integer("k", k)
    if depth is not None:
        positive_integer("depth", depth, "give 1 or more, or unlimited (None, inf)")
    if exit_layer > layers:
        raise InvalidInputError(
            f"exit_layer must not exceed layers; got {exit_layer}; "
            f"exit layers run from 1 to {layers}"
        )
