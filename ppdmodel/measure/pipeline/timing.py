"""What layers, heads, starts and promotions cost, measured inside whole tokens."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...checks import positive_integer
from ...errors import InvalidInputError, RunFailedError
from ...files import provenance
from ...resample import percentiles
from ...results import Timed, Timing
from ..models import LoadedModel
from ..training import TrainedExits
from .pipeline import Pipeline
from .pool import Run
from .unit import EVENT, Did, Script

#: tokens of the text before, and of one repetition of each kind of run
CONTEXT, TOKENS = 96, 24
#: repetitions are made again, once, where the layer time of the middle half of them spreads by more
#: than this; where it still does, the result is refused
UNSTEADY = 0.15
RESAMPLES, SEED = 1000, 0
BEGIN, END, DID, TOKEN, LAYER, ROWS = range(len(EVENT))
PACKAGES = ("torch", "transformers", "numpy")


def time_model(
    loaded: LoadedModel,
    *,
    ks: Sequence[int] = (1, 2, 3, 5, 8),
    rounds: int = 8,
    units: int = 2,
    exits: TrainedExits | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Timing:
    """Time plain decoding and PPD on this machine, term by term.

    In each of `rounds` repetitions, one after another so that a drift of the machine meets all
    alike: plain text on one unit; plain text while the other unit runs k guesses all the time; PPD
    with given matches; plain text on all units. A repetition's value is its mean over tokens, since
    it serves to predict means; the result is the median of the repetitions.

    Args:
        loaded: a model of Llama's build, on the CPU.
        ks: numbers of guesses to time.
        rounds: repetitions, at least 4.
        units: CPUs, at least 2.
        exits: trained exits, whose maps take time too.
        on_progress: called with the share that is done.

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
    prompt = [(7 * n + 31) % int(loaded.model.config.vocab_size) for n in range(CONTEXT)]
    samples: list[dict[str, Any]] = []
    with Pipeline(
        loaded,
        units=units,
        prompt_tokens=CONTEXT,
        tokens=TOKENS,
        k=max(ks),
        exits=exits,
    ) as pipeline:
        bench = _Bench(pipeline, prompt, tuple(sorted(set(ks))))
        bench.round(0)  # warm
        for _attempt in range(2):
            samples = []
            for number in range(rounds):
                samples.append(bench.round(number))
                on_progress((number + 1) / rounds)
            if unsteadiness(samples) <= UNSTEADY:
                break
        else:
            raise RunFailedError(
                f"layer times must spread by at most {UNSTEADY:.0%} between repetitions; got "
                f"{unsteadiness(samples):.0%} twice; stop other work on this machine, and try again"
            )
    return _summary(loaded, samples, bench.ks, units, exits)


def unsteadiness(samples: Sequence[Any]) -> float:
    """How far the middle half of the repetitions' layer times spreads, over their median."""
    times = [sample["layer_time_s"] for sample in samples]
    low, middle, high = np.percentile(times, [25, 50, 75])
    return float((high - low) / middle)


class _Bench:
    """One repetition after another."""

    def __init__(self, pipeline: Pipeline, prompt: Sequence[int], ks: tuple[int, ...]) -> None:
        self.pipeline, self.prompt, self.ks = pipeline, prompt, ks
        self.exit_layer = -(-2 * pipeline.layers // 3)
        if self.exit_layer >= pipeline.layers:
            raise InvalidInputError(
                f"the model must have at least 3 layers; got {pipeline.layers}; PPD needs room"
            )

    def round(self, number: int) -> dict[str, Any]:
        """One repetition of every term."""
        plain = self.pipeline.greedy(self.prompt, TOKENS, stops=False)
        split = self.pipeline.greedy_split(self.prompt, TOKENS, stops=False)
        found = plain_terms(plain, self.pipeline.layers)
        found["split_latency_s"] = float(split.times_s.mean())
        found["by_k"] = {}
        delays = []
        rng = np.random.default_rng(number)
        for k in self.ks:
            run, others = self.pipeline.greedy_beside(self.prompt, TOKENS, self.exit_layer, k)
            found["by_k"][k] = _beside_terms(run, others, self.pipeline.layers)
            hits = tuple(bool(hit) for hit in rng.random(TOKENS) < 0.5)
            scripted = self.pipeline.ppd(
                self.prompt,
                TOKENS,
                exit_layer=self.exit_layer,
                k=k,
                stops=False,
                script=Script(plain.token_ids, hits),
            )
            delays.append(_delays(scripted, self.exit_layer))
        for name in ("start_delay_s", "promotion_delay_s"):
            values = [value for delay in delays for value in delay[name]]
            found[name] = float(np.mean(values)) if values else 0.0
        return found


def plain_terms(run: Run, layers: int) -> dict[str, Any]:
    """Layer, head and the rest of a token, means over the tokens of a plain run, in seconds."""
    events, times = run.events[0], run.times_s
    each = _per_token(events, layers)
    head = _seconds(events[(events[:, DID] == Did.HEAD) & (events[:, TOKEN] > 0)])
    of_layer = [
        float(_seconds(events[(events[:, DID] == Did.LAYER) & (events[:, LAYER] == n)]).mean())
        for n in range(1, layers + 1)
    ]
    whole = float(times.mean())
    layer_time, head_time = float(each.mean()) / layers, float(head.mean())
    return {
        "layer_time_s": layer_time,
        "head_time_s": head_time,
        "token_time_s": max(whole - layers * layer_time - head_time, 0.0),
        "plain_latency_s": whole,
        "layers_s": of_layer,
    }


def _beside_terms(run: Run, others: Sequence[np.ndarray], layers: int) -> dict[str, float]:
    """Both sides of two busy units, means."""
    mine = plain_terms(run, layers)
    first, last = run.verdict_ns[0], run.verdict_ns[-1]
    within = [u[(u[:, BEGIN] > first) & (u[:, END] < last)] for u in others]
    batch = np.concatenate([_starts_apart(unit) for unit in within])
    reading = np.concatenate([_seconds(unit[unit[:, DID] == Did.EXIT]) for unit in within])
    if not (len(batch) and len(reading)):
        raise RunFailedError(
            "the other unit must have worked beside the first; got nothing; stop other work on "
            "this machine, and try again"
        )
    return {
        "busy_layer_time_s": mine["layer_time_s"],
        "busy_head_time_s": mine["head_time_s"],
        "batch_layer_time_s": float(batch.mean()),
        "exit_time_s": float(reading.mean()),
    }


def _starts_apart(events: np.ndarray) -> np.ndarray:
    """Seconds from the start of a layer to that of the next one in the same process."""
    rows = events[events[:, DID] == Did.LAYER]
    follows = rows[1:, LAYER] == rows[:-1, LAYER] + 1
    apart: np.ndarray = (rows[1:, BEGIN] - rows[:-1, BEGIN])[follows] / 1e9
    return apart


def _per_token(events: np.ndarray, layers: int) -> np.ndarray:
    """Seconds of all layers together, per token that one process ran from its first layer."""
    rows = events[events[:, DID] == Did.LAYER]
    tokens = np.unique(rows[:, TOKEN])
    sums = [rows[rows[:, TOKEN] == token] for token in tokens]
    whole = [_seconds(part).sum() for part in sums if len(part) == layers]
    if not whole:
        raise RunFailedError("a run must hold a whole token; got none; time it again")
    return np.array(whole)


def _seconds(events: np.ndarray) -> np.ndarray:
    found: np.ndarray = (events[:, END] - events[:, BEGIN]) / 1e9
    return found


def _delays(run: Run, exit_layer: int) -> dict[str, list[float]]:
    """From the end of the exit's layer to the reading, and from a verdict to the next layer."""
    ends: dict[int, int] = {}
    for unit in run.events:
        for row in unit:
            if row[DID] == Did.LAYER and row[LAYER] == exit_layer and row[ROWS] == 1:
                token = int(row[TOKEN])  # of a guess and of the verified process: the later
                ends[token] = max(int(row[END]), ends.get(token, 0))
    starts, promotions = [], []
    for unit in run.events:
        for row, after in pairwise(unit):
            if row[DID] == Did.AWAIT_EXIT and after[DID] == Did.EXIT:
                if int(row[TOKEN]) in ends:
                    starts.append((int(after[BEGIN]) - ends[int(row[TOKEN])]) / 1e9)
            elif row[DID] == Did.PROMOTE and after[DID] == Did.LAYER:
                promotions.append((int(after[BEGIN]) - int(row[BEGIN])) / 1e9)
    return {"start_delay_s": starts, "promotion_delay_s": promotions}


def _summary(
    loaded: LoadedModel,
    samples: Sequence[dict[str, Any]],
    ks: Sequence[int],
    units: int,
    exits: TrainedExits | None,
) -> Timing:
    names = [name for name in samples[0] if name not in ("by_k", "layers_s")]
    together = list(samples[0]["by_k"][ks[0]])
    series = {name: [sample[name] for sample in samples] for name in names}
    by_k = {
        k: {name: [sample["by_k"][k][name] for sample in samples] for name in together} for k in ks
    }
    return Timing(
        model=loaded.source.name,
        layers=loaded.layers,
        units=units,
        terms={name: timed(values) for name, values in series.items()},
        by_k={k: {name: timed(v) for name, v in terms.items()} for k, terms in by_k.items()},
        layer_profile_s=tuple(
            np.median([sample["layers_s"] for sample in samples], axis=0).tolist()
        ),
        samples={"terms": series, "by_k": {str(k): terms for k, terms in by_k.items()}},
        provenance=timing_provenance(loaded, units, exits)
        | {"rounds": len(samples), "context": CONTEXT, "tokens": TOKENS},
    )


def timed(values: Sequence[float]) -> Timed:
    """The median of some repetitions, with a bootstrap interval."""
    array = np.array(values)
    rng = np.random.default_rng(SEED)
    medians = np.median(rng.choice(array, (RESAMPLES, len(array))), axis=1)
    low, high = percentiles(medians)
    return Timed(float(np.median(array)), float(low), float(high), len(array))


def timing_provenance(
    loaded: LoadedModel, units: int, exits: TrainedExits | None
) -> dict[str, Any]:
    """What a time depends on: model, type, exits, machine."""
    return {
        "model": loaded.source.name,
        "weights_sha256": list(loaded.source.weights_sha256),
        "quantization": loaded.source.quantization,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "exit_kind": "trained" if exits else "logit",
        "exits_sha256": exits.sha256 if exits else None,
        "units": units,
        "threads_per_unit": 1,
        "machine": machine(),
        **provenance(PACKAGES),
    }


def machine() -> str:
    """The processor's name, as far as the system tells it, and how many CPUs there are."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        name = next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} CPUs"
