"""Results of decisions: settings, choices and methods with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..results.intervals import Interval
from ..results.tabular import Frame


@dataclass(frozen=True)
class Setting:
    """One way to run PPD on a measured model; ratios are to plain decoding on one unit.

    `latency_per_token_s` is there where times were measured.
    """

    exit_layer: int
    k: int
    depth: int
    p_correct: Interval
    normalized_latency: Interval
    normalized_compute: Interval
    peak_units: int
    latency_per_token_s: Interval | None = None


@dataclass(frozen=True)
class Method:
    """One way to decode, on the axes of all others: ratios to plain decoding on one unit.

    Attributes:
        name: the method.
        setting: its parameters in words.
        latency: time per token.
        held_out: the same cross-validated, on prompts that did not select the setting; None where
            none was selected or there are too few prompts.
        compute: layer executions per token, heads left out unless times were measured.
        units: devices or processes held at once.
        basis: "measured": counted on recorded tokens, or timed; "fitted": times of the calibrated
            model; "ideal": assumed.
        note: what to know of the number.
        held_out_compute: as `held_out`, the layer executions.
    """

    name: str
    setting: str
    latency: Interval
    held_out: Interval | None
    compute: Interval
    units: int
    basis: str
    note: str = ""
    held_out_compute: Interval | None = None


@dataclass(frozen=True)
class Choice:
    """The best setting under one compute budget or at one price, and how sure that is.

    Attributes:
        max_compute: the budget, in multiples of plain decoding; None for a price.
        price: the most extra layer executions that a layer time saved is worth; None for a budget.
        setting: None where plain decoding is the best.
        held_out_latency: normalized latency, cross-validated: on prompts that did not select the
            setting.
        held_out_compute: normalized compute there: what the choice will cost.
        chosen_share: share of the bootstrap resamples that select the same setting.
        runner_up: the best setting but one.
        others: the best PPD behind a gate and with two exits under the same rule, in layers.
        break_even: match rate above which this exit and k save time at all; 0 where only layers
            are counted, None where no rate does.
    """

    max_compute: float | None
    price: float | None
    setting: Setting | None
    held_out_latency: Interval | None
    chosen_share: float | None
    runner_up: Setting | None
    break_even: float | None = None
    held_out_compute: Interval | None = None
    others: tuple[Method, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of a decision's table: a setting of the frontier, or another policy's best."""

    policy: str
    setting: str
    normalized_latency: Interval
    normalized_compute: Interval
    peak_units: int
    exit_layer: int | None = None
    k: int | None = None
    depth: int | None = None
    p_correct: Interval | None = None
    latency_per_token_s: Interval | None = None
    max_compute: float | None = None
    price: float | None = None
    held_out_latency: Interval | None = None
    held_out_compute: Interval | None = None

    @classmethod
    def of_setting(cls, setting: Setting) -> Row:
        """A setting of the frontier."""
        values = {field.name: getattr(setting, field.name) for field in fields(setting)}
        words = f"exit {setting.exit_layer}, k = {setting.k}"
        return cls(policy="PPD", setting=words, **values)

    @classmethod
    def of_method(cls, method: Method, choice: Choice) -> Row:
        """The best of a policy under the rule of a choice."""
        return cls(
            policy=method.name,
            setting=method.setting,
            normalized_latency=method.latency,
            normalized_compute=method.compute,
            peak_units=method.units,
            max_compute=choice.max_compute,
            price=choice.price,
            held_out_latency=method.held_out,
            held_out_compute=method.held_out_compute,
        )


@dataclass(frozen=True)
class Decision(Frame):
    """The answer of `optimize`: a choice per budget and price, and the frontier over all settings.

    `costs` says what settings were judged by: "layers", "measured times" or "ideal times". With
    times, `plain_latency_s` is plain decoding on one unit, and `split_latency` that of all units
    on each token over it. `left_out` says which policies were not judged, and why.
    """

    model: str
    layers: int
    n_tokens: int
    n_prompts: int
    settings: int
    choices: tuple[Choice, ...]
    frontier: tuple[Setting, ...]
    provenance: Mapping[str, Any]
    costs: str = "layers"
    plain_latency_s: float | None = None
    split_latency: float | None = None
    left_out: tuple[str, ...] = ()

    def _rows(self) -> Sequence[Row]:
        of_frontier = [Row.of_setting(setting) for setting in self.frontier]
        return of_frontier + [Row.of_method(m, c) for c in self.choices for m in c.others]


@dataclass(frozen=True)
class Comparison(Frame):
    """The answer of `compare`: the best of each method within one budget."""

    title: str
    model: str
    layers: int
    n_tokens: int
    n_prompts: int
    max_compute: float
    max_units: int | None
    methods: tuple[Method, ...]
    left_out: tuple[str, ...]
    provenance: Mapping[str, Any]

    def _rows(self) -> Sequence[Any]:
        return self.methods
