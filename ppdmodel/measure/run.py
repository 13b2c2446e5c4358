"""A measurement from prompts to a folder, batch by batch and resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidInputError
from ..progress import OnProgress, Progress, no_report, part_of
from ..results import io
from ..results.compatibility import TOKEN_IDS
from ..results.files import provenance
from ..results.measurement import Measurement
from .batch import measure_batch
from .decoder.ranks import Ranker
from .decoder.sampling import Sampling
from .decoder.verify import verified
from .distributed import Group
from .models.loading import PACKAGES, LoadedModel, load_model
from .models.sources import ModelSource
from .options import GENERATION, HARDWARE, GenerationOptions, HardwareOptions
from .prompts import Prompt, prompts_sha256, token_ids_sha256
from .store import Store

if TYPE_CHECKING:
    from .training.trained_exits import TrainedExits


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
        """Raise `InvalidInputError` where this part would have no batches."""
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
    generation: GenerationOptions = GENERATION,
    hardware: HardwareOptions = HARDWARE,
    *,
    exits: TrainedExits | None = None,
    guesses: bool = True,
    shard: Shard | None = None,
    on_progress: OnProgress = no_report,
) -> Measurement:
    """Measure the true token's rank at every exit layer, on the model's own text.

    Each finished batch is written to disk before the next begins. After an interruption the same
    call resumes the run; after Ctrl-C or an error the folder is readable and holds the prompts
    finished so far. A complete folder is returned without loading the model. Memory
    does not grow with the number of prompts until the end, when the result is read back.

    Started by `accelerate launch`, the processes share the batches, each on its own device, and
    write to one folder, which all of them must reach. A folder belongs to one run at a time.

    Args:
        source: the model, from `locate`.
        prompts: user messages; ids unique.
        out: the measurement's folder; new, empty, or holding part or all of this measurement.
        generation: how the text is generated.
        hardware: where the model runs, and in which number format.
        exits: trained exits, from `load_exits`; None reads the logit exit.
        guesses: whether to store the first 8 guesses of every exit too, in `guesses.parquet`.
        shard: the part of the batches to do; `merge` joins them.
        on_progress: called after each decoding step and each ranked batch.

    Returns:
        The whole measurement, or the shard.

    Raises:
        InvalidInputError: an argument is outside its domain, a prompt does not fit the model, or
            `out` holds something else, or another run is using it.
        RunFailedError: the model could not be loaded, does not rank its own token first at its
            last layer, or `out` cannot be written.
    """
    if not prompts:
        raise InvalidInputError("a measurement needs a prompt; got none; give one or more")
    if exits is not None:
        exits.check_prompts(prompts)
    size = _balanced(len(prompts), generation.batch_size)
    if shard:
        shard.check(-(-len(prompts) // size))
    settings = {
        **source.provenance,
        "dtype": hardware.dtype,
        **_exit_settings(exits),
        **_decoding_settings(generation.sampling),
        **generation.provenance,
        "prompts_sha256": prompts_sha256(prompts),
        "n_prompts": len(prompts),
        "max_new_tokens": generation.max_new_tokens,
        "guesses": guesses,
        "shard": f"{shard.number}/{shard.count} of batches of {size}" if shard else None,
    }
    with Group(on_cpu=hardware.chosen_device == "cpu") as group, group.owns(out):
        store = Store(out, settings)
        batches = store.pending(prompts, size)
        if shard:
            batches = [b for b in batches if b[0] // size % shard.count == shard.number - 1]
        group.wait()  # so that all processes see the same folder
        mine = batches[group.rank :: group.size]
        try:
            if mine:
                with hardware.threads():
                    on_progress(Progress("loading", 0, 0))
                    device = group.device or hardware.chosen_device
                    loaded = load_model(source, hardware.dtype, device, hardware.device_map)
                    _measure_batches(loaded, prompts, mine, store, generation, exits, on_progress)
            group.wait()
        finally:
            if group.rank == 0:
                store.join_batches()
        group.wait()
        return io.read_measurement(out)


def _balanced(n_prompts: int, batch_size: int) -> int:
    """Prompts per batch, such that all batches are about equally large.

    >>> _balanced(72, 32)
    24
    """
    batches = -(-n_prompts // batch_size)
    return -(-n_prompts // batches)


def _exit_settings(exits: TrainedExits | None) -> dict[str, Any]:
    if exits is None:
        return {"exit_kind": "logit", "exits_sha256": None}
    return {"exit_kind": exits.kind, "exits_sha256": exits.sha256, "exits": exits.about}


def _decoding_settings(sampling: Sampling | None) -> dict[str, Any]:
    if sampling is None:
        return {"decoding": "greedy"}
    return {"decoding": "sampled", **asdict(sampling)}


def _measure_batches(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    batches: Sequence[Sequence[int]],
    store: Store,
    generation: GenerationOptions,
    exits: TrainedExits | None,
    on_progress: OnProgress,
) -> None:
    """Decode, rank and store batches of prompts, one after another."""
    decoder = verified(loaded.model)
    if exits is not None:
        exits.check_tokenizer(loaded)
        decoder = replace(decoder, exit=exits.on(decoder.exit))
    chosen = [number for batch in batches for number in batch]
    # all prompts, whatever this run is to do, and before any is decoded
    read = _read(loaded, prompts, generation)
    fingerprint = {TOKEN_IDS: token_ids_sha256(read)}
    store.check_texts(fingerprint)
    for number in chosen:  # a conversation may exceed the context
        room = generation.max_new_tokens * len(prompts[number].turns)
        loaded.check_room(prompts[number].id, len(read[number]), room)
    listed = decoder.exit.shortlist
    about = dict(store.settings) | {
        **fingerprint,
        "k_max": decoder.exit.vocabulary if listed is None else len(listed),
        **({} if listed is None else {"vocabulary": decoder.exit.vocabulary}),
        "device": str(loaded.model.device),
        "threads": torch.get_num_threads(),
        "batch_size": max(map(len, batches)),
        **provenance(PACKAGES),
    }
    decoder = decoder.prepacked()
    ranker = Ranker(decoder.exit)
    done = 0
    for batch in batches:
        start, end = done / len(chosen), (done + len(batch)) / len(chosen)
        report = part_of(on_progress, start, end, store.n_tokens)
        mine = [prompts[number] for number in batch]
        if _read(loaded, mine, generation) != [read[number] for number in batch]:
            raise InvalidInputError(
                "the chat template must give the same texts throughout a run; got others than at "
                "its beginning, as from one that states the date or the time; give that by "
                "--template-arg, or use --raw"
            )
        measured = measure_batch(loaded, decoder, ranker, mine, generation, report)
        part = measured.measurement(about, batch)
        store.add(part, measured.guesses() if store.settings["guesses"] else None)
        done += len(batch)
        del measured, part  # free the memory before the next batch


def _read(
    loaded: LoadedModel, prompts: Sequence[Prompt], generation: GenerationOptions
) -> list[list[int]]:
    """What the model reads: token ids of whole conversations, with empty answers."""
    return generation.encode(loaded, prompts, [[""] * len(p.later_turns) for p in prompts])
