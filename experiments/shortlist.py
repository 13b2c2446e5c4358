"""Cheaper readings of an exit, by match rate and time: `python -m experiments.shortlist MODEL`.

Exits may score a part of the vocabulary only, or all of it by a head in 8 bits or of low rank. Maps
and lists come from training prompts; the texts of the measurement in data/ judge. Writes
`MODEL-shortlist.json`: match rates with intervals, what each reading loses beside the whole head on
the same tokens, and the time of one reading on one core. States and exits go to results/exits, and
are reused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppdmodel import Measurement, load
from ppdmodel.measure import (
    GenerationOptions,
    HardwareOptions,
    TrainingOptions,
    default_prompts,
    load_exits,
    load_model,
    locate,
    training_prompts,
)
from ppdmodel.measure.decoder.exit import Exit
from ppdmodel.measure.models.loading import LoadedModel
from ppdmodel.measure.training.train import Trainer, text_settings
from ppdmodel.measure.training.trained_exits import most_frequent
from ppdmodel.pipeline import cpu_kernels
from ppdmodel.pipeline.devices import CPU, machine
from ppdmodel.pipeline.packing import packed
from ppdmodel.results.files import atomic
from ppdmodel.results.intervals import METHOD, RATE_METHOD, prompt_weights, rate_of
from ppdmodel.results.summary import RESAMPLES, SEED

from .exits import DATA, SCRATCH, gain, rounded

SIZES, SHOWN_K = (1024, 2048, 4096, 8192, 16384), (1, 5)
#: relative depths of the exits
DEPTHS = (1 / 2, 2 / 3, 4 / 5)
#: dimensions of heads of low rank, and candidates that the second of two stages scores exactly
RANKS, CANDIDATES = (64, 128, 256), 64
#: rows whose logits are in memory at a time, and repetitions of each time
ROWS, REPETITIONS = 128, 60


@dataclass(frozen=True)
class Texts:
    """Tokens to guess, in order of prompts: `token` and `prompt` [n], and each prompt's own ids."""

    token: Tensor
    prompt: Tensor
    read: Sequence[Tensor]

    def words(self, rows: slice, vocabulary: int, *, made: bool) -> Tensor:
        """Tokens of each row's prompt, and those made before it, as a mask [rows, vocabulary]."""
        owners = self.prompt[rows]
        found = torch.zeros(len(owners), vocabulary, dtype=torch.bool)
        for row, owner in enumerate(owners.tolist()):
            found[row, self.read[owner]] = True
            if made:
                first = int((self.prompt < owner).sum())
                found[row, self.token[first : rows.start + row]] = True
        return found


#: names of readings, each with its ranks of some true tokens [rows]
Ranks = dict[str, Tensor]


class Readings:
    """All readings of one model's head.

    Args:
        exit_: the model's exit.
        counts: of each token in the training text, [vocabulary].
        texts: the tokens to guess.
    """

    def __init__(self, exit_: Exit, counts: Tensor, texts: Texts) -> None:
        self.exit, self.texts = exit_, texts
        weight = exit_.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.in_8_bits = (weight / scale).round() * scale
        # the eigenvectors of W'W are the right singular vectors of W, the largest ones last
        self.basis = torch.linalg.eigh(weight.T @ weight).eigenvectors.flip(1)
        self.low = weight @ self.basis[:, : max(RANKS)]
        self.sizes = [n for n in SIZES if n < len(weight)]
        self.lists = {
            "first ids": {n: torch.arange(n) for n in self.sizes},
            "own text": {n: most_frequent(counts, n) for n in self.sizes},
        }

    def _finished(self, states: Tensor, weight: Tensor) -> Tensor:
        return self.exit.finish(torch.nn.functional.linear(states, weight, self.exit.bias))

    @torch.inference_mode()
    def ranks(self, states: Tensor, start: int) -> Ranks:
        """The rank of each true token by every reading; beyond the vocabulary where it has none.

        Args:
            states: the head's input, [rows, width].
            start: which token of the texts is that of the first row.
        """
        rows = slice(start, start + len(states))
        target = self.texts.token[rows][:, None]
        exact = self._finished(states, self.exit.weight)
        above, none = exact > exact.gather(1, target), exact.shape[1] + 1
        found: Ranks = {"whole": 1 + above.sum(1)}
        words = {
            name: self.texts.words(rows, none - 1, made=made)
            for name, made in (("prompt", False), ("prompt and text so far", True))
        }

        def among(mask: Tensor) -> Tensor:
            rank = 1 + (above & mask).sum(1)
            known = mask.expand_as(above).gather(1, target)[:, 0]
            return rank.masked_fill(~known, none)

        for name, lists in self.lists.items():
            for n, ids in lists.items():
                mask = torch.zeros(1, none - 1, dtype=torch.bool)
                mask[:, ids] = True
                found[f"{name} {n}"] = among(mask)
                for added, more in words.items() if name == "own text" else ():
                    found[f"{name}, {added} {n}"] = among(mask | more)
        rough = self._finished(states, self.in_8_bits)
        found["8 bits"] = 1 + (rough > rough.gather(1, target)).sum(1)
        for rank in RANKS:
            rough = self._finished(states @ self.basis[:, :rank], self.low[:, :rank])
            found[f"rank {rank}"] = 1 + (rough > rough.gather(1, target)).sum(1)
            best = torch.zeros_like(above).scatter_(1, rough.topk(CANDIDATES, 1).indices, True)
            found[f"rank {rank}, then {CANDIDATES} exactly"] = among(best)
        return found


@torch.inference_mode()
def states_of(
    loaded: LoadedModel,
    exit_: Exit,
    texts: Texts,
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int],
) -> dict[int, Tensor]:
    """Each layer's states [n, width] that made the tokens of the texts, each read in one pass."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def kept(layer: int, first: int) -> Callable[..., None]:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            found[layer].append(states[0, first:-1].clone())

        return keep

    for number, ids in enumerate(prompts):
        made = texts.token[texts.prompt == number].tolist()
        handles = [
            exit_.decoder_layers[layer - 1].register_forward_hook(kept(layer, len(ids) - 1))
            for layer in layers
        ]
        loaded.model(torch.tensor([[*ids, *made]]), use_cache=False, logits_to_keep=1)
        for handle in handles:
            handle.remove()
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def rates(readings: Readings, states: Tensor, exits: Mapping[str, Exit], layer: int) -> list[Any]:
    """Match rates of all readings of one layer by each kind of exit, and their losses.

    `states` [n, width] are those of that layer.
    """
    texts, rows = readings.texts, []
    tokens = torch.bincount(texts.prompt).numpy()
    weights = prompt_weights(len(tokens), RESAMPLES, SEED)
    for kind, exit_ in exits.items():
        with torch.inference_mode():
            parts = [
                readings.ranks(exit_.head_input(states[start : start + ROWS], layer), start)
                for start in range(0, len(states), ROWS)
            ]
        ranks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for k in SHOWN_K:
            hits = {
                name: torch.bincount(texts.prompt[rank <= k], minlength=len(tokens)).numpy()
                for name, rank in ranks.items()
            }
            rows += [
                {
                    "exits": kind,
                    "exit_layer": layer,
                    "k": k,
                    "reading": name,
                    "rate": rounded(rate_of(mine, tokens)),
                    "loss": gain(hits["whole"] - mine, tokens, weights),
                }
                for name, mine in hits.items()
            ]
    return rows


def product_with(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The product of states [rows, in] with a weight [in, out], as the engine of PPD has it."""
    panels, none = packed(weight).numpy(), np.zeros(0, np.float32)

    def product(states: Tensor) -> Tensor:
        found = np.empty((len(states), panels.shape[0] * panels.shape[2]), np.float32)
        cpu_kernels.multiply(states.numpy(), panels, none, found)
        return torch.from_numpy(found)[:, : weight.shape[1]]

    return product


def times(readings: Readings) -> dict[str, list[float]]:
    """Milliseconds of one reading of one row on one core: median and quartiles.

    The readings take turns, so that none finds its weights in the cache.
    """
    weight = readings.exit.weight.detach().float()
    state = torch.randn(1, weight.shape[1])
    columns = product_with(weight.T)
    low = {rank: product_with(readings.low[:, :rank].T) for rank in RANKS}
    basis = {rank: product_with(readings.basis[:, :rank]) for rank in RANKS}
    scale = weight.abs().amax(1, keepdim=True) / 127
    in_8_bits, scales = (weight / scale).round().to(torch.int8), scale[:, 0].bfloat16()

    def in_two_stages(rank: int) -> Tensor:
        rough = low[rank](basis[rank](state))
        return weight[rough.topk(CANDIDATES, 1).indices[0]] @ state[0]

    calls: dict[str, Callable[[], Tensor]] = {"whole": lambda: columns(state)}
    for n in readings.sizes:
        part = product_with(weight[readings.lists["own text"][n]].T)
        calls[f"own text {n}"] = lambda part=part: part(state)  # type: ignore[misc]
    multiply_8_bits = torch.ops.aten._weight_int8pack_mm
    calls["8 bits"] = lambda: multiply_8_bits(state.bfloat16(), in_8_bits, scales)
    for rank in RANKS:
        name = f"rank {rank}"
        calls[name] = lambda r=rank: low[r](basis[r](state))  # type: ignore[misc]
        calls[f"{name}, then {CANDIDATES} exactly"] = lambda r=rank: in_two_stages(r)  # type: ignore[misc]
    found: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(REPETITIONS):
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                found[name].append(1e3 * (time.perf_counter() - begin))
    quartiles = {name: np.percentile(values, [50, 25, 75]) for name, values in found.items()}
    return {name: [round(float(x), 4) for x in values] for name, values in quartiles.items()}


def main() -> None:
    """Train, read, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, help="training tokens; default all")
    parser.add_argument("--prompts", type=int, default=48, help="prompts that judge")
    arguments = parser.parse_args()
    with HardwareOptions(n_threads=arguments.threads).threads():
        document = compared(arguments)
    with HardwareOptions(n_threads=1).threads():
        timed = times(document.pop("readings"))
    document |= {"milliseconds": timed, "machine": machine((CPU,))}
    lines = ",\n  ".join(json.dumps(row) for row in document["rows"])
    head = json.dumps({**document, "rows": []}, indent=1)
    with atomic(DATA / f"{arguments.model}-shortlist.json") as part:
        part.write_text(head.replace('"rows": []', f'"rows": [\n  {lines}\n ]') + "\n")
    for kind in ("trained", "logit"):
        sys.stdout.write(f"{kind}:\n{table(document, kind)}\n")


def compared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything but times: the document, with the readings in it."""
    source, raw = locate(arguments.model), arguments.raw
    home, generation = SCRATCH / source.name, GenerationOptions(batch_size=24, raw=raw)
    prompts, judges = training_prompts(), default_prompts()[: arguments.prompts]
    settings = text_settings(source, prompts, generation) | {"objective": "ridge"}
    loaded = load_model(source)
    trainer = Trainer(loaded, prompts, settings)
    trainer.collect(home / "states", generation, arguments.tokens)
    layers = sorted({round(depth * loaded.layers) for depth in DEPTHS})
    folder = home.with_name(f"{source.name}-{arguments.tokens or 'all'}-{len(layers)}-layers")
    if not (folder / "exits.json").is_file():
        trainer.train(folder, TrainingOptions(exit_layers=layers, max_tokens=arguments.tokens))
        shutil.rmtree(folder / ".unfinished", ignore_errors=True)
    exits = load_exits(folder, source)
    split = trainer.split(arguments.tokens)
    text = trainer.states.column("token_id", split.both)
    measured = load(DATA / arguments.model)
    assert isinstance(measured, Measurement)
    assert measured.prompt_ids[: len(judges)] == tuple(prompt.id for prompt in judges)
    mine = measured.prompt_index < len(judges)
    read = generation.encode(loaded, judges)
    texts = Texts(
        torch.tensor(measured.token_id[mine].astype(int)),
        torch.tensor(measured.prompt_index[mine]),
        [torch.tensor(sorted(set(ids))) for ids in read],
    )
    counts = torch.bincount(text, minlength=trainer.exit.vocabulary)
    readings = Readings(trainer.exit, counts, texts)
    kinds = {"logit": trainer.exit, "trained": exits.on(trainer.exit)}
    states = states_of(loaded, trainer.exit, texts, read, layers)
    rows = [row for layer in layers for row in rates(readings, states[layer], kinds, layer)]
    return {
        "what": "match rates and times of cheaper readings of exits, on prompts that neither "
        "trained nor chose them; loss is against the whole head, on the same tokens",
        "model": source.name,
        "made_by": " ".join(["python -m experiments.shortlist", *sys.argv[1:]]),
        "vocabulary": len(counts),
        "n_tokens": len(texts.token),
        "n_prompts": len(judges),
        "training_tokens": len(text),
        "training_prompts": split.end,
        "different_training_tokens": int((counts > 0).sum()),
        "mean_prompt_words": float(np.mean([len(ids) for ids in texts.read])),
        "interval": {
            "method": RATE_METHOD,
            "loss": METHOD,
            "level": 0.95,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "rows": rows,
        "readings": readings,
    }


def table(document: Mapping[str, Any], exits: str, k: int = 5) -> str:
    """A Markdown table: a row per reading, its time, and the match rates of one kind of exit."""
    rows = [row for row in document["rows"] if (row["k"], row["exits"]) == (k, exits)]
    layers = list(dict.fromkeys(row["exit_layer"] for row in rows))
    lines = [
        "| reading | ms | " + " | ".join(f"exit {layer}" for layer in layers) + " |",
        "|---|---|" + "---|" * len(layers),
    ]
    for name in dict.fromkeys(row["reading"] for row in rows):
        found = (row["rate"] for row in rows if row["reading"] == name)
        cells = [f"{p:.3f} [{low:.3f}, {high:.3f}]" for p, low, high in found]
        took = document["milliseconds"].get(name)
        lines.append(" | ".join([f"| {name}", f"{took[0]:.2f}" if took else "", *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
