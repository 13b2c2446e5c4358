"""Comparison of PPD with other methods at one model's measured rates and equal budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import formulas
from ..checks import positive_integer, real_number
from ..errors import InvalidInputError
from ..formulas.contract import check
from ..progress import OnProgress, Progress, no_report, parts_of
from ..results.calibration import Calibration
from ..results.compatibility import check_timing
from ..results.hit_counts import HitCounts
from ..results.measurement import Measurement
from .costs import LayerCosts, TimedCosts
from .methods import (
    MethodSettings,
    PpdSettings,
    best_methods,
    beyond,
    gated,
    given,
    ppd,
    prompt_lookup,
    self_speculation,
    two_exits,
)
from .outcomes import Comparison, Method
from .selection import PromptSample, Rule, Selection, check_budget

if TYPE_CHECKING:
    from ..results.measurement import Guesses
    from ..results.timing import Timing

#: most drafted tokens per round of speculative decoding that are tried
MOST_DRAFTED = 16
#: most devices of tensor parallelism within one process of PPD
MOST_SPLIT = 8
MEASURED, FITTED, IDEAL = "measured", "fitted", "ideal"
#: fewest devices of the methods that have no search space
LEAST_UNITS = {"split layers": 2, "PPD, split layers": 4}
NOT_RECORDED = (
    "gated and two-exit PPD, self-speculation and prompt lookup: they need counts of the recorded "
    "tokens; fit a measurement folder, or give it"
)
OLDER = (
    "prompt lookup and gated self-speculation: the calibration is of an older version, which did "
    "not count them; fit again"
)
NO_CONTEXTS = (
    "the prompts in what prompt lookup searches: the tokens were recorded without them, and only "
    "generated text is searched; measure again"
)


def compare(
    source: Measurement | Calibration,
    *,
    guesses: Guesses | None = None,
    timing: Timing | None = None,
    max_compute: float = 2.0,
    max_units: int | None = None,
    acceptance_rate: float | None = None,
    draft_time: float = 0.1,
    efficiency: float = 1.0,
    link_time: float = 0.0,
    on_progress: OnProgress = no_report,
) -> Comparison:
    """Compare the best settings of all methods within one compute budget.

    Match rates of PPD and acceptance rates of self-speculation and prompt lookup are counted on the
    recorded tokens.
    Latency and compute count layers only, without heads and overheads, as ratios to plain decoding
    on one device; a timing adds two rows of measured times. The best of many settings looks better
    than it is (selection bias); `held_out` is cross-validated: settings are selected on 4/5 of the
    prompts and evaluated on the rest.

    Args:
        source: a measurement, or its calibration, which gives the same. A calibration without
            counts of recorded tokens leaves out gated and two-exit PPD, self-speculation and
            prompt lookup.
        guesses: of the measurement; a guess that two exits share then starts only once.
        timing: times of the measured model on one machine; a calibration has its own.
        max_compute: budget in multiples of plain decoding's layer executions; at least 1.
        max_units: most processes at once; None for any number.
        acceptance_rate: alpha of speculative decoding with a draft model; None leaves it out.
        draft_time: c, a step of that draft model over the target's, in time and in operations.
        efficiency: eta of tensor parallelism: its speed-up over the number of units, without the
            link.
        link_time: a small message between devices, in layer times. It delays each match of PPD;
            tensor parallelism has two all-reduces a layer by recursive doubling.
        on_progress: called with the progress.

    Raises:
        InvalidInputError: an argument is outside its domain, the timing of another model, or there
            is no exit before the last layer.
    """
    rule = Rule(max_compute=check_budget(max_compute))
    if max_units is not None:
        positive_integer("max_units", max_units)
    link = _Link.of(efficiency, link_time)
    if source.layers < 2:
        raise InvalidInputError(
            f"an exit must lie below the last layer; got {source.layers} layers; measure a deeper "
            "model"
        )
    timing = _checked_timing(source, timing)
    on_progress(Progress("counting", 0, 0.0))
    counts = HitCounts.of(source, guesses=guesses)
    spaces = _method_settings(counts, link.link_time)
    prompts = PromptSample(counts.tokens, counts.resamples, counts.seed)
    searches = len(spaces) + len(_splits(max_units)) + 2 * (timing is not None)
    search = _Search(prompts, rule, max_units, parts_of(on_progress, searches))
    found = [search.best(space, MEASURED) for space in spaces]
    methods = [given("plain decoding", "", 1.0, 1.0, 1, MEASURED)]
    methods += [method for method in found if method is not None]
    if acceptance_rate is not None:
        methods += _speculative(counts.layers, acceptance_rate, draft_time, rule)
    methods += _tensor_parallel(search, spaces[0], methods, counts.layers, link)
    least = {space.name: int(space.units.min()) for space in spaces} | LEAST_UNITS
    if timing is not None:
        costs = TimedCosts(timing, counts.seed)
        methods += _timed(search, counts, costs)
        least |= {"PPD, timed": costs.n_units, "split layers, timed": costs.n_units}
    left_out = [] if counts.recorded is not None else [NOT_RECORDED]
    if counts.recorded is not None and counts.recorded.lookups is None:
        left_out.append(OLDER)
    elif counts.recorded is not None and not counts.recorded.with_contexts:
        left_out.append(NO_CONTEXTS)
    left_out += beyond(least, max_units)
    if acceptance_rate is not None and "speculative" not in [m.name for m in methods]:
        left_out.append("speculative: no number of drafted tokens is faster within the compute")
    return Comparison(
        title=counts.title,
        model=counts.model,
        layers=counts.layers,
        n_tokens=int(counts.tokens.sum()),
        n_prompts=len(counts.tokens),
        max_compute=float(max_compute),
        max_units=max_units,
        methods=tuple(methods),
        left_out=tuple(left_out),
        provenance=source.provenance,
    )


def _checked_timing(source: Measurement | Calibration, timing: Timing | None) -> Timing | None:
    """A calibration's own timing, or the one given with a measurement."""
    if not isinstance(source, Calibration):
        if timing is not None:
            check_timing(timing, source.provenance, source.layers)
        return timing
    if timing is not None:
        raise InvalidInputError(
            "timing must be left out for a calibration; got timing; fit the measurement with it"
        )
    return source.timing


def _method_settings(counts: HitCounts, link_time: float) -> list[MethodSettings]:
    """PPD first, then the methods that need counts of the recorded tokens."""
    found = [ppd(PpdSettings.of(counts, LayerCosts(), link_time=link_time))]
    recorded = counts.recorded
    if recorded is not None:
        others = (
            gated(recorded, link_time),
            two_exits(recorded, link_time),
            self_speculation(recorded),
            prompt_lookup(recorded),
        )
        found += [space for space in others if space is not None]
    return found


@dataclass(frozen=True)
class _Search:
    """The prompts, rule and device limit under which each method's best setting is selected.

    Each search reports to the next of `reports`.
    """

    prompts: PromptSample
    rule: Rule
    max_units: int | None
    reports: Iterator[OnProgress]

    def best(self, method: MethodSettings, basis: str) -> Method | None:
        """The best setting; None where the method has none within the device limit."""
        settings, report = method.within(self.max_units), next(self.reports)
        selection = Selection(self.prompts, settings, on_progress=report)
        return next(iter(best_methods(selection, [self.rule], basis)), None)


def _speculative(
    layers: int, acceptance_rate: float, draft_time: float, rule: Rule
) -> list[Method]:
    """Speculative decoding at a given acceptance rate, with the best number of drafted tokens."""
    check("acceptance_rate", acceptance_rate)
    check("draft_time", draft_time)
    drafted = np.arange(1, MOST_DRAFTED + 1)
    latency = formulas.speculative_latency(acceptance_rate, layers, drafted, draft_time) / layers
    compute = formulas.speculative_compute(acceptance_rate, layers, drafted, draft_time) / layers
    best = int(rule.best(latency, compute))
    if best < 0:
        return []
    return [
        given(
            "speculative",
            f"alpha = {acceptance_rate:g}, c = {draft_time:g}, {drafted[best]} drafted",
            float(latency[best]),
            float(compute[best]),
            1,
            IDEAL,
            "needs a draft model; alpha and c as given; a pass over several tokens counts as one",
        )
    ]


@dataclass(frozen=True)
class _Link:
    """Efficiency and link of tensor parallelism."""

    efficiency: float
    link_time: float

    @classmethod
    def of(cls, efficiency: float, link_time: float) -> _Link:
        """Check the arguments."""
        if not 0 < real_number("efficiency", efficiency, 0, "give a share") <= 1:
            raise InvalidInputError(
                f"efficiency must lie in (0, 1]; got {efficiency}; 1 is perfect"
            )
        link = real_number("link_time", link_time, 0, "give it in layer times")
        return cls(efficiency, float(link))

    def latency(self, layers: int, units: int) -> float:
        """Ratio to plain decoding: two all-reduces a layer, ceil(log2 N) messages each."""
        messages = math.ceil(math.log2(units))
        time = formulas.tensor_parallel_linked_latency(
            layers, units, 1, messages * self.link_time, 0, self.efficiency
        )
        return float(time) / layers

    @property
    def words(self) -> str:
        """Efficiency and link time in words."""
        link = f", link {self.link_time:g}" if self.link_time else ""
        return f"efficiency {self.efficiency:g}{link}"


def _tensor_parallel(
    search: _Search, ppd_space: MethodSettings, methods: Sequence[Method], layers: int, link: _Link
) -> list[Method]:
    """Tensor parallelism on the devices of PPD, and PPD with tensor-parallel processes."""
    if not _splits(search.max_units):
        return []
    units = max([2, *(method.units for method in methods if method.name == "PPD")])
    latency = link.latency(layers, units)
    setting = f"{units} units, {link.words}"
    split = given("split layers", setting, latency, 1.0, units, IDEAL, "tensor parallel")
    return [split, *_hybrid(search, ppd_space, layers, link)]


def _splits(max_units: int | None) -> Sequence[int]:
    """The numbers of devices in one process of PPD that are tried."""
    if max_units == 1:
        return ()
    return range(2, MOST_SPLIT + 1) if max_units else (2,)


def _hybrid(search: _Search, ppd_space: MethodSettings, layers: int, link: _Link) -> list[Method]:
    """PPD with processes tensor parallel over n devices each, for the best n."""
    most = search.max_units
    found = []
    for n in _splits(most):
        inner = replace(search, max_units=most and most // n).best(ppd_space, MEASURED)
        if inner is not None and inner.units > 1:
            factor = link.latency(layers, n)
            found.append(
                Method(
                    "PPD, split layers",
                    f"{inner.setting}, {n} units each, {link.words}",
                    inner.latency.scaled(factor),
                    inner.held_out and inner.held_out.scaled(factor),
                    inner.compute,
                    n * inner.units,
                    IDEAL,
                    f"each process tensor parallel over {n} units",
                )
            )
    return sorted(found, key=lambda method: method.latency.value)[:1]


def _timed(search: _Search, counts: HitCounts, costs: TimedCosts) -> list[Method]:
    """The rows of measured times: PPD by the calibrated model, and tensor parallelism."""
    note = "measured times, heads and overheads included, against plain decoding in seconds"
    best = search.best(ppd(PpdSettings.of(counts, costs), "PPD, timed", note), FITTED)
    lookup = counts.recorded and prompt_lookup(counts.recorded, costs)
    other = search.best(lookup, FITTED) if lookup else None
    found = [method for method in (best, other) if method is not None]
    units, most = costs.n_units, search.max_units
    if most is not None and units > most:
        return found
    split = costs.timing.terms["split_latency_s"]
    row = given("split layers, timed", f"{units} units", split.value, 1.0, units, MEASURED, note)
    latency = replace(
        row.latency,
        ci_low=split.ci_low,
        ci_high=split.ci_high,
        method=f"median of {split.n} repetitions",
    )
    return [*found, replace(row, latency=latency.scaled(1 / costs.plain_s))]
