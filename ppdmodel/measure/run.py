"""One measurement, from prompts to a folder: batch by batch, resumable, nothing lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checks import positive_integer
from ..errors import InvalidInputError
from ..results import io
from ..results.files import provenance
from ..results.measurement import Measurement
from .batch import Measured, measure_batch
from .decoder.ranks import Ranker
from .decoder.sampling import Sampling
from .decoder.verify import proven
from .distributed import Group
from .models.loading import (
    PACKAGES,
    LoadedModel,
    check_device,
    check_device_map,
    check_dtype,
    load_model,
    threads,
)
from .models.sources import ModelSource
from .progress import OnProgress, Progress
from .prompts import Prompt, prompts_sha256
from .store import Store

if TYPE_CHECKING:
    from .training.train import TrainedExits


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1: every count-th batch.

    Raises:
        InvalidInputError: not 1 <= number <= count.

    >>> Shard.parse("2/4")
    Shard(number=2, count=4)
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InvalidInputError(
                f"shard must be i/N with i from 1 to N; got {self.number}/{self.count}"
            )

    def check(self, batches: int) -> None:
        """Raise `InvalidInputError` where no batch is left for this part."""
        if self.number > batches:
            raise InvalidInputError(
                f"shard must have a batch to do; got {self.number}/{self.count} of {batches} "
                "batches; use fewer shards or a smaller --batch-size"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read i/N."""
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise InvalidInputError(f"shard must be i/N with i from 1 to N; got {text!r}")
        return cls(int(number), int(count))


def measure(
    source: ModelSource,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    max_new_tokens: int = 128,
    batch_size: int = 36,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | None = None,
    n_threads: int | None = None,
    raw: bool = False,
    exits: TrainedExits | None = None,
    sampling: Sampling | None = None,
    guesses: bool = True,
    shard: Shard | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Measurement:
    """Measure where the true token ranks at every exit layer, on the model's own text.

    Finished batches are on disk before the next begins. Whatever stops the run, the same call
    takes it up again; after Ctrl-C or an error the folder is readable and holds the prompts
    finished by then. A folder that is complete is returned without loading the model. Memory does
    not grow with the number of prompts until the end, when the result is read back.

    Started by `accelerate launch`, the processes share the batches, each on its own device, and
    write to one folder, which all of them must reach.

    Args:
        source: the model, from `locate`.
        prompts: user messages; ids unique.
        out: the measurement's folder; new, empty, or holding part or all of this measurement.
        max_new_tokens: most tokens per turn of a prompt.
        batch_size: most prompts decoded together.
        dtype: "float32", "bfloat16" or "float16".
        device: where the model runs, such as "cpu" or "cuda:1"; None is a GPU if there is one.
        device_map: how Accelerate spreads it over devices instead, such as "auto".
        n_threads: threads for torch; None keeps torch's number.
        raw: give the text to the model as it is, without its chat template.
        exits: trained exits, from `load_exits`; None reads the logit exit.
        sampling: how tokens are drawn; None is greedy.
        guesses: whether to keep the first 8 guesses of every exit too, in `guesses.parquet`.
        shard: the part of the batches to do; `merge` joins them.
        on_progress: called after each decoding step and each ranked chunk.

    Returns:
        The whole measurement, or the shard.

    Raises:
        InvalidInputError: an argument is outside its domain, a prompt does not fit the model, or
            `out` holds something else.
        RunFailedError: the model could not be loaded, does not put its own token first at its last
            layer, or `out` cannot be written.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        positive_integer(name, value)
    if n_threads is not None:
        positive_integer("n_threads", n_threads)
    if not prompts:
        raise InvalidInputError("a measurement needs a prompt; got none; give one or more")
    check_dtype(dtype)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    check_device_map(device_map)
    if exits is not None:
        exits.check_prompts(prompts)
    size = _balanced(len(prompts), batch_size)
    if shard:
        shard.check(-(-len(prompts) // size))
    settings = {
        "model": source.name,
        "weights_sha256": list(source.weights_sha256),
        "quantization": source.quantization,
        "dtype": dtype,
        **_exit_settings(exits),
        **_decoding_settings(sampling),
        "prompt_format": "raw" if raw else "chat",
        "prompts_sha256": prompts_sha256(prompts),
        "n_prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "guesses": guesses,
        "shard": f"{shard.number}/{shard.count} of batches of {size}" if shard else None,
    }
    with Group(on_cpu=device == "cpu") as group:
        store = Store(out, settings)
        batches = store.pending(prompts, size)
        if shard:
            batches = [b for b in batches if b[0] // size % shard.count == shard.number - 1]
        group.wait()  # until all have seen the same folder
        mine = batches[group.rank :: group.size]
        try:
            if mine:
                with threads(n_threads or torch.get_num_threads()):
                    on_progress(Progress("loading", 0, 0))
                    _Run(
                        load_model(source, dtype, group.device or device, device_map),
                        prompts,
                        store,
                        settings,
                        on_progress,
                    ).batches(mine, exits, raw, sampling)
            group.wait()
        finally:
            if group.rank == 0:
                store.settle()
        group.wait()
    return io.read_measurement(out)


def _balanced(n_prompts: int, batch_size: int) -> int:
    """Prompts in a batch, so that the last is about as large as the others.

    >>> _balanced(72, 32)
    24
    """
    batches = -(-n_prompts // batch_size)
    return -(-n_prompts // batches)


def _exit_settings(exits: TrainedExits | None) -> dict[str, Any]:
    if exits is None:
        return {"exit_kind": "logit"}
    return {"exit_kind": "trained", "exits_sha256": exits.sha256, "exits": exits.about}


def _decoding_settings(sampling: Sampling | None) -> dict[str, Any]:
    if sampling is None:
        return {"decoding": "greedy"}
    return {
        "decoding": "sampled",
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }


class _Run:
    """The part of a measurement that needs the model."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Prompt],
        store: Store,
        settings: Mapping[str, Any],
        on_progress: OnProgress,
    ) -> None:
        self.loaded, self.prompts, self.store = loaded, prompts, store
        self.settings, self.on_progress = settings, on_progress

    def batches(
        self,
        batches: Sequence[Sequence[int]],
        exits: TrainedExits | None,
        raw: bool,
        sampling: Sampling | None,
    ) -> None:
        """Decode and rank batches of prompts, one after another."""
        decoder = proven(self.loaded.model)
        if exits is not None:
            decoder = replace(decoder, exit=exits.on(decoder.exit))
        chosen = [number for batch in batches for number in batch]
        self._check_context(chosen, raw)
        about = dict(self.settings) | {
            "k_max": decoder.exit.vocabulary,
            "device": str(self.loaded.model.device),
            "threads": torch.get_num_threads(),
            "batch_size": max(map(len, batches)),
            **provenance(PACKAGES),
        }
        decoder = decoder.packed()
        ranker = Ranker(decoder.exit)
        before = len(self.store.done)
        for batch in batches:
            done = (len(self.store.done) - before) / len(chosen)

            def report(stage: str, tokens: int, share: float, done: float = done) -> None:
                whole = done + share * len(batch) / len(chosen)  # noqa: B023
                self.on_progress(Progress(stage, self.store.n_tokens + tokens, whole))

            measured = measure_batch(
                self.loaded,
                decoder,
                ranker,
                [self.prompts[number] for number in batch],
                max_new_tokens=int(self.settings["max_new_tokens"]),
                chat=not raw,
                sampling=sampling,
                on_progress=report,
            )
            self._keep(measured, batch, about)
            del measured  # or it lives until the next is made

    def _keep(self, measured: Measured, batch: Sequence[int], about: Mapping[str, Any]) -> None:
        part = measured.measurement(about, batch)
        self.store.add(part, measured.guesses() if self.settings["guesses"] else None)

    def _check_context(self, chosen: Sequence[int], raw: bool) -> None:
        """Raise before anything is run where a conversation may outgrow the model."""
        most = int(self.settings["max_new_tokens"])
        for number in chosen:
            prompt = self.prompts[number]
            turns = prompt.turns
            ids = self.loaded.encode(turns, not raw, [""] * (len(turns) - 1))
            self.loaded.check_room(prompt.id, len(ids), most * len(turns))
