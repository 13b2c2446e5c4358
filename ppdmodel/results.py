"""The results that travel between the rooms of the package: frozen, with None for absent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .checks import check_schedule, positive_integer, real_number
from .errors import InvalidInputError
from .framing import Frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .confidence import Reliability
    from .recorded import Recorded

    Floats = NDArray[np.floating[Any]]
    Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Interval:
    """A number with its interval, and what the interval rests on.

    The ends are NaN, and null in JSON, where there is none: of one prompt, or of a parameter that
    the data do not determine.
    """

    value: float
    ci_low: float
    ci_high: float
    n_tokens: int
    n_prompts: int
    method: str

    def scaled(self, factor: float) -> Interval:
        """The same in another unit."""
        low, high = factor * self.ci_low, factor * self.ci_high
        return replace(self, value=factor * self.value, ci_low=low, ci_high=high)


@dataclass(frozen=True)
class Policy:
    """How PPD is run: where guesses are read, how many, how deep, and behind which gate.

    Args:
        exit_layer: exit layer, or several in increasing order.
        k: guesses started at each exit; one number means the same at every exit.
        depth: tokens in flight beyond the one being verified; None is unlimited.
        gate: start guesses only where the exit's top probability is at least this; None: always.

    Raises:
        InvalidInputError: one of them is out of its domain.

    >>> Policy(exit_layer=(10, 20), k=2).guesses
    (2, 2)
    """

    exit_layer: int | Sequence[int]
    k: int | Sequence[int] = 1
    depth: int | None = 1
    gate: float | None = None

    def __post_init__(self) -> None:
        for name in ("exit_layer", "k"):  # sequences of any kind as tuples
            value = getattr(self, name)
            object.__setattr__(self, name, value if _is_one(value) else _each(value))
        exits = self.exits
        for exit_layer in exits:
            positive_integer("exit_layer", exit_layer)
        for guesses in self.guesses:
            positive_integer("k", guesses)
        if len(self.guesses) != len(exits):
            raise InvalidInputError(
                f"k must have one value per exit; got {len(self.guesses)} for {len(exits)} exits; "
                "give one for each, or one for all"
            )
        if not exits or any(b <= a for a, b in pairwise(exits)):
            raise InvalidInputError(
                f"exit layers must increase; got {', '.join(map(str, exits)) or 'none'}; "
                "give them in order"
            )
        check_schedule(exits[-1], exits[-1], 1, self.depth)
        if self.gate is not None and real_number("gate", self.gate, 0, "give a probability") > 1:
            raise InvalidInputError(f"gate must lie in [0, 1]; got {self.gate}; give a probability")

    @property
    def exits(self) -> tuple[int, ...]:
        """The exit layers, increasing."""
        return _each(self.exit_layer)

    @property
    def guesses(self) -> tuple[int, ...]:
        """Guesses started at each exit."""
        k = _each(self.k)
        return k * len(self.exits) if _is_one(self.k) else k


def _is_one(value: Any) -> bool:
    return isinstance(value, str) or not getattr(value, "shape", hasattr(value, "__len__"))


def _each(value: Any) -> tuple[int, ...]:
    """Whole numbers as `int`; what is none is left for the checks to name."""
    values = (value,) if _is_one(value) else tuple(value)
    return tuple(_as_whole(x) for x in values)


def _as_whole(value: Any) -> Any:
    try:
        return value if isinstance(value, (bool, str)) or int(value) != value else int(value)
    except (TypeError, ValueError, OverflowError):
        return value


@dataclass(frozen=True)
class ProcessRecord:
    """When a group of processes that did the same held its units.

    `generation` counts the guesses since the last right one: 0 for a right process. `started` is
    when it took its unit.
    """

    token: int
    generation: int
    count: int
    started: float
    ended: float
    verified: bool


@dataclass(frozen=True, eq=False)
class Simulation:
    """One simulated generation; in layer times and executions, or the unit of its layer times.

    `finish_times[i]` is when token i was verified, `work_done[i]` what all processes that had ended
    by then had executed; shape [tokens]. `first_hit[i]` is the exit, counted from 1, whose guesses
    first held token i+1, or 0; shape [tokens - 1].
    """

    first_hit: Ints
    finish_times: Floats
    work_done: Floats
    peak_units: int
    processes: tuple[ProcessRecord, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return len(self.finish_times)

    @property
    def latency_per_token(self) -> float:
        """Time until the last token was verified, over the tokens: start-up included."""
        return float(self.finish_times[-1] / self.tokens)

    @property
    def compute_per_token(self) -> float:
        """Layer executions until the last token was verified, over the tokens."""
        return float(self.work_done[-1] / self.tokens)


@dataclass(frozen=True)
class Generation:
    """One replayed text: its tokens, and its latency and compute per token."""

    tokens: int
    latency_per_token: float
    compute_per_token: float
    peak_units: int


@dataclass(frozen=True, eq=False)
class Replay(Frame):
    """Recorded matches run through a policy's schedule, one simulation per generation."""

    policy: Policy
    layers: int
    generations: tuple[Simulation, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens generated, over all generations."""
        return sum(run.tokens for run in self.generations)

    @property
    def latency_per_token(self) -> float:
        """Time of all generations over their tokens."""
        return sum(float(run.finish_times[-1]) for run in self.generations) / self.n_tokens

    @property
    def compute_per_token(self) -> float:
        """Layer executions of all generations over their tokens."""
        return sum(float(run.work_done[-1]) for run in self.generations) / self.n_tokens

    def _rows(self) -> Sequence[Generation]:
        return [
            Generation(run.tokens, run.latency_per_token, run.compute_per_token, run.peak_units)
            for run in self.generations
        ]

    @property
    def match_rate(self) -> float | None:
        """Share of tokens but the first of each generation that a guess held; None without any."""
        trials = self.n_tokens - len(self.generations)
        hits = sum(int((run.first_hit > 0).sum()) for run in self.generations)
        return hits / trials if trials else None

    @property
    def autocorrelation(self) -> float | None:
        """Lag-1 autocorrelation of the matches within generations; None where undefined."""
        p = self.match_rate
        series = [(run.first_hit > 0) - p for run in self.generations if p is not None]
        pairs = sum(max(len(x) - 1, 0) for x in series)
        if p is None or not 0 < p < 1 or pairs == 0:
            return None
        products = sum(float(x[1:] @ x[:-1]) for x in series)
        return products / pairs / (p * (1 - p))


@dataclass(frozen=True, eq=False)
class Measurement:
    """Where the true token ranked at every exit layer, for every generated token.

    Arrays have one row per generated token, in the order of prompts, turns and positions, and the
    types of the file; `rank`, `coupled_rank` and `top_prob` have one column per exit layer 1...d.
    A rank is 1 + the number of larger logits, over the whole vocabulary.

    Attributes:
        prompt_index: which of `prompt_ids` a token belongs to.
        turn: the user message that it answers, from 0.
        position: its place in that answer, from 0.
        rank: its rank among the exit's logits.
        top_prob: the exit's largest probability.
        coupled_rank: of a sampled token, its rank after the noise that sampled it was added to the
            exit's logits; None for greedy text.
        ties: tokens that the last exit does not rank first though the model did, with the margin.
        near_ties: greedy tokens that the model chose by less than rounding may turn elsewhere.
        prompt_numbers: place of each prompt in the whole list, of which a shard has a part.
    """

    provenance: Mapping[str, Any]
    prompt_ids: tuple[str, ...]
    categories: tuple[str, ...]
    prompt_index: Ints
    turn: Ints
    position: Ints
    token_id: Ints
    rank: Ints
    top_prob: Floats
    complete: bool
    ties: tuple[Mapping[str, Any], ...] = ()
    near_ties: tuple[Mapping[str, Any], ...] = ()
    coupled_rank: Ints | None = None
    prompt_numbers: tuple[int, ...] | None = None

    @property
    def layers(self) -> int:
        """Decoder layers d of the measured model."""
        return int(self.rank.shape[1])

    @property
    def n_tokens(self) -> int:
        """Generated tokens, over all prompts."""
        return int(self.rank.shape[0])

    def coupled(self) -> Measurement:
        """The same tokens with the coupled ranks in the place of the plain ones.

        Raises:
            InvalidInputError: the text is greedy, which has no noise to couple.
        """
        if self.coupled_rank is None:
            raise InvalidInputError(
                "coupled guesses need sampled text; got a greedy measurement; "
                "measure with --temperature"
            )
        about = {**self.provenance, "ranks": "coupled"}
        return replace(self, rank=self.coupled_rank, coupled_rank=None, provenance=about)

    def starts(self) -> Ints:
        """Row of the first token of each generated text, with the number of rows at the end."""
        import numpy as np

        return np.append(np.flatnonzero(self.position == 0), self.n_tokens)

    def tokens_by_prompt(self) -> Ints:
        """Generated tokens of each prompt, shape [prompts]."""
        import numpy as np

        return np.bincount(self.prompt_index, minlength=len(self.prompt_ids))

    def hits_by_prompt_at(self, exit_layer: int, k: int) -> Ints:
        """Tokens of each prompt that ranked k or better at one exit layer, shape [prompts]."""
        import numpy as np

        hit = self.prompt_index[self.rank[:, exit_layer - 1] <= k]
        return np.bincount(hit, minlength=len(self.prompt_ids))

    def hits_by_prompt(self, k_max: int) -> Ints:
        """Tokens of each prompt that ranked k or better, shape [prompts, layers, k_max]."""
        import numpy as np

        shape = (len(self.prompt_ids), self.layers, k_max)
        row, layer = np.nonzero(self.rank <= k_max)
        cell = (self.prompt_index[row], layer, self.rank[row, layer] - 1)
        flat = np.ravel_multi_index(cell, shape)
        counts = np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)
        return np.cumsum(counts, axis=2)


@dataclass(frozen=True, eq=False)
class Guesses:
    """The first guesses of every exit for every generated token, as `guesses.parquet` holds them.

    Rows are those of the measurement beside it; `ids` and `probs` have shape [tokens, layers, 8],
    the likeliest first. Probabilities are stored in two bytes, exact to 0.05%.
    """

    prompt_ids: tuple[str, ...]
    prompt_index: Ints
    turn: Ints
    position: Ints
    vocabulary: int
    ids: Ints
    probs: Floats


@dataclass(frozen=True)
class Candidate:
    """How well a family of surfaces predicts prompts that it was not fitted to.

    `held_out` is its log-likelihood per token, averaged over exit layers and k; `behind` what the
    best family has more, with a standard error over prompts.
    """

    family: str
    held_out: float
    behind: float
    behind_se: float


@dataclass(frozen=True)
class MatchCurve:
    """A fitted match-rate surface p_correct(relative depth, k); see `ppdmodel.fit`.

    A parameter that the counts do not determine has no interval: its ends are NaN, and so are its
    rows in `covariance`, that of the parameters, in their order, over resampled prompts.
    `candidates` are the families that were compared, the best first. Both are empty in files of
    older versions.
    """

    family: str
    parameters: Mapping[str, Interval]
    converged: bool
    rms_residual: float
    largest_residual: float
    largest_residual_layer: int
    largest_residual_k: int
    covariance: tuple[tuple[float, ...], ...] = ()
    candidates: tuple[Candidate, ...] = ()

    @property
    def standard_errors(self) -> dict[str, float | None]:
        """Of each parameter, over resampled prompts; None where it is not determined."""
        variances = [row[n] for n, row in enumerate(self.covariance)]
        errors = [None if math.isnan(x) else x**0.5 for x in variances]
        return dict(zip(self.parameters, errors, strict=False))


@dataclass(frozen=True)
class Rate:
    """A measured match rate."""

    exit_layer: int
    k: int
    p_correct: Interval


@dataclass(frozen=True)
class Calibration(Frame):
    """What the later commands need of a measurement: match rates with intervals, and their fit.

    `hits` has shape [prompts, layers, k_max] and counts the tokens of a prompt whose true token
    ranked k or better at a layer; `tokens` has shape [prompts]. `timing` says what the model costs
    on one machine; None where only layers can be counted. `exit_layers` and `ks` are those that
    were counted, None for all; others have the hits of the next smaller k, or none. `recorded`
    counts what gates, two exits and self-speculation need; None where there were no tokens.
    `reliability` calibrates the probabilities of the guesses; empty where there were none.
    """

    model: str
    layers: int
    prompt_ids: tuple[str, ...]
    tokens: Ints
    hits: Ints
    p_correct: Floats
    ci_low: Floats
    ci_high: Floats
    curve: MatchCurve
    resamples: int
    seed: int
    provenance: Mapping[str, Any]
    timing: Timing | None = None
    exit_layers: tuple[int, ...] | None = None
    ks: tuple[int, ...] | None = None
    recorded: Recorded | None = None
    reliability: tuple[Reliability, ...] = ()

    def has(self, exit_layer: Any, k: Any) -> Any:
        """Whether settings, a number each or arrays, were measured."""
        import numpy as np

        layers = np.arange(1, self.layers + 1) if self.exit_layers is None else self.exit_layers
        ks = np.arange(1, self.k_max + 1) if self.ks is None else self.ks
        return np.isin(exit_layer, layers) & np.isin(k, ks)

    def _document(self) -> dict[str, Any]:
        from .packed import packed_counts

        counts = self.recorded and packed_counts(self.recorded)
        return asdict(replace(self, recorded=None)) | {"recorded": counts}

    def _rows(self) -> Sequence[Rate]:
        import numpy as np

        from .resample import METHOD

        n = (int(self.tokens.sum()), len(self.tokens), METHOD)
        p, low, high = (np.asarray(x).tolist() for x in (self.p_correct, self.ci_low, self.ci_high))
        return [
            Rate(e, k, Interval(p[e - 1][k - 1], low[e - 1][k - 1], high[e - 1][k - 1], *n))
            for e in range(1, self.layers + 1)
            for k in range(1, self.k_max + 1)
            if self.has(e, k)
        ]

    def residuals(self) -> Floats:
        """Measured match rates less those of the surface, [layers, k_max]; NaN: not counted."""
        import numpy as np

        from .fitting import curve_values

        e, k = np.arange(1, self.layers + 1)[:, None], np.arange(1.0, self.k_max + 1)
        found = self.p_correct - np.asarray(curve_values(self.curve, e / self.layers, k))
        return np.where(self.has(e, k), found, np.nan)

    @property
    def k_max(self) -> int:
        """Largest k for which hits were counted."""
        return int(self.hits.shape[2])

    @property
    def title(self) -> str:
        """The model, with what sets its exits and its text apart from the ordinary."""
        return titled(self.model, self.provenance.get("measurement", {}))


def titled(model: str, about: Mapping[str, Any]) -> str:
    """A model, with what sets its exits and its text apart, by a measurement's provenance."""
    parts = [model]
    if about.get("exit_kind") == "trained":
        parts.append("trained exits")
    if about.get("decoding") == "sampled":
        temperature = about.get("temperature")
        known = isinstance(temperature, (int, float))
        parts.append(f"sampled at temperature {temperature:g}" if known else "sampled")
    if about.get("ranks") == "coupled":
        parts.append("coupled guesses")
    return ", ".join(parts)


@dataclass(frozen=True)
class Timed:
    """A time in seconds, its 95% interval over repetitions, and how many there were."""

    value: float
    ci_low: float
    ci_high: float
    n: int


@dataclass(frozen=True)
class Timing:
    """What a model's layers and heads cost on one machine, one unit a core.

    Attributes:
        model: the model's name.
        layers: its decoder layers d.
        units: units that were busy at the same time.
        terms: of plain decoding: `layer_time_s`, `head_time_s`, `token_time_s` (the rest of a
            token), `plain_latency_s`, `split_latency_s` (all units on one token).
        exit_layers: where PPD was timed, ascending.
        by_k: of PPD with k guesses in a batch, by name and per exit layer: `layer_time_s` of the
            main process before the exit, `busy_layer_time_s` after it and `head_time_s`, while the
            other unit works too; `exit_time_s` and `batch_layer_time_s` of the sub-processes;
            `token_time_s`, what a miss costs before the next token's first layer;
            `start_delay_s`, from the exit to its reading; `promotion_delay_s`.
        layer_profile_s: median time of each layer in plain decoding, [layers].
        samples: every repetition of every term: `terms` by name, `by_k` by k and name, a list per
            exit layer.
    """

    model: str
    layers: int
    units: int
    terms: Mapping[str, Timed]
    exit_layers: tuple[int, ...]
    by_k: Mapping[int, Mapping[str, tuple[Timed, ...]]]
    layer_profile_s: tuple[float, ...]
    samples: Mapping[str, Any]
    provenance: Mapping[str, Any]
