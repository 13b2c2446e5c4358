"""PPD beside the other methods, on one model's measured rates, at equal compute and units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import formulas
from ..checks import positive_integer, real_number
from ..errors import InvalidInputError
from ..formulas.contract import check
from ..results.calibration import Calibration
from ..results.compatibility import check_timing
from ..results.hit_counts import HitCounts
from ..results.intervals import Interval
from ..results.measurement import Measurement
from ..results.token_counts import TokenCounts
from .costs import Costs, LayerCosts, TimedCosts
from .methods import Family, gated, self_speculation, two_exits
from .outcomes import Comparison, Method
from .selection import GIVEN, Judge, Rule, given

if TYPE_CHECKING:
    from .._types import Floats, Ints
    from ..results.measurement import Guesses
    from ..results.timing import Timing

#: drafted tokens per round of speculative decoding that are tried
MOST_DRAFTED = 16
#: units over which one process of a hybrid is split, at most
MOST_SPLIT = 8
MEASURED, FITTED, IDEAL = "measured", "fitted", "ideal"
#: units that methods without settings of their own take, at least
LEAST_UNITS = {"split layers": 2, "PPD, split layers": 4}
NOT_RECORDED = (
    "gated and two-exit PPD and self-speculation: they need counts of the recorded tokens; fit a "
    "measurement folder, or give it"
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
) -> Comparison:
    """Put the best of each method within one compute budget on one table.

    Match rates are the model's own, and so is what its exits would draft for themselves: both are
    counted on the recorded tokens. Latency and compute are in layers, heads and overheads left out,
    as ratios to plain decoding on one unit; with a timing in the calibration two rows in seconds
    come beside them. The best of many settings looks better than it is: `held_out` is what
    settings chosen on 4/5 of the prompts do on the rest.

    Args:
        source: a measurement, or its calibration, which gives the same; of one from own tables or
            by an older version, gated and two exits and self-speculation are left out.
        guesses: those of the measurement: then a guess that both of two exits make starts once.
        timing: what a measured model costs on one machine; a calibration has its own.
        max_compute: budget in multiples of plain decoding's layer executions; at least 1.
        max_units: most processes held at once; None for any number.
        acceptance_rate: alpha of speculative decoding with a draft model; None leaves it out.
        draft_time: c, a step of that draft over one of the model, in time and in operations.
        efficiency: eta of splitting every layer over several units: the speed-up over their number,
            without the link.
        link_time: a small message between units, in layer times: a match of PPD waits for one,
            split layers for two all-reduces a layer by recursive doubling.

    Raises:
        InvalidInputError: an argument is outside its domain, or the timing of another model.
    """
    if not max_compute >= 1:
        raise InvalidInputError(
            f"max_compute must be at least 1; got {max_compute}; 2 allows twice the layers"
        )
    if max_units is not None:
        positive_integer("max_units", max_units)
    if not 0 < real_number("efficiency", efficiency, 0, "give a share") <= 1:
        raise InvalidInputError(f"efficiency must lie in (0, 1]; got {efficiency}; 1 is perfect")
    link = float(real_number("link_time", link_time, 0, "give it in layer times"))
    if isinstance(source, Calibration):
        if timing is not None:
            raise InvalidInputError(
                "timing must be left out for a calibration; got timing; fit the measurement with it"
            )
        timing = source.timing
    elif timing is not None:
        check_timing(timing, source.provenance, source.layers)
    counts = HitCounts.of(source, guesses=guesses)
    judge = _judge(counts, Rule(max_compute=float(max_compute)), max_units)
    methods = [given("plain decoding", "", 1.0, 1.0, 1, MEASURED)]
    families = [_ppd(counts, LayerCosts(), link_time=link)]
    if counts.recorded is not None:
        families += _recorded(counts.recorded, link)
    methods += [m for m in (judge.best(family, MEASURED) for family in families) if m is not None]
    if acceptance_rate is not None:
        methods += _speculative(counts.layers, acceptance_rate, draft_time, max_compute)
    ppd = next((m for m in methods if m.name == "PPD" and m.units > 1), None)
    methods += _split(counts, judge.rule, ppd, _Link(efficiency, link), max_units)
    least = {family.name: int(family.units.min()) for family in families} | LEAST_UNITS
    if timing is not None:
        costs = TimedCosts(timing, counts.seed)
        methods += _timed(judge, counts, costs)
        least |= {"PPD, timed": costs.n_units, "split layers, timed": costs.n_units}
    left_out = [] if counts.recorded is not None else [NOT_RECORDED]
    left_out += _beyond(max_units, least, _names(methods))
    if acceptance_rate is not None and "speculative" not in _names(methods):
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


def _names(methods: Sequence[Method]) -> list[str]:
    return [method.name for method in methods]


def _beyond(max_units: int | None, least: Mapping[str, int], there: Sequence[str]) -> list[str]:
    """Methods that are not there because they take more units than there may be."""
    return [
        f"{name}: it takes {units} units or more"
        for name, units in least.items()
        if max_units is not None and units > max_units and name not in there
    ]


def _judge(counts: HitCounts, rule: Rule, max_units: int | None) -> Judge:
    """Who finds the best settings under a rule."""
    return Judge(counts.tokens, counts.resamples, counts.seed, rule, max_units)


def _recorded(recorded: TokenCounts, link: float) -> list[Family]:
    families = (gated(recorded, link), two_exits(recorded, link), self_speculation(recorded))
    return [family for family in families if family is not None]


def _ppd(
    counts: HitCounts, costs: Costs, name: str = "PPD", note: str = "", link_time: float = 0.0
) -> Family:
    """PPD at one exit and depth 1, every setting; a message delays what an exit starts."""
    grid = costs.grid(counts.layers, counts.hits.shape[2], 1)
    if counts.exit_layers is not None:
        grid = grid.only(np.isin(grid.exit_layer, counts.exit_layers))
    if counts.ks is not None:
        grid = grid.only(np.isin(grid.k, counts.ks))
    hits = counts.hits[:, grid.exit_layer - 1, grid.k - 1]
    tokens = counts.tokens
    started = replace(grid, exit_layer=np.minimum(grid.exit_layer + link_time, grid.layers))

    def evaluate(weights: Ints, at: Ints) -> tuple[Floats, Floats]:
        p = (weights @ hits[:, at]) / (weights @ tokens)[:, None]
        some = started.only(at) if link_time else grid.only(at)
        if len(weights) > 1:
            return costs.drawn_latency(some, p), costs.drawn_compute(some, p)
        return costs.latency(some, p), costs.compute(some, p)

    return Family(
        name,
        [f"exit {e}, k = {k}" for e, k in zip(grid.exit_layer, grid.k, strict=True)],
        costs.units(grid),
        evaluate,
        note,
    )


def _speculative(
    layers: int, acceptance_rate: float, draft_time: float, max_compute: float
) -> list[Method]:
    """Speculative decoding with a draft model of a given acceptance rate, its best block."""
    check("acceptance_rate", acceptance_rate)
    check("draft_time", draft_time)
    drafted = np.arange(1, MOST_DRAFTED + 1)
    latency = formulas.speculative_latency(acceptance_rate, layers, drafted, draft_time) / layers
    compute = formulas.speculative_compute(acceptance_rate, layers, drafted, draft_time) / layers
    best = int(Rule(max_compute=max_compute).best(latency, compute))
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
    """What splitting layers over units reaches."""

    efficiency: float
    link_time: float

    def latency(self, layers: int, units: int) -> float:
        """Over plain decoding's: two all-reduces a layer, ceil(log2 N) messages each."""
        messages = math.ceil(math.log2(units))
        time = formulas.tensor_parallel_linked_latency(
            layers, units, 1, messages * self.link_time, 0, self.efficiency
        )
        return float(time) / layers

    @property
    def words(self) -> str:
        """Its numbers."""
        link = f", link {self.link_time:g}" if self.link_time else ""
        return f"efficiency {self.efficiency:g}{link}"


def _split(
    counts: HitCounts, rule: Rule, ppd: Method | None, link: _Link, max_units: int | None
) -> list[Method]:
    """Every layer split over the units that PPD holds, and PPD of processes that are split."""
    units = ppd.units if ppd is not None else min(max_units or 2, 2)
    if units < 2:
        return []
    latency = link.latency(counts.layers, units)
    found = [
        given(
            "split layers", f"{units} units, {link.words}", latency, 1.0, units, IDEAL,
            "tensor parallel",
        )
    ]  # fmt: skip
    return found + _hybrid(counts, rule, link, max_units)


def _hybrid(counts: HitCounts, rule: Rule, link: _Link, max_units: int | None) -> list[Method]:
    """PPD whose processes are each split over n units, with the best n within the units."""
    each = range(2, min(max_units // 2, MOST_SPLIT) + 1) if max_units else (2,)
    found = []
    for n in each:
        ppd = _judge(counts, rule, max_units and max_units // n).best(
            _ppd(counts, LayerCosts(), link_time=link.link_time), MEASURED
        )
        if ppd is None or ppd.units == 1:
            continue
        factor = link.latency(counts.layers, n)
        found.append(
            Method(
                "PPD, split layers",
                f"{ppd.setting}, {n} units each, {link.words}",
                ppd.latency.scaled(factor),
                ppd.held_out and ppd.held_out.scaled(factor),
                ppd.compute,
                n * ppd.units,
                IDEAL,
                f"each process tensor parallel over {n} units",
            )
        )
    return sorted(found, key=lambda method: method.latency.value)[:1]


def _timed(judge: Judge, counts: HitCounts, costs: TimedCosts) -> list[Method]:
    """The rows in seconds: PPD by the calibrated model, and what the machine did when split."""
    measured = costs.timing.terms["split_latency_s"]
    note = "measured times, heads and overheads included, against plain decoding in seconds"
    about = f"median of {measured.n} repetitions"
    split = Interval(measured.value, measured.ci_low, measured.ci_high, 0, 0, about)
    split = split.scaled(1 / costs.plain_s)
    one = Interval(1.0, 1.0, 1.0, 0, 0, GIVEN)
    units = costs.n_units
    found = []
    ppd = judge.best(_ppd(counts, costs, "PPD, timed", note), FITTED)
    if ppd is not None:
        found.append(ppd)
    if judge.max_units is None or units <= judge.max_units:
        found.append(
            Method(
                "split layers, timed", f"{units} units", split, None, one, units,
                MEASURED, note,
            )
        )  # fmt: skip
    return found
