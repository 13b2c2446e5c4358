"""Profile the parts of a decoding step, measured during end-to-end decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..checks import positive_integer
from ..decide.prediction import SCHEDULE
from ..errors import InvalidInputError, RunFailedError
from ..measure.models.loading import LoadedModel
from ..measure.models.sources import ModelSource
from ..measure.training.trained_exits import TrainedExits
from ..results.files import provenance
from ..results.intervals import percentiles
from ..results.timing import Timed, Timing
from .devices import CPU, machine
from .options import TWO_CPUS, ForcedMatches, PpdSetting, RunOptions, Workers
from .pipeline import Pipeline
from .trace import EVENT, EventKind
from .worker_pool import FIRST_TIMED, Run

#: tokens of the prompt, and new tokens of each run of a repetition
CONTEXT, TOKENS = 96, 24
#: largest interquartile range of the repetitions' layer times over their median; beyond it they are
#: made again, once, and then refused
MAX_SPREAD = 0.15
RESAMPLES, SEED = 1000, 0
#: exit layers at which PPD is timed, as fractions of the model's layers
EXIT_DEPTHS = (0.25, 0.5, 0.75, 0.9)
BEGIN, END, KIND, TOKEN, LAYER, ROWS = range(len(EVENT))
PACKAGES = ("torch", "transformers", "numpy")
WHOLE = RunOptions(stops=False)


def time_model(
    loaded: LoadedModel,
    *,
    ks: Sequence[int] = (1, 2, 3, 5, 8),
    rounds: int = 8,
    workers: Workers = TWO_CPUS,
    exits: TrainedExits | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Timing:
    """Time the terms of plain decoding and PPD on this machine.

    Each of `rounds` repetitions interleaves plain decoding on one unit, plain decoding by tensor
    parallelism on all units, and PPD with forced matches for each k at several exit layers, on
    which the load of the other unit depends; so a drift of the machine affects all alike. A
    repetition's value is the mean over its tokens, because it serves to predict means; the result
    is the median of the repetitions.

    Args:
        loaded: a model of the Llama architecture, loaded on the CPU.
        ks: numbers of guesses to time.
        rounds: repetitions, at least 4.
        workers: how many units, and their devices. On a GPU the layers of plain decoding are timed
            in a separate run, which synchronizes after each; its latency is that of a run without.
        exits: trained exits, whose maps take time too.
        on_progress: called with the fraction that is done.

    Raises:
        InvalidInputError: an argument does not fit the model or the machine.
        RunFailedError: the machine was too unsteady, or a unit failed.
    """
    if not ks:
        raise InvalidInputError("k must have values; got none; give 1,3,5")
    for k in ks:
        positive_integer("k", k)
    if positive_integer("rounds", rounds) < 4:
        raise InvalidInputError(f"rounds must be at least 4; got {rounds}; an interval needs them")
    with Pipeline(
        loaded, prompt_tokens=CONTEXT, tokens=TOKENS, k=max(ks), workers=workers, exits=exits
    ) as pipeline:
        return time_pipeline(pipeline, ks, rounds, exits=exits, on_progress=on_progress)


def time_pipeline(
    pipeline: Pipeline,
    ks: Sequence[int],
    rounds: int,
    *,
    exits: TrainedExits | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Timing:
    """As `time_model`, on units that run already, with room for its texts and guesses.

    Args:
        pipeline: the model on its units.
        ks: as `time_model`.
        rounds: as `time_model`.
        exits: those that the pipeline was given.
        on_progress: as `time_model`.

    Raises:
        RunFailedError: as `time_model`.
    """
    repetitions = _Repetitions(pipeline, any_ids(pipeline.loaded), tuple(sorted(set(ks))))
    repetitions.round(rounds)  # warm-up
    samples: list[dict[str, Any]] = []
    for _attempt in range(2):
        samples = []
        for number in range(rounds):
            samples.append(repetitions.round(number))
            on_progress((number + 1) / rounds)
        if spread(samples) <= MAX_SPREAD:
            break
    else:
        raise RunFailedError(
            f"layer times must spread by at most {MAX_SPREAD:.0%} between repetitions; got "
            f"{spread(samples):.0%} twice; stop other work on this machine, and try again"
        )
    return _summary(pipeline.loaded, samples, repetitions.ks, exits, pipeline.devices)


def any_ids(loaded: LoadedModel) -> list[int]:
    """A prompt of `CONTEXT` tokens, where times do not depend on which they are."""
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    return [n % vocabulary for n in range(CONTEXT)]


def spread(samples: Sequence[Any]) -> float:
    """Interquartile range of the repetitions' layer times over their median."""
    times = [sample["layer_time_s"] for sample in samples]
    low, middle, high = np.percentile(times, [25, 50, 75])
    return float((high - low) / middle)


class _Repetitions:
    """One repetition of all runs after another."""

    def __init__(self, pipeline: Pipeline, prompt: Sequence[int], ks: tuple[int, ...]) -> None:
        self.pipeline, self.prompt, self.ks = pipeline, prompt, ks
        if pipeline.layers < 3:
            raise InvalidInputError(
                f"the model must have at least 3 layers; got {pipeline.layers}; PPD needs room"
            )
        self.exit_layers = timed_exit_layers(pipeline.layers)

    def round(self, number: int) -> dict[str, Any]:
        """One repetition of every term; those of PPD by k, a value per exit layer."""
        plain = self.pipeline.greedy(self.prompt, TOKENS, WHOLE)
        split = self.pipeline.greedy_split(self.prompt, TOKENS, WHOLE)
        by_layer = plain  # a run on a CPU synchronizes after each layer anyway
        if set(self.pipeline.devices) != {CPU}:
            by_layer = self.pipeline.greedy(self.prompt, TOKENS, replace(WHOLE, timed=True))
        found = plain_terms(by_layer, self.pipeline.layers)
        found["plain_latency_s"] = float(plain.times_s.mean())
        found["split_latency_s"] = float(split.times_s.mean())
        rng = np.random.default_rng(number)
        found["by_k"] = {k: self._ppd(plain.token_ids, k, rng) for k in self.ks}
        return found

    def _ppd(
        self, token_ids: tuple[int, ...], k: int, rng: np.random.Generator
    ) -> dict[str, list[float]]:
        parts = []
        for exit_layer in self.exit_layers:
            hits = tuple(map(bool, rng.random(TOKENS).round()))
            run = self.pipeline.ppd(
                self.prompt,
                TOKENS,
                PpdSetting(exit_layer, k),
                WHOLE,
                forced=ForcedMatches(token_ids, hits),
            )
            parts.append(ppd_terms(run, self.pipeline.layers, exit_layer))
        return {f"{name}_s": _filled(name, [part[name] for part in parts]) for name in SCHEDULE}


def timed_exit_layers(layers: int) -> tuple[int, ...]:
    """Exit layers at which PPD is timed: a few over the whole depth.

    >>> timed_exit_layers(30)
    (8, 15, 23, 27)
    """
    depths = {min(math.ceil(share * layers), layers - 1) for share in EXIT_DEPTHS}
    return tuple(sorted(depths))


def _filled(name: str, values: Sequence[float | None]) -> list[float]:
    """Values per exit layer; None is replaced by the value at the nearest one that has it."""
    there = {place: value for place, value in enumerate(values) if value is not None}
    if not there:
        raise RunFailedError(
            f"PPD must show its {name} at some exit layer; got none: no guess was ever in time; "
            "stop other work on this machine, and try again"
        )
    return [there[min(there, key=lambda other: abs(other - place))] for place in range(len(values))]


def plain_terms(run: Run, layers: int) -> dict[str, Any]:
    """Times of a layer, the LM head and the rest of a token: means of a plain run, in seconds."""
    each = _durations(run.events[0], EventKind.LAYER).reshape(-1, layers) / 1e9
    heads = _durations(run.events[0], EventKind.HEAD)[1:] / 1e9  # without the prompt's
    layer_time, head_time = float(each.mean()), float(heads.mean())
    whole = float(run.times_s.mean())
    return {
        "layer_time_s": layer_time,
        "head_time_s": head_time,
        "token_time_s": max(whole - layers * layer_time - head_time, 0.0),
        "layers_s": each.mean(0).tolist(),
    }


def ppd_terms(run: Run, layers: int, exit_layer: int) -> dict[str, float | None]:
    """The times of `calibrated_latency` in a run of PPD, by the names of its arguments.

    Means from token `FIRST_TIMED` on, in seconds; None for what never happened. A layer lasts from
    its own start to the start of what follows.
    """
    times: dict[str, list[int]] = {name: [] for name in SCHEDULE}
    for token in range(FIRST_TIMED, len(run.token_ids)):
        _verified(run, token, layers, exit_layer, times)
    for unit in run.events:
        guesses = unit[_is_guess(unit, run)]
        follows = guesses[1:, LAYER] == guesses[:-1, LAYER] + 1  # other guesses begin at layer 1
        times["batch_layer_time"] += np.diff(guesses[:, BEGIN])[follows].tolist()
        times["exit_time"] += _durations(unit, EventKind.EXIT).tolist()
    return {name: sum(each) / len(each) / 1e9 if each else None for name, each in times.items()}


def _verified(
    run: Run, token: int, layers: int, exit_layer: int, times: Mapping[str, list[int]]
) -> None:
    """Add the nanoseconds of one token's verified process, and until its exit was read."""
    known, made = run.verdict_ns[token - 1 : token + 1].tolist()
    unit = next(u for u in run.events if _at(u, EventKind.HEAD, token).any())
    promoted = unit[_at(unit, EventKind.PROMOTE, token), BEGIN].tolist()
    (since,) = promoted or [known]  # layers before that are of guesses
    mine = unit[(unit[:, BEGIN] >= since) & (unit[:, TOKEN] == token)]
    (head,) = mine[mine[:, KIND] == EventKind.HEAD, BEGIN].tolist()
    steps = mine[mine[:, KIND] == EventKind.LAYER]
    times["head_time"].append(made - head)
    begins = [*steps[:, BEGIN].tolist(), head]
    past = max(exit_layer - layers + len(steps), 0)  # of its steps, those before the exit
    times["layer_time"] += np.diff(begins[: past + 1]).tolist()
    times["busy_layer_time"] += np.diff(begins[past:]).tolist()
    times["promotion_delay" if promoted else "token_time"].append(begins[0] - since)
    if past:
        end = int(steps[past - 1, END])
        for other in run.events:
            reads = other[_at(other, EventKind.EXIT, token)]
            times["start_delay"] += np.maximum(reads[:, BEGIN] - end, 0).tolist()


def _at(events: np.ndarray, kind: EventKind, token: int) -> np.ndarray:
    found: np.ndarray = (events[:, KIND] == kind) & (events[:, TOKEN] == token)
    return found


def _is_guess(events: np.ndarray, run: Run) -> np.ndarray:
    """Layers of guesses: those begun before the verdict on the token before."""
    known = run.verdict_ns[events[:, TOKEN] - 1]
    found: np.ndarray = (events[:, KIND] == EventKind.LAYER) & (events[:, BEGIN] < known)
    return found


def _durations(events: np.ndarray, kind: EventKind) -> np.ndarray:
    """Nanoseconds of a unit's events of one kind, in their order."""
    mine = events[events[:, KIND] == kind]
    found: np.ndarray = mine[:, END] - mine[:, BEGIN]
    return found


def _summary(
    loaded: LoadedModel,
    samples: Sequence[dict[str, Any]],
    ks: Sequence[int],
    exits: TrainedExits | None,
    devices: tuple[str, ...],
) -> Timing:
    names = [name for name in samples[0] if name not in ("by_k", "layers_s")]
    series = {name: [sample[name] for sample in samples] for name in names}
    by_k = {  # by exit layer, and then by repetition
        k: {
            name: np.transpose([sample["by_k"][k][name] for sample in samples]).tolist()
            for name in samples[0]["by_k"][k]
        }
        for k in ks
    }
    return Timing(
        model=loaded.source.name,
        layers=loaded.layers,
        units=len(devices),
        terms={name: timed(values) for name, values in series.items()},
        exit_layers=timed_exit_layers(loaded.layers),
        by_k={
            k: {name: tuple(timed(v) for v in values) for name, values in terms.items()}
            for k, terms in by_k.items()
        },
        layer_profile_s=tuple(
            np.median([sample["layers_s"] for sample in samples], axis=0).tolist()
        ),
        samples={"terms": series, "by_k": {str(k): terms for k, terms in by_k.items()}},
        provenance=timing_provenance(loaded, exits, devices)
        | {"rounds": len(samples), "context": CONTEXT, "tokens": TOKENS},
    )


def timed(values: Sequence[float]) -> Timed:
    """The median of some repetitions, with a bootstrap interval."""
    array = np.array(values)
    rng = np.random.default_rng(SEED)
    medians = np.median(rng.choice(array, (RESAMPLES, len(array))), axis=1)
    low, high = percentiles(medians)
    return Timed(float(np.median(array)), float(low), float(high), len(array))


def model_provenance(source: ModelSource, dtype: str, exits: TrainedExits | None) -> dict[str, Any]:
    """What runs: the model's weights, their number type, and its exits."""
    return {
        **source.provenance,
        "dtype": dtype,
        "exit_kind": exits.kind if exits else "logit",
        "exits_sha256": exits.sha256 if exits else None,
    }


def timing_provenance(
    loaded: LoadedModel, exits: TrainedExits | None, devices: tuple[str, ...]
) -> dict[str, Any]:
    """Everything a time depends on: model, dtype, exits, devices and machine."""
    return {
        **model_provenance(loaded.source, str(loaded.model.dtype).removeprefix("torch."), exits),
        "units": len(devices),
        "threads_per_unit": 1,
        "devices": list(devices),
        "machine": machine(devices),
        **provenance(PACKAGES),
    }
