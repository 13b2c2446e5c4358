"""Trained exits: an affine map per layer, fitted on the model's own text, and their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...checks import positive_integer
from ...errors import InvalidInputError
from ...progress import OnProgress, Progress, no_report, part_of
from ...results import files
from ...results.locks import LOCK_FILE, owns_out
from ..decoder.ranks import Ranker
from ..decoder.verify import verified
from ..models.loading import PACKAGES, LoadedModel, load_model
from ..models.packaged import sha256
from ..models.sources import ModelSource
from ..options import HARDWARE, GenerationOptions, HardwareOptions
from ..prompts import Prompt, prompts_sha256
from ..store import UNFINISHED, check_same
from .hidden_states import States, collect, opened, save
from .ridge import FittedMap, LayerFit, Split, selection_record
from .trained_exits import (
    ABOUT_FILE,
    SHORTLIST,
    WEIGHTS_FILE,
    TrainedExits,
    fingerprint,
    load_exits,
    most_frequent,
    tokenizer_sha256,
)

OBJECTIVES = ("ridge", "kl")


@dataclass(frozen=True)
class TrainingOptions:
    """How exits are fitted to the states.

    Attributes:
        objective: "ridge" or "kl".
        exit_layers: layers to train, from 1, below the last; None trains all.
        max_tokens: train on no more than about this many tokens: whole prompts, in order.
        epochs: passes through the tokens with "kl".
        vocabulary: exits guess only so many tokens, the most frequent of the training text; None
            is all. With it, `exit_layers` may be empty: logit exits with a shortlist.

    Raises:
        InvalidInputError: an unknown objective, a number that is not a positive integer, or neither
            a layer nor a shortlist.
    """

    objective: str = "ridge"
    exit_layers: Sequence[int] | None = None
    max_tokens: int | None = None
    epochs: int = 3
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidInputError(f"objective must be ridge or kl; got {self.objective!r}")
        positive_integer("epochs", self.epochs)
        if self.max_tokens is not None:
            positive_integer("max_tokens", self.max_tokens)
        if self.vocabulary is not None:
            positive_integer("vocabulary", self.vocabulary)
        elif self.exit_layers is not None and not self.exit_layers:
            raise InvalidInputError(
                "training needs layers or a shortlist; got neither; give exit_layers or vocabulary"
            )

    @property
    def provenance(self) -> dict[str, Any]:
        """The fit's entries in the exits' provenance."""
        layers = self.exit_layers
        return {
            "max_tokens": self.max_tokens,
            "objective": self.objective,
            "epochs": self.epochs if self.objective == "kl" else None,
            "exit_layers": sorted(set(layers)) if layers is not None else None,
            "vocabulary": self.vocabulary,
        }


#: defaults of `train_exits`
GENERATION, TRAINING = GenerationOptions(batch_size=24), TrainingOptions()


def text_settings(
    source: ModelSource,
    prompts: Sequence[Prompt],
    generation: GenerationOptions,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Settings that determine the training text and its hidden states."""
    return {
        **source.provenance,
        "dtype": dtype,
        **generation.provenance,
        "prompts_sha256": prompts_sha256(prompts),
        "max_new_tokens": generation.max_new_tokens,
    }


@owns_out
def train_exits(
    source: ModelSource,
    prompts: Sequence[Prompt],
    out: Path,
    training: TrainingOptions = TRAINING,
    generation: GenerationOptions = GENERATION,
    hardware: HardwareOptions = HARDWARE,
    *,
    on_progress: OnProgress = no_report,
) -> TrainedExits:
    """Fit an affine map per exit layer on the model's own greedy text.

    A map's output is added to the head's input; its own input is the layer's state divided by its
    root mean square. It is fitted by ridge regression in closed form, from normal equations in
    float64. Of several penalties the one with the best mean match rate over k = 1...8 on every
    fourth prompt is chosen, with the logit exit among the candidates, and the map is fitted again
    on all prompts. With objective "kl", gradient descent on the divergence from the model's own
    distribution starts from that map.

    After an interruption the same call resumes from the stored text and finished layers. Until the
    end, `out` also holds the hidden states: layers x width numbers per token.

    Args:
        source: the model, from `locate`.
        prompts: their first turns are answered; at least 8. Never those to be measured.
        out: folder for the exits; new, empty, or holding this same training.
        training: how the exits are fitted.
        generation: how the text is generated; always greedily.
        hardware: where the model runs, and in which number format.
        on_progress: called as the work goes on.

    Raises:
        InvalidInputError: an argument is outside its domain, `out` holds something else, or
            another run is using it.
        RunFailedError: the model could not be loaded, or `out` cannot be written.
    """
    if len(prompts) < 8:
        raise InvalidInputError(
            f"training needs at least 8 prompts, every fourth to choose by; got {len(prompts)}"
        )
    if generation.sampling is not None:
        raise InvalidInputError(
            f"exits must be trained on greedy text; got {generation.sampling}; leave it out"
        )
    settings = text_settings(source, prompts, generation, hardware.dtype) | training.provenance
    if not _is_done(out, settings):
        with hardware.threads():
            on_progress(Progress("loading", 0, 0))
            loaded = load_model(source, hardware.dtype, hardware.chosen_device, hardware.device_map)
            trainer = Trainer(loaded, prompts, settings, on_progress)
            trainer.layers_to_train(training)  # checked before the text is generated
            trainer.collect(out / UNFINISHED, generation, training.max_tokens)
            trainer.train(out, training)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return load_exits(out, source)


def _is_done(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds this training, complete.

    Raises:
        InvalidInputError: it holds something else.
    """
    for name in (WEIGHTS_FILE, ABOUT_FILE):
        for cut_short in out.glob(f".{name}.part-*"):  # left by a killed process
            cut_short.unlink()
    found = {path.name for path in out.iterdir()} - {LOCK_FILE}
    if not found:
        return False
    if ABOUT_FILE in found:
        about = files.read_json(out / ABOUT_FILE, files.TRAINED_EXITS)["provenance"]
        check_same(out, about, settings, "training")
        return True
    if not found <= {UNFINISHED, WEIGHTS_FILE} or UNFINISHED not in found:
        raise InvalidInputError(
            f"the out folder must be new, empty or hold an unfinished training; got {out} with "
            "other files; choose another --out"
        )
    return False


class Trainer:
    """A model, its training prompts and their states, shared by several fits."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Prompt],
        settings: Mapping[str, Any],
        on_progress: OnProgress = no_report,
    ) -> None:
        self.loaded, self.prompts, self.settings = loaded, list(prompts), settings
        self.on_progress = on_progress
        self.decoder = verified(loaded.model)
        self.exit = self.decoder.exit
        self.states: States  #: of the prompts, once they are collected

    def layers_to_train(self, training: TrainingOptions) -> list[int]:
        """The given layers, sorted and unique; None gives all below the last.

        Raises:
            InvalidInputError: a layer is not below the last, or the model has none that is; the
                shortlist exceeds the vocabulary.
        """
        layers, given = self.loaded.layers, training.exit_layers
        chosen = sorted(set(given)) if given is not None else list(range(1, layers))
        if training.vocabulary and training.vocabulary > self.exit.vocabulary:
            raise InvalidInputError(
                f"vocabulary must be at most the model's {self.exit.vocabulary} tokens; got "
                f"{training.vocabulary}; give less, or leave it out for all of them"
            )
        if not chosen and given is None:
            raise InvalidInputError(
                f"training needs a layer below the last; got none of {layers} layers; give one"
            )
        for layer in chosen:
            if not 1 <= layer < layers:
                raise InvalidInputError(
                    f"exit layers to train must lie from 1 to {layers - 1}; got {layer}; "
                    "the last one is the model itself"
                )
        return chosen

    def collect(
        self, folder: Path, generation: GenerationOptions, max_tokens: int | None = None
    ) -> None:
        """Answer the prompts and store the states in a folder."""
        self.states = collect(
            self.loaded,
            self.decoder,
            self.prompts,
            folder,
            generation,
            self.settings,
            max_tokens,
            part_of(self.on_progress, 0, 0.5),
        )

    def split(self, max_tokens: int | None) -> Split:
        """Split the first prompts, up to this many tokens, for training and validation."""
        prompt = self.states.column("prompt", lambda p: p >= 0)
        tokens = torch.bincount(prompt, minlength=self.states.n_prompts).cumsum(0)
        within = int((tokens <= max_tokens).sum()) if max_tokens else len(tokens)
        if within < 8:
            raise InvalidInputError(
                f"max_tokens must cover at least 8 prompts; got {max_tokens}, which covers "
                f"{within}; raise it or lower --max-new-tokens"
            )
        return Split(within)

    def train(self, out: Path, training: TrainingOptions = TRAINING) -> None:
        """Train layers in turn and write the exits; layers already on disk are kept."""
        layers = self.layers_to_train(training)
        split = self.split(training.max_tokens)
        text = self.states.column("token_id", split.both)
        tokens, exit_ = len(text), self.exit
        record: dict[str, Any] = {}
        tensors: dict[str, torch.Tensor] = {}
        if training.vocabulary is not None:
            counts = torch.bincount(text, minlength=self.exit.vocabulary)
            tensors[SHORTLIST] = most_frequent(counts, training.vocabulary)
            exit_ = replace(self.exit, shortlist=tensors[SHORTLIST].to(self.exit.weight.device))
        ranker = Ranker(exit_)
        for number, layer in enumerate(layers):
            self.on_progress(Progress("training", tokens, 0.5 + 0.5 * number / len(layers)))
            done = out / UNFINISHED / f"layer_{layer:02d}.safetensors"
            if not done.is_file():
                best, about = self._layer(ranker, split, layer, training)
                named = vars(best.map) if best.map is not None else {}
                own = {f"layer_{layer:02d}.{name}": tensor.cpu() for name, tensor in named.items()}
                save(own, done, {"about": json.dumps(files.json_ready(about))})
            with opened(done) as file:
                record[str(layer)] = json.loads(file.metadata()["about"])
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._write(out, tensors, record, split, text)
        self.on_progress(Progress("training", tokens, 1.0))

    def _layer(
        self, ranker: Ranker, split: Split, layer: int, training: TrainingOptions
    ) -> tuple[FittedMap, dict[str, Any]]:
        fit = LayerFit(ranker.exit, ranker, self.states, split, layer)
        candidates = fit.candidates()
        if training.objective == "kl":
            best = fit.descend(candidates[0], training.epochs)
            return best, selection_record([best, *candidates])
        return fit.refit(candidates[0]), selection_record(candidates)

    def _write(
        self,
        out: Path,
        tensors: dict[str, torch.Tensor],
        record: Mapping[str, Any],
        split: Split,
        text: torch.Tensor,
    ) -> None:
        used = self.prompts[: split.end]
        choosing = split.chooses(torch.arange(split.end)).sum() if record else 0
        about = {
            "schema": files.TRAINED_EXITS,
            "schema_version": files.SCHEMA_VERSION,
            "layers": self.loaded.layers,
            "objective": self.settings["objective"] if record else None,
            "n_tokens": len(text),
            "n_prompts": len(used),
            "n_choosing": int(choosing),
            "by_layer": record,
            "trained_on": [fingerprint(prompt) for prompt in used],
            "provenance": dict(self.settings)
            | {
                "device": str(self.loaded.model.device),
                "threads": torch.get_num_threads(),
                **files.provenance(PACKAGES),
            },
        }
        if SHORTLIST in tensors:
            counts = torch.bincount(text, minlength=self.exit.vocabulary)[tensors[SHORTLIST]]
            about[SHORTLIST] = {
                "n": len(counts),
                "n_in_text": int((counts > 0).sum()),
                "text_share": float(counts.sum() / len(text)),
                "tokenizer_sha256": tokenizer_sha256(self.loaded.tokenizer),
            }
        save(tensors, out / WEIGHTS_FILE)
        files.write_json(out / ABOUT_FILE, about | {"sha256": sha256(out / WEIGHTS_FILE)})
