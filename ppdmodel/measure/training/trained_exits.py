"""Trained exits on disk: affine maps by layer, and a shortlist of the tokens that exits guess."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...errors import InvalidInputError
from ...results import files
from ..decoder.exit import AffineMap, Exit
from ..models.loading import LoadedModel
from ..models.packaged import sha256
from ..models.sources import ModelSource
from ..prompts import Prompt

WEIGHTS_FILE, ABOUT_FILE = "exits.safetensors", "exits.json"
#: name of the tensor of token ids that exits guess, and of what says how they were chosen
SHORTLIST = "shortlist"


@dataclass(frozen=True)
class TrainedExits:
    """Affine maps by layer and a shortlist, with the provenance of their training.

    `about` is copied into a measurement's provenance. `trained_on` has fingerprints of the
    prompts, which must not be measured with these exits. `shortlist` has the token ids [n] that
    exits guess, in ascending order; None is all. Without maps these are logit exits.
    """

    maps: Mapping[int, AffineMap]
    sha256: str
    about: Mapping[str, Any]
    document: Mapping[str, Any] = field(repr=False)
    shortlist: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def kind(self) -> str:
        """The exit kind: "logit" of a shortlist alone, else "trained"."""
        return "trained" if self.maps or self.shortlist is None else "logit"

    @property
    def trained_on(self) -> frozenset[str]:
        """Fingerprints of the training and validation prompts."""
        return frozenset(self.document["trained_on"])

    def on(self, exit_: Exit) -> Exit:
        """Return a model's exit with these maps.

        Raises:
            InvalidInputError: their shapes do not fit the model, or they are not finite in its
                number type.
        """
        self.check_shape(len(exit_.decoder_layers), exit_.weight.shape[1])
        like = exit_.weight
        maps = {n: AffineMap(m.weight.to(like), m.bias.to(like)) for n, m in self.maps.items()}
        for layer, map_ in maps.items():
            if not all(tensor.isfinite().all() for tensor in (map_.weight, map_.bias)):
                raise InvalidInputError(
                    "trained exits must be finite; got NaN or infinity in the map of layer "
                    f"{layer} in {str(like.dtype).removeprefix('torch.')}; train exits again"
                )
        listed = self.shortlist
        if listed is not None and int(listed.max()) >= exit_.vocabulary:
            raise InvalidInputError(
                "a shortlist must hold tokens of the model; got token "
                f"{int(listed.max())} of a vocabulary of {exit_.vocabulary}; train exits for this "
                "model"
            )
        listed = None if listed is None else listed.to(like.device)
        return replace(exit_, maps=maps, kind=self.kind, shortlist=listed)

    def check_tokenizer(self, loaded: LoadedModel) -> None:
        """Raise `InvalidInputError` where the shortlist was chosen with another tokenizer."""
        about, tokenizer = self.document.get("shortlist"), loaded.tokenizer
        if about is None or tokenizer is None:  # ids of random weights stand for no texts
            return
        if about["tokenizer_sha256"] != tokenizer_sha256(tokenizer):
            raise InvalidInputError(
                "a shortlist must be of the model's tokenizer; got one whose ids stand for other "
                f"texts than in the tokenizer of {loaded.source.name}; train exits again"
            )

    def check_shape(self, layers: int, width: int) -> None:
        """Raise `InvalidInputError` where a map does not fit a model of these sizes."""
        for layer, map_ in self.maps.items():
            shapes = tuple(map_.weight.shape), tuple(map_.bias.shape)
            if shapes != ((width, width), (width,)) or not 1 <= layer < layers:
                raise InvalidInputError(
                    f"trained exits must fit the model; got a map of {shapes[0]} and {shapes[1]} "
                    f"for layer {layer} of {layers}; train exits for this model"
                )

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise `InvalidInputError` where a prompt was used in training."""
        known = self.trained_on
        used = [prompt.id for prompt in prompts if fingerprint(prompt) in known]
        if used:
            raise InvalidInputError(
                "exits must be measured on prompts that they were not trained on; got "
                f"{len(used)} that were, such as {used[0]!r}; give other prompts"
            )


def fingerprint(prompt: Prompt) -> str:
    """A short hash of a prompt's first turn, which is what exits are trained on.

    Messages that are given before it count too.
    """
    given = json.dumps(prompt.context) if prompt.context else ""
    text = given + prompt.text.strip()
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def tokenizer_sha256(tokenizer: Any) -> str:
    """A hash of the text that each token id stands for."""
    texts = sorted((number, text) for text, number in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def most_frequent(counts: torch.Tensor, n: int) -> torch.Tensor:
    """The n most frequent token ids in ascending order; of equally frequent ones the smallest.

    Tokenizers give common pieces of text small ids, as byte-pair encoding merges them first.

    >>> most_frequent(torch.tensor([0, 7, 0, 2, 0]), 3)
    tensor([0, 1, 3])
    """
    return torch.argsort(counts, descending=True, stable=True)[:n].sort().values


def load_exits(folder: str | Path, source: ModelSource) -> TrainedExits:
    """Read trained exits.

    Args:
        folder: what `train_exits` wrote.
        source: the model that they must have been trained for; random weights take those of any
            model of the same width, since what a map costs does not depend on its values.

    Raises:
        InvalidInputError: the folder holds none, its files do not match each other, or they were
            trained for other weights, or for random ones of other sizes.
    """
    folder = Path(folder)
    if not (folder / ABOUT_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise InvalidInputError(
            f"a folder of trained exits must hold {ABOUT_FILE} and {WEIGHTS_FILE}; got {folder} "
            "without them; make them with: ppdmodel train-exits"
        )
    document = files.read_json(folder / ABOUT_FILE, files.TRAINED_EXITS)
    digest = sha256(folder / WEIGHTS_FILE)
    if digest != document["sha256"]:
        raise InvalidInputError(
            f"the two files of {folder} must belong together; got {WEIGHTS_FILE} with another "
            "sha256; train again into another folder"
        )
    trained_for = document["provenance"]["weights_sha256"]
    if not source.random_weights and list(source.weights_sha256) != trained_for:
        raise InvalidInputError(
            f"trained exits must be those of the model; got {folder}, trained for "
            f"{document['provenance']['model']}, and {source.name}; train exits for this model"
        )
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        listed = _checked_shortlist(tensors.pop(SHORTLIST, None), document.get(SHORTLIST))
        names = sorted({name.partition(".")[0] for name in tensors})
        maps = {
            int(name.removeprefix("layer_")): AffineMap(
                tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            )
            for name in names
        }
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{name} is not of finite numbers")
        trained = {
            int(layer)
            for layer, one in document["by_layer"].items()
            if one["penalty"] is not None or one["epochs"]  # else the logit exit was the best
        }
        if trained != maps.keys():
            raise ValueError(f"maps of layers {sorted(maps)}, not {sorted(trained)}")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InvalidInputError(
            f"{folder / WEIGHTS_FILE} must hold weight and bias by layer; got: {error}; train again"
        ) from None
    about = {name: document[name] for name in ("objective", "n_tokens", "n_prompts")}
    if listed is not None:
        about[SHORTLIST] = len(listed)
    found = TrainedExits(dict(sorted(maps.items())), digest, about, document, listed)
    if source.random_weights:
        config = source.random_weights["config"]
        sizes = config.get("text_config", config)
        found.check_shape(sizes["num_hidden_layers"], sizes["hidden_size"])
    return found


def _checked_shortlist(
    ids: torch.Tensor | None, about: Mapping[str, Any] | None
) -> torch.Tensor | None:
    """The token ids of a shortlist, as its document describes them.

    Raises:
        ValueError: they are not; says what they are instead.
    """
    if ids is None and about is None:
        return None
    n = None if about is None else about["n"]
    if ids is None or n is None or list(ids.shape) != [n] or ids.dtype != torch.int64:
        found = "none" if ids is None else f"{str(ids.dtype).removeprefix('torch.')} {[*ids.shape]}"
        raise ValueError(f"{SHORTLIST} is {found} instead of {n} token ids")
    if int(ids[0]) < 0 or bool((ids.diff() <= 0).any()):
        raise ValueError(f"{SHORTLIST} is not of token ids in ascending order, each once")
    return ids
