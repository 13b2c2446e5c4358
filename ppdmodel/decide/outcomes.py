"""Results of decisions: settings, choices and methods with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..results.intervals import Interval
from ..results.tabular import Frame


@dataclass(frozen=True)
class Setting:
    """One setting of PPD on a measured model; ratios are to plain decoding on one device.

    `latency_per_token_s` is None where no times were measured.
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
    """One decoding method; latency and compute are ratios to plain decoding on one device.

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
        note: a remark on the numbers.
        held_out_compute: compute, cross-validated as `held_out`.
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
    """The best setting under one compute budget or at one price, with its uncertainty.

    Attributes:
        max_compute: the budget, in multiples of plain decoding; None for a price.
        price: the most extra layer executions that a layer time saved is worth; None for a budget.
        setting: None where plain decoding is the best.
        held_out_latency: normalized latency, cross-validated: on prompts that did not select the
            setting.
        held_out_compute: normalized compute, cross-validated in the same way.
        chosen_share: share of the bootstrap resamples that select the same setting.
        runner_up: the second-best setting.
        others: the best gated and two-exit PPD under the same rule, in layers.
        break_even: match rate above which this exit and k save time; 0 where only layers are
            counted, None if they never do.
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
    """A row of a decision's table: a setting of the frontier, or another policy's best."""

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
        words = f"exit {setting.exit_layer}, k = {setting.k}"
        return cls(policy="PPD", setting=words, **vars(setting))

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
    """The result of `optimize`: a choice per budget and price, and the frontier over all settings.

    `costs` names the cost model: "layers", "measured times" or "ideal times". With times,
    `plain_latency_s` is plain decoding on one device, and `split_latency` tensor parallelism's
    ratio to it. `left_out` names the policies left out, and why.
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
    """The result of `compare`: the best of each method within one budget."""

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
