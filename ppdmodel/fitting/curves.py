r"""Parametric families of match-rate curves p(x, k) over relative depth x = e/d and k.

Each gives log(1 - p) and its gradient. Within the bounds of the parameters, p increases with x and
with k, and reaches 1 at the last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from .._types import Floats

#: parameters, x and k -> log(1 - p), and its gradient [parameters, ...] for x below 1
LogMiss = Callable[["Floats", "Floats", "Floats"], "tuple[Floats, Floats]"]


#: start, lower and upper bound of each parameter, alike in all families
PARAMETERS = {
    "log_steepness": (1.0, -3.0, 5.0),
    "log_exponent": (1.0, -3.0, 5.0),
    "exponent_gain": (0.2, 0.0, 3.0),
    "log_weight": (-0.5, -8.0, 5.0),
    "weight_gain": (0.2, 0.0, 3.0),
    "floor_logit": (-3.0, -15.0, 5.0),
    "floor_gain": (1.0, 0.0, 6.0),
    "k_curvature": (0.3, 0.01, 3.0),
    "tail": (0.1, 0.0, 3.0),
    "tail_gain": (0.3, 0.0, 6.0),
}


@dataclass(frozen=True)
class CurveFamily:
    """A family of curves: its parameters, and log(1 - p)."""

    name: str
    parameters: tuple[str, ...]
    evaluate: LogMiss

    def log_miss(self, theta: Floats, x: Floats, k: Floats) -> Floats:
        """log(1 - p), broadcast; -inf at the last layer."""
        x, k = np.broadcast_arrays(x, k)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.evaluate(theta, x, k)[0]

    @property
    def start(self) -> Floats:
        """Starting values of the search."""
        return np.array([PARAMETERS[name][0] for name in self.parameters])

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Lower and upper bound of each parameter."""
        return [PARAMETERS[name][1:] for name in self.parameters]


def _floor(f: float, g: float, kappa: Floats) -> tuple[Floats, Floats]:
    """log(1 - floor) with logit floor = f + g kappa, and its derivative by that logit."""
    logit = f + g * kappa
    return -np.logaddexp(0, logit), -np.exp(-np.logaddexp(0, -logit))


def _box_cox(h: float, k: Floats) -> tuple[Floats, Floats]:
    """The Box-Cox transform (1 - k^-h) / h of k, and its derivative by h."""
    log_k = np.log(k)
    decay = np.exp(-h * log_k)
    kappa = (1 - decay) / h
    return kappa, (log_k * decay - kappa) / h


def _kumaraswamy(theta: Floats, x: Floats, k: Floats) -> tuple[Floats, Floats]:
    """1 - p = (1 - f_k) (1 - x^a)^(b_k)."""
    log_a, log_b, c, f, g, h = theta
    kappa, kappa_by_h = _box_cox(h, k)
    u = x ** np.exp(log_a)
    power = np.exp(log_b + c * kappa)
    log_rest = np.log1p(-u)
    floor, by_f = _floor(f, g, kappa)
    by_a = -power * u * np.log(x) * np.exp(log_a) / (1 - u)
    by_b = power * log_rest
    by_h = (by_b * c + by_f * g) * kappa_by_h
    return power * log_rest + floor, np.stack([by_a, by_b, by_b * kappa, by_f, by_f * kappa, by_h])


def _power(theta: Floats, x: Floats, k: Floats) -> tuple[Floats, Floats]:
    """1 - p = (1 - f_k) (1 - x^(a_k)), log a_k = a - c kappa."""
    log_a, c, f, g, h = theta
    kappa, kappa_by_h = _box_cox(h, k)
    power = np.exp(log_a - c * kappa)
    u = x**power
    floor, by_f = _floor(f, g, kappa)
    by_a = -u * np.log(x) * power / (1 - u)
    by_h = (-by_a * c + by_f * g) * kappa_by_h
    return np.log1p(-u) + floor, np.stack([by_a, -by_a * kappa, by_f, by_f * kappa, by_h])


def _rank_tail(theta: Floats, x: Floats, k: Floats) -> tuple[Floats, Floats]:
    """1 - p = (1 - f) (1 - x^a)^b k^-(s + t x): a power law in k, steeper at later layers."""
    log_a, log_b, f, s, t = theta
    u, log_k = x ** np.exp(log_a), np.log(k)
    power = np.exp(log_b)
    log_rest = np.log1p(-u)
    floor, by_f = _floor(f, 0.0, log_k)
    by_a = -power * u * np.log(x) * np.exp(log_a) / (1 - u)
    by_b = power * log_rest
    value = by_b + floor - (s + t * x) * log_k
    slopes = np.broadcast_arrays(by_a, by_b, by_f, -log_k, -log_k * x)
    return value, np.stack(slopes)


_FLOORED = ("floor_logit", "floor_gain", "k_curvature")
FAMILIES = {
    family.name: family
    for family in (
        CurveFamily(
            "floored Kumaraswamy",
            ("log_steepness", "log_weight", "weight_gain", *_FLOORED),
            _kumaraswamy,
        ),
        CurveFamily("floored power", ("log_exponent", "exponent_gain", *_FLOORED), _power),
        CurveFamily(
            "rank tail",
            ("log_steepness", "log_weight", "floor_logit", "tail", "tail_gain"),
            _rank_tail,
        ),
    )
}


def family_of(name: str) -> CurveFamily:
    """Look a family up by name.

    Raises:
        InvalidInputError: there is none of that name.
    """
    if name not in FAMILIES:
        raise InvalidInputError(
            f"the family must be one of {', '.join(FAMILIES)}; got {name!r}; fit again"
        )
    return FAMILIES[name]
