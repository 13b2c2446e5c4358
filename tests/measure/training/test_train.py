"""Trained exits by an independent path, which prompts they see, and their life on disk."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError
from ppdmodel.fitting.calibrate import fit
from ppdmodel.measure import run as run_module
from ppdmodel.measure.decoder import generate as generate_module
from ppdmodel.measure.decoder.exit import AffineMap, logit_exit, normalized
from ppdmodel.measure.decoder.sampling import Sampling
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.packaged import sha256
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import Prompt, default_prompts, training_prompts
from ppdmodel.measure.run import Shard
from ppdmodel.measure.shards import merge
from ppdmodel.measure.store import UNFINISHED
from ppdmodel.measure.training import hidden_states as states
from ppdmodel.measure.training import ridge as affine
from ppdmodel.measure.training.hidden_states import States
from ppdmodel.measure.training.train import Trainer
from ppdmodel.measure.training.trained_exits import (
    ABOUT_FILE,
    WEIGHTS_FILE,
    TrainedExits,
    fingerprint,
    load_exits,
)
from ppdmodel.progress import Progress
from ppdmodel.results.io import load, load_guesses
from ppdmodel.results.measurement import NO_RANK, Measurement
from ppdmodel.results.token_counts import check_guesses
from tests.conftest import make_tiny_llama
from tests.support.runs import measure_flat, train_flat
from tests.support.trained_exits import (
    LAYER,
    TOKENS,
    TRAINING,
    WORDS,
    forced,
    least_squares,
    poisoned,
    ranks_of,
)

HELD_OUT = [Prompt(f"h{n}", " ".join(WORDS[n : n + 4][::-1])) for n in range(6)]


def train(
    model: Path, out: Path, prompts: Sequence[Prompt] = TRAINING, **changes: Any
) -> TrainedExits:
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "batch_size": 4, "n_threads": 1} | changes
    return train_flat(locate(str(model)), prompts, out, **options)


def measured(model: Path, out: Path, exits: TrainedExits | None, **changes: Any) -> Measurement:
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "batch_size": 3, "n_threads": 1} | changes
    prompts = options.pop("prompts", HELD_OUT)
    return measure_flat(locate(str(model)), prompts, out, exits=exits, **options)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exits of the tiny model, by ridge regression."""
    out = tmp_path_factory.mktemp("exits") / "ridge"
    train(tiny_model, out)
    return out


# ---------------------------------------------------------------- an independent path


def regression(model: Any, tokenizer: Any, texts: Sequence[str], layer: int) -> tuple[Any, Any]:
    """Features x = h / rms(h) and targets, what the head lacks at a layer; float64."""
    features, targets = [], []
    for text in texts:
        _, below, last = forced(model, tokenizer, text)
        h = below[layer - 1]
        features.append(h / h.square().mean(1, keepdim=True).sqrt())
        with torch.no_grad():
            targets.append(last - model.model.norm(h))
    return torch.cat(features).double().numpy(), torch.cat(targets).double().numpy()


def test_a_map_is_the_least_squares_solution_on_transformers_own_states(
    trained: Path, plain_model: tuple[Any, Any]
) -> None:
    """On all prompts, those that chose among them, at the penalty that the record names."""
    about = json.loads((trained / ABOUT_FILE).read_text("utf-8"))["by_layer"][str(LAYER)]
    texts = [prompt.text for prompt in TRAINING]
    x, y = regression(*plain_model, texts, LAYER)
    weight, bias = least_squares(x, y, about["penalty"])
    found = load_file(trained / WEIGHTS_FILE)
    tolerance = 1e-3 * np.abs(weight).max()
    assert found[f"layer_{LAYER:02d}.weight"].numpy() == pytest.approx(weight, abs=tolerance)
    assert found[f"layer_{LAYER:02d}.bias"].numpy() == pytest.approx(bias, abs=tolerance)
    without = [text for n, text in enumerate(texts) if n % 4 != 3]
    other, _ = least_squares(*regression(*plain_model, without, LAYER), about["penalty"])
    assert np.abs(other - weight).max() > 20 * tolerance, "the check would see a missing refit"


def test_an_infinite_penalty_is_the_logit_exit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affine, "PENALTIES", ())
    exits = train(tiny_model, tmp_path / "e")
    assert exits.maps == {}
    by_layer = exits.document["by_layer"]
    assert list(by_layer) == ["1", "2", "3", "4"]
    for about in by_layer.values():
        assert about["penalty"] is None
        assert about["validation_hits"] == about["validation_hits_logit"]
    logit = measured(tiny_model, tmp_path / "logit", None)
    same = measured(tiny_model, tmp_path / "same", exits)
    assert (logit.provenance["exit_kind"], same.provenance["exit_kind"]) == ("logit", "trained")
    for name in ("token_id", "rank", "top_prob"):
        assert np.array_equal(getattr(same, name), getattr(logit, name))


# ---------------------------------------------------------------- what the maps do


def make_turning_llama(folder: Path) -> Path:
    """A tiny Llama whose last layer turns the state: normalized, a linear map of the one before.

    Its attention adds nothing, its gate is a constant, and what its MLP adds, a rotation times the
    normalized state, is so large that the rest does not matter.
    """
    make_tiny_llama(folder, layers=3, seed=5)
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"mlp_bias": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    for layer in range(3):
        name = f"model.layers.{layer}.mlp"
        for part, width in (("gate_proj", 64), ("up_proj", 64), ("down_proj", 32)):
            weights[f"{name}.{part}.bias"] = torch.zeros(width)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    weights["model.layers.2.self_attn.o_proj.weight"].zero_()
    weights["model.layers.2.mlp.gate_proj.weight"].zero_()
    weights["model.layers.2.mlp.gate_proj.bias"] = torch.ones(64)
    weights["model.layers.2.mlp.up_proj.weight"] = torch.eye(64, 32)
    weights["model.layers.2.mlp.down_proj.weight"] = 1e5 * turn @ torch.eye(32, 64)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_where_the_last_state_is_a_linear_map_the_exit_finds_it(tmp_path: Path) -> None:
    model = make_turning_llama(tmp_path / "turning")
    prompts = [replace(prompt, text=prompt.text * 2) for prompt in TRAINING * 3]
    exits = train(model, tmp_path / "e", prompts, max_new_tokens=20, batch_size=13)
    before = measured(model, tmp_path / "before", None, max_new_tokens=20).rank[:, 1]
    after = measured(model, tmp_path / "after", exits, max_new_tokens=20).rank[:, 1]
    assert (before == 1).mean() < 0.1, "read as it is, the layer knows nothing"
    assert (after == 1).mean() > 0.97
    assert after.max() <= 3


def test_ranks_at_trained_exits_equal_those_by_a_slow_path(
    tiny_model: Path, trained: Path, plain_model: tuple[Any, Any], tmp_path: Path
) -> None:
    exits = load_exits(trained, locate(str(tiny_model)))
    assert set(exits.maps) == {1, 2, 3, 4}
    result = measured(tiny_model, tmp_path / "m", exits)
    weights = load_file(trained / WEIGHTS_FILE)
    model, tokenizer = plain_model
    differing = 0
    for number, prompt in enumerate(HELD_OUT):
        made, below, last = forced(model, tokenizer, prompt.text)
        mine = result.prompt_index == number
        assert result.token_id[mine].tolist() == made
        with torch.no_grad():
            for layer, h in enumerate(below, start=1):
                x = h / h.square().mean(1, keepdim=True).sqrt()
                plain = model.model.norm(h)
                name = f"layer_{layer:02d}"
                added = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
                rank, plain_rank = (
                    ranks_of(model.lm_head(read), made) for read in (plain + added, plain)
                )
                assert result.rank[mine, layer - 1].tolist() == rank
                differing += sum(a != b for a, b in zip(rank, plain_rank, strict=True))
            assert result.rank[mine, -1].tolist() == ranks_of(model.lm_head(last), made)
    assert differing > 20, "the maps must matter"
    assert result.provenance["exits_sha256"] == exits.sha256
    about = {"objective": "ridge", "n_prompts": 13, "n_tokens": exits.document["n_tokens"]}
    assert result.provenance["exits"] == about


# ---------------------------------------------------------------- a shortlist

N = 40


@pytest.fixture(scope="module")
def listed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trained exits that guess 40 of 257 tokens."""
    out = tmp_path_factory.mktemp("exits") / "listed"
    train(tiny_model, out, vocabulary=N)
    return out


@pytest.fixture(scope="module")
def only_listed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same shortlist and no maps: logit exits."""
    out = tmp_path_factory.mktemp("exits") / "only-listed"
    train(tiny_model, out, vocabulary=N, exit_layers=())
    return out


def test_a_shortlist_has_the_most_frequent_tokens_of_the_training_text(
    tiny_model: Path, listed: Path, only_listed: Path, plain_model: tuple[Any, Any]
) -> None:
    """As Transformers makes it; then the smallest ids."""
    text = [token for prompt in TRAINING for token in forced(*plain_model, prompt.text)[0]]
    counts = Counter(text)
    ranked = sorted(range(257), key=lambda token: (-counts[token], token))
    ids = sorted(ranked[:N])
    source = locate(str(tiny_model))
    for folder in (listed, only_listed):
        exits = load_exits(folder, source)
        assert exits.shortlist is not None
        assert exits.shortlist.tolist() == ids
        assert exits.about["shortlist"] == N
        about = exits.document["shortlist"]
        assert about["n_in_text"] == len(counts.keys() & set(ids)) > 3
        share = sum(counts[token] for token in ids) / len(text)
        assert about["text_share"] == pytest.approx(share)
    few = train(tiny_model, only_listed.with_name("few"), vocabulary=3, exit_layers=())
    assert few.shortlist is not None
    assert few.shortlist.tolist() == sorted(ranked[:3])
    assert few.document["shortlist"]["text_share"] < 1


def test_without_maps_exits_are_the_logit_exit_over_the_shortlist(
    tiny_model: Path, only_listed: Path, tmp_path: Path
) -> None:
    exits = load_exits(only_listed, locate(str(tiny_model)))
    about = exits.document
    assert (exits.kind, exits.maps, about["objective"], about["n_choosing"]) == (
        "logit", {}, None, 0
    )  # fmt: skip
    whole = measured(tiny_model, tmp_path / "whole", None)
    found = measured(tiny_model, tmp_path / "listed", exits)
    assert np.array_equal(found.token_id, whole.token_id)
    assert np.array_equal(found.rank[:, -1], whole.rank[:, -1])
    assert exits.shortlist is not None
    inside = np.isin(whole.token_id, exits.shortlist.numpy())
    assert 0 < inside.sum() < len(inside)
    assert (found.rank[~inside, :-1] == NO_RANK).all()
    assert (found.rank[inside, :-1] <= whole.rank[inside, :-1]).all(), "fewer logits can be larger"
    assert (found.rank[inside] <= N).all()
    kept = found.provenance
    assert (kept["exit_kind"], kept["k_max"], kept["vocabulary"]) == ("logit", N, 257)
    assert kept["exits_sha256"] == exits.sha256
    words = r"must hold this same measurement; got .* with exits_sha256 '\w+' instead of None"
    with pytest.raises(InvalidInputError, match=words):
        measured(tiny_model, tmp_path / "listed", None)
    assert np.array_equal(load(tmp_path / "listed").rank, found.rank), "written and read"  # type: ignore[union-attr]


def test_ranks_of_trained_exits_over_a_shortlist_equal_those_by_a_slow_path(
    tiny_model: Path, listed: Path, plain_model: tuple[Any, Any], tmp_path: Path
) -> None:
    exits = load_exits(listed, locate(str(tiny_model)))
    assert exits.kind == "trained"
    result = measured(tiny_model, tmp_path / "m", exits)
    weights, (model, tokenizer) = load_file(listed / WEIGHTS_FILE), plain_model
    ids = weights["shortlist"]
    outside = 0
    for number, prompt in enumerate(HELD_OUT):
        made, below, _ = forced(model, tokenizer, prompt.text)
        mine = result.prompt_index == number
        assert result.token_id[mine].tolist() == made
        with torch.no_grad():
            for layer, h in enumerate(below, start=1):
                x = h / h.square().mean(1, keepdim=True).sqrt()
                name = f"layer_{layer:02d}"
                added = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
                logits = model.lm_head(model.model.norm(h) + added)
                order = ids[logits[:, ids].argsort(dim=1, descending=True)].tolist()
                expected = [
                    guesses.index(token) + 1 if token in guesses else NO_RANK
                    for guesses, token in zip(order, made, strict=True)
                ]
                assert result.rank[mine, layer - 1].tolist() == expected
                outside += expected.count(NO_RANK)
    assert outside > 9


def test_the_penalty_is_chosen_by_guesses_of_the_shortlist(
    tiny_model: Path, tmp_path: Path, plain_model: tuple[Any, Any]
) -> None:
    """No more of the choosing prompts' tokens can be right than are in the list."""
    exits = train(tiny_model, tmp_path / "e", vocabulary=3)
    assert exits.shortlist is not None
    chosen_by = [prompt for n, prompt in enumerate(TRAINING) if n % 4 == 3]
    made = [token for p in chosen_by for token in forced(*plain_model, p.text)[0]]
    share = np.isin(made, exits.shortlist.numpy()).mean()
    assert share < 1
    for about in exits.document["by_layer"].values():
        for hits in (about["validation_hits"], about["validation_hits_logit"]):
            assert hits[2:] == [pytest.approx(share, abs=1e-5)] * 6, "three guesses are all"


def test_shards_of_a_measurement_over_a_shortlist_merge_and_fit(
    tiny_model: Path, listed: Path, tmp_path: Path
) -> None:
    exits = load_exits(listed, locate(str(tiny_model)))
    whole = measured(tiny_model, tmp_path / "whole", exits)
    for n in (2, 1):
        measured(tiny_model, tmp_path / f"{n}", exits, shard=Shard(n, 2))
    merged = merge([tmp_path / "2", tmp_path / "1"], tmp_path / "merged")
    assert np.array_equal(merged.rank, whole.rank)
    assert merged.has_shortlist
    check_guesses(merged, load_guesses(tmp_path / "merged"))
    with pytest.raises(InvalidInputError, match="k must be at most 40, as far as ranks were rec"):
        fit(merged, k_max=N + 1)
    calibration = fit(merged, k_max=3, family="rank tail", resamples=40)
    for k in (1, 2, 3):
        assert calibration.hits[:, 0, k - 1].sum() == (whole.rank[:, 0] <= k).sum()
    assert calibration.title.endswith("trained exits, a shortlist of 40 tokens")
    unlisted = measured(tiny_model, tmp_path / "logit", None)
    with pytest.raises(InvalidInputError, match="must be of one model and setting"):
        fit([merged, replace(unlisted, prompt_ids=tuple("abcdef"))])


def test_sampled_text_and_a_shortlist_go_together(
    tiny_model: Path, only_listed: Path, tmp_path: Path
) -> None:
    exits = load_exits(only_listed, locate(str(tiny_model)))
    assert exits.shortlist is not None
    found = measured(tiny_model, tmp_path / "m", exits, sampling=Sampling(seed=3))
    assert found.coupled_rank is not None
    outside = ~np.isin(found.token_id, exits.shortlist.numpy())
    assert outside.any()
    assert (found.coupled_rank[:, -1] == 1).all(), "the last layer is the model itself"
    assert ((found.coupled_rank[:, :-1] == NO_RANK) == outside[:, None]).all()
    assert found.coupled().hits_by_prompt(100)[:, 0, -1].sum() == (~outside).sum()


def test_a_shortlist_of_another_tokenizer_or_vocabulary_is_refused(
    tiny_model: Path, only_listed: Path, tmp_path: Path
) -> None:
    """The same weights, but two ids have changed places."""
    twisted = tmp_path / "twisted"
    shutil.copytree(tiny_model, twisted)
    document = json.loads((twisted / "tokenizer.json").read_text("utf-8"))
    vocabulary = document["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (twisted / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    exits = load_exits(only_listed, locate(str(twisted)))
    words = "must be of the model's tokenizer; got one whose ids stand for other texts"
    with pytest.raises(InvalidInputError, match=words):
        measured(twisted, tmp_path / "m", exits)
    beyond = replace(exits, shortlist=torch.tensor([0, 257]))
    with pytest.raises(InvalidInputError, match="got token 257 of a vocabulary of 257; train"):
        beyond.on(logit_exit(load_model(locate(str(tiny_model))).model))


def test_trained_exits_and_sampled_text_go_together(
    tiny_model: Path, trained: Path, tmp_path: Path
) -> None:
    exits = load_exits(trained, locate(str(tiny_model)))
    both = measured(tiny_model, tmp_path / "both", exits, sampling=Sampling(seed=3))
    plain = measured(tiny_model, tmp_path / "plain", None, sampling=Sampling(seed=3))
    assert np.array_equal(both.token_id, plain.token_id)
    assert both.coupled_rank is not None
    assert plain.coupled_rank is not None
    assert (both.coupled_rank[:, -1] == 1).all()
    assert (both.coupled_rank[:, :-1] != plain.coupled_rank[:, :-1]).any()


# ---------------------------------------------------------------- who sees which prompt


def stop_when(stage: str, share: float = 0.0) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.stage == stage and progress.share > share:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("objective", ["ridge", "kl"])
def test_prompts_beyond_max_tokens_are_never_seen(
    tiny_model: Path, tmp_path: Path, objective: str
) -> None:
    """Nine prompts of ten tokens are within 99; the tenth to twelfth share a batch with the ninth.

    Their states are made unusable on disk before the training.
    """
    options: dict[str, Any] = {"max_tokens": 9 * TOKENS + 9, "objective": objective, "epochs": 1}
    clean = train(tiny_model, tmp_path / "clean", **options)
    out = tmp_path / "poisoned"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, out, **options, on_progress=stop_when("training"))
    files = sorted((out / UNFINISHED).glob("0*.safetensors"))
    assert len(files) == 3, "the thirteenth prompt need not be answered"
    poisoned(States(tuple(files), 12), out / UNFINISHED, lambda p: p >= 9, math.nan, None)
    assert load_file(files[2])["hidden"].isnan().any()
    again = train(tiny_model, out, **options)
    assert again.sha256 == clean.sha256
    assert again.document["n_tokens"] == 9 * TOKENS
    assert (again.document["n_prompts"], again.document["n_choosing"]) == (9, 2)
    assert len(again.trained_on) == 9
    again.check_prompts(TRAINING[9:])
    with pytest.raises(InvalidInputError, match="'t8'"):
        again.check_prompts(TRAINING[8:])
    with pytest.raises(InvalidInputError, match="got 9 that were, such as 't0'; give other"):
        again.check_prompts(TRAINING)


def test_max_tokens_is_as_if_there_were_no_more_prompts(tiny_model: Path, tmp_path: Path) -> None:
    most = train(tiny_model, tmp_path / "most", max_tokens=9 * TOKENS)
    few = train(tiny_model, tmp_path / "few", TRAINING[:9])
    assert most.trained_on == few.trained_on
    assert set(most.maps) == set(few.maps) != set()
    for layer, map_ in most.maps.items():
        assert torch.allclose(map_.weight, few.maps[layer].weight, atol=1e-3)


def test_prompts_of_the_training_are_refused(
    tiny_model: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By text, whatever their ids, before the model is loaded."""
    monkeypatch.setattr(run_module, "load_model", _never)
    exits = load_exits(trained, locate(str(tiny_model)))
    for number in (0, 3, 12):
        used = Prompt("new name", f" {TRAINING[number].text}\n", later_turns=("and then?",))
        with pytest.raises(InvalidInputError) as caught:
            measured(tiny_model, tmp_path / "m", exits, prompts=[*HELD_OUT, used])
        words = str(caught.value)
        assert "exits must be measured on prompts that they were not trained on; got 1" in words
        assert "'new name'" in words
    assert not (tmp_path / "m").exists()
    exits.check_prompts([Prompt(TRAINING[0].id, HELD_OUT[0].text)])  # an id alone is no use


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("this must not be called")


def test_a_fingerprint_is_the_beginning_of_the_sha256_of_the_text_without_its_margins() -> None:
    """Files of exits hold it, so that it must stay."""
    digest = hashlib.sha256("ü and\nso".encode()).hexdigest()
    assert fingerprint(Prompt("a", "\n ü and\nso ", later_turns=("b",))) == digest[:16]


def test_the_prompts_that_ship_for_training_are_not_measured() -> None:
    training = training_prompts()
    assert len(training) == 144
    firsts = {" ".join(prompt.text.split()) for prompt in training}
    assert len(firsts) == len(training)
    assert firsts.isdisjoint(" ".join(prompt.text.split()) for prompt in default_prompts())


# ---------------------------------------------------------------- files that are not right


def edit(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
    document |= changes
    (folder / ABOUT_FILE).write_text(json.dumps(document), encoding="utf-8")


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(bytes(data))


def with_own_sha(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def damaged(folder: Path) -> None:
        damage(folder)
        edit(folder, sha256=sha256(folder / WEIGHTS_FILE))

    return damaged


def keep_weights_only(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({k: v for k, v in tensors.items() if "weight" in k}, folder / WEIGHTS_FILE)


def misname(folder: Path) -> None:
    save_file({"layer_x.weight": torch.ones(1), "layer_x.bias": torch.ones(1)}, folder / "t")
    (folder / "t").replace(folder / WEIGHTS_FILE)


def cut_json(folder: Path) -> None:
    text = (folder / ABOUT_FILE).read_text("utf-8")
    (folder / ABOUT_FILE).write_text(text[: len(text) // 2], encoding="utf-8")


def put(value: float | torch.dtype, name: str = "layer_02.bias") -> Callable[[Path], None]:
    """Give a tensor a value, or another type."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        if isinstance(value, torch.dtype):
            tensors[name] = tensors[name].to(value)
        else:
            tensors[name].view(-1)[-1] = value
        save_file(tensors, folder / WEIGHTS_FILE)

    return with_own_sha(change)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no json": (lambda f: (f / ABOUT_FILE).unlink(), "must hold exits.json and exits.safetensors"),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "make them with: ppdmodel train-exits"),
    "no folder": (shutil.rmtree, "must hold exits.json and exits.safetensors"),
    "cut weights": (truncate, "must belong together; got exits.safetensors with another sha256"),
    "flipped bit": (flip_a_byte, "must belong together; got exits.safetensors with another sha256"),
    "cut, and sha edited": (with_own_sha(truncate), "must hold weight and bias by layer; got:"),
    "no biases": (with_own_sha(keep_weights_only), "must hold weight and bias by layer; got:"),
    "odd names": (with_own_sha(misname), "must hold weight and bias by layer; got:"),
    "NaN": (put(math.nan), "layer_02.bias is not of finite numbers"),
    "infinity": (put(-math.inf, "layer_01.weight"), "layer_01.weight is not of finite numbers"),
    "whole numbers": (put(torch.int32), "layer_02.bias is not of finite numbers"),
    "cut json": (cut_json, "a result must be whole JSON"),
    "sha": (lambda f: edit(f, sha256="0" * 64), "another sha256"),
    "objective": (lambda f: edit(f, objective="magic"), "got a fault at objective"),
    "prompts": (lambda f: edit(f, trained_on=None), "got a fault at trained_on"),
    "kind": (lambda f: edit(f, schema="ppdmodel/calibration"), "must be a ppdmodel/trained-exits"),
    "version": (lambda f: edit(f, schema_version=99), "upgrade ppdmodel"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_exits_are_refused(
    tiny_model: Path, trained: Path, tmp_path: Path, kind: str
) -> None:
    damage, words = DAMAGES[kind]
    folder = tmp_path / "e"
    shutil.copytree(trained, folder)
    source = locate(str(tiny_model))
    assert load_exits(folder, source).maps, "it was whole before"
    damage(folder)
    with pytest.raises(InvalidInputError) as caught:
        load_exits(folder, source)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def with_shortlist(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        ids = change(tensors.pop("shortlist").clone())
        save_file(tensors if ids is None else tensors | {"shortlist": ids}, folder / WEIGHTS_FILE)

    return with_own_sha(changed)


LISTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "twice": (
        with_shortlist(lambda ids: ids[torch.arange(N) // 2]),
        "shortlist is not of token ids in ascending order, each once",
    ),
    "in another order": (with_shortlist(lambda ids: ids.flip(0)), "in ascending order, each once"),
    "negative": (with_shortlist(lambda ids: ids - 300), "in ascending order, each once"),
    "shorter": (
        with_shortlist(lambda ids: ids[:9]), "shortlist is int64 [9] instead of 40 token ids"
    ),
    "empty": (with_shortlist(lambda ids: ids[:0]), "is int64 [0] instead of 40 token ids"),
    "real": (with_shortlist(lambda ids: ids.float()), "is float32 [40] instead of 40 token ids"),
    "none": (with_shortlist(lambda _: None), "shortlist is none instead of 40 token ids"),
    "unannounced": (lambda f: edit(f, shortlist=None), "got a fault at shortlist"),
    "empty by its document": (
        lambda f: edit(f, shortlist={"n": 0}), "got a fault at shortlist"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
def test_a_damaged_shortlist_is_refused(
    tiny_model: Path, only_listed: Path, tmp_path: Path, kind: str
) -> None:
    damage, words = LISTS[kind]
    folder = tmp_path / "e"
    shutil.copytree(only_listed, folder)
    damage(folder)
    with pytest.raises(InvalidInputError) as caught:
        load_exits(folder, locate(str(tiny_model)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exits_of_another_model_are_refused(
    tiny_model: Path, trained: Path, tmp_path: Path
) -> None:
    other = locate(str(make_tiny_llama(tmp_path / "other", seed=1)))
    with pytest.raises(InvalidInputError) as caught:
        load_exits(trained, other)
    assert "trained exits must be those of the model; got" in str(caught.value)
    assert "trained for tiny-llama, and other; train exits for this model" in str(caught.value)
    shorter = load_model(locate(str(make_tiny_llama(tmp_path / "short", layers=3))))
    exits = load_exits(trained, locate(str(tiny_model)))
    short_exit = Trainer(shorter, TRAINING, {}).exit
    with pytest.raises(InvalidInputError, match=r"trained exits must fit the model; got a map of"):
        exits.on(short_exit)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exit_layers": [5]}, "exit layers to train must lie from 1 to 4; got 5; the last one is"),
        ({"exit_layers": [2, 0]}, "exit layers to train must lie from 1 to 4; got 0"),
        ({"exit_layers": [-1]}, "exit layers to train must lie from 1 to 4; got -1"),
        ({"prompts": TRAINING[:7]}, "training needs at least 8 prompts, every fourth to choose by"),
        ({"max_tokens": 8 * TOKENS - 1}, "max_tokens must cover at least 8 prompts; got 79, which"),
        ({"objective": "mse"}, "objective must be ridge or kl; got 'mse'"),
        ({"vocabulary": 0}, "vocabulary must be a positive integer; got 0"),
        ({"vocabulary": 258}, "vocabulary must be at most the model's 257 tokens; got 258; give"),
        (
            {"exit_layers": ()},
            "training needs layers or a shortlist; got neither; give",
        ),
        ({"epochs": 0}, "epochs must be a positive integer; got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive integer; got 0"),
        ({"batch_size": -2}, "batch_size must be a positive integer; got -2"),
        ({"dtype": "float8"}, "dtype must be one of float32, bfloat16, float16; got 'float8'"),
        ({"sampling": Sampling(0.7)}, "exits must be trained on greedy text; got Sampling("),
        ({"device": "cpu:x"}, "device must be one that this torch can use; got 'cpu:x'"),
    ],
)
def test_bad_arguments_are_named(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        train(tiny_model, tmp_path / "e", **changes)
    assert words in str(caught.value)
    assert not (tmp_path / "e" / ABOUT_FILE).exists()


def test_eight_prompts_are_enough(tiny_model: Path, tmp_path: Path) -> None:
    found = train(tiny_model, tmp_path / "e", TRAINING[:8], exit_layers=[4, 2, 2])
    assert list(found.document["by_layer"]) == ["2", "4"]
    assert found.document["n_choosing"] == 2


# ---------------------------------------------------------------- kl


def test_kl_never_scores_below_its_ridge_start(tiny_model: Path, tmp_path: Path) -> None:
    """Scores on the choosing prompts, measured again, independent of what the record says."""
    ridge = train(tiny_model, tmp_path / "ridge")
    kl = train(tiny_model, tmp_path / "kl", objective="kl", epochs=2)
    assert kl.document["objective"] == "kl"
    moved = 0
    for layer, about in kl.document["by_layer"].items():
        before = ridge.document["by_layer"][layer]
        assert about["penalty"] == before["penalty"]
        assert sum(about["validation_hits"]) >= sum(before["validation_hits"]) - 1e-9
        moved += about["epochs"] > 0
    assert moved, "some layer must have gone on from ridge"


# ---------------------------------------------------------------- interrupted


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each decoded batch had."""
    batches: list[int] = []
    generate = generate_module.generate

    def counting(model: Any, exit_: Any, contexts: Any, *args: Any, **options: Any) -> Any:
        batches.append(len(contexts))
        return generate(model, exit_, contexts, *args, **options)

    monkeypatch.setattr(states, "generate", counting)
    return batches


@pytest.mark.parametrize("objective", ["ridge", "kl"])
def test_interrupted_while_training_it_goes_on_with_the_next_layer(
    tiny_model: Path, tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:  # fmt: skip
    options: dict[str, Any] = {"objective": objective, "epochs": 1}
    whole = train(tiny_model, tmp_path / "whole", **options)
    out = tmp_path / "e"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, out, **options, on_progress=stop_when("training", 0.7))
    assert counted == [4, 4, 4, 1] * 2
    done = sorted(path.name for path in (out / UNFINISHED).glob("layer*"))
    assert done == ["layer_01.safetensors", "layer_02.safetensors"]
    fitted: list[int] = []
    fit = affine.LayerFit.candidates

    def counting(one: affine.LayerFit) -> Any:
        fitted.append(one.layer)
        return fit(one)

    monkeypatch.setattr(affine.LayerFit, "candidates", counting)
    again = train(tiny_model, out, **options)
    assert len(counted) == 8, "nothing is answered again"
    assert fitted == [3, 4]
    assert again.sha256 == whole.sha256
    assert again.document["by_layer"] == whole.document["by_layer"]
    assert sorted(path.name for path in out.iterdir()) == [ABOUT_FILE, WEIGHTS_FILE]


def test_interrupted_while_answering_it_keeps_the_batches_that_are_done(
    tiny_model: Path, trained: Path, tmp_path: Path, counted: list[int]
) -> None:
    out = tmp_path / "e"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, out, on_progress=stop_when("decoding", 0.4))
    assert counted == [4, 4, 4]
    assert len(list((out / UNFINISHED).glob("0*.safetensors"))) == 2
    again = train(tiny_model, out)
    assert counted[3:] == [4, 1]
    assert again.sha256 == sha256(trained / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "kl"}, "with objective 'ridge' instead of 'kl'; choose another --out"),
        ({"max_new_tokens": 11}, "with max_new_tokens '10' instead of '11'"),
        ({"max_tokens": 90}, "with max_tokens 'None' instead of '90'"),
        ({"dtype": "bfloat16"}, "with dtype 'float32' instead of 'bfloat16'"),
        ({"raw": True}, "with prompt_format 'chat' instead of 'raw'"),
        ({"prompts": TRAINING[1:]}, "with prompts_sha256"),
    ],
)
def test_another_training_in_the_same_folder_is_refused(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, tmp_path, on_progress=stop_when("decoding", 0.2))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(InvalidInputError) as caught:
        train(tiny_model, tmp_path, **changes)
    assert "the out folder must hold this same training; got" in str(caught.value)
    assert words in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_another_model_in_the_same_folder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, out, on_progress=stop_when("decoding", 0.2))
    other = make_tiny_llama(tmp_path / "tiny-llama", seed=1)  # the same name
    with pytest.raises(InvalidInputError, match="with weights_sha256"):
        train(other, out)


def test_files_that_a_killed_run_left_half_written_are_removed(
    tiny_model: Path, tmp_path: Path
) -> None:
    for name in (".exits.json.part-1", ".exits.safetensors.part-2"):
        (tmp_path / name).write_text("half")
    train(tiny_model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"exits.json", "exits.safetensors"}


def test_other_files_are_left_alone(tiny_model: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InvalidInputError, match="with other files; choose another --out"):
        train(tiny_model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / UNFINISHED).mkdir()
    with pytest.raises(InvalidInputError, match="with other files; choose another --out"):
        train(tiny_model, tmp_path)
    with pytest.raises(InvalidInputError, match="the out folder must be a folder; got the file"):
        train(tiny_model, tmp_path / "thesis.tex")


# ---------------------------------------------------------------- by command


def test_from_training_to_measuring_by_command(
    tiny_model: Path, trained: Path, prompt_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The same exits as in Python, and a measurement that says which it used."""
    texts, exits, out = tmp_path / "training.jsonl", tmp_path / "e", tmp_path / "m"
    rows = [{"id": prompt.id, "text": prompt.text} for prompt in TRAINING]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = ["--model", str(tiny_model), "--max-new-tokens", "10", "--threads", "1"]
    command = [
        "train-exits", *common, "--prompts", str(texts), "--batch-size", "4", "--out", str(exits),
    ]  # fmt: skip
    assert run_command(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "exits trained on 130 tokens of 13 prompts, 3 of which chose the penalties" in shown
    assert f"ppdmodel measure --exits {exits}" in shown
    assert sha256(exits / WEIGHTS_FILE) == sha256(trained / WEIGHTS_FILE)
    few = [*command[:-1], str(tmp_path / "few"), "--exit-layers", "2,4", "--limit", "9", "--json"]
    assert run_command(few) == 0
    overview = json.loads(capsys.readouterr().out)
    assert (overview["n_prompts"], list(overview["by_layer"])) == (9, ["2", "4"])

    measuring = ["measure", *common, "--exits", str(exits), "--out", str(out)]
    assert run_command([*measuring, "--prompts", str(prompt_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exit_kind"] == "trained"
    about = json.loads((out / "summary.json").read_text("utf-8"))["provenance"]
    assert about["exits_sha256"] == sha256(exits / WEIGHTS_FILE)

    for bad, words in (
        ([*measuring, "--prompts", str(texts)], "that they were not trained on; got 13"),
        ([*measuring[:-2], "--out", str(out), "--prompts", str(prompt_file), "--exits", str(out)],
         "must hold exits.json and exits.safetensors"),
        ([*command[:-1], str(tmp_path / "x"), "--exit-layers", "2;4"], "integer; got 2;4"),
        ([*command[:-1], str(tmp_path / "x"), "--exit-layers", "2,5"], "from 1 to 4; got 5"),
        ([*command[:-1], str(tmp_path / "x"), "--objective", "mse"], "ridge or kl; got 'mse'"),
        ([*command[:-1], str(tmp_path / "x"), "--epochs", "0"], "epochs must be a positive"),
        ([*command[:-1], str(tmp_path / "x"), "--limit", "7"], "at least 8 prompts"),
        ([*command[:-1], str(exits), "--limit", "9"], "must hold this same training; got"),
    ):  # fmt: skip
        assert run_command(bad) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if "loading the model" not in line]
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert words in lines[0]
        assert captured.out == ""
    assert run_command(command) == 0, "the same training is there already"


# ---------------------------------------------------------------- at the edges


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kl_in_half_precision(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    found = train(tiny_model, tmp_path / "e", objective="kl", epochs=1, dtype=dtype)
    assert set(found.document["by_layer"]) == {"1", "2", "3", "4"}


@pytest.mark.parametrize("sizes", [(4, 2), (2, 8)])
def test_another_batch_size_goes_on_with_the_same_prompts(
    tiny_model: Path, tmp_path: Path, sizes: tuple[int, int]
) -> None:
    """Refusing it would do too; counting prompts twice, or leaving some out, does not."""
    out = tmp_path / "e"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, out, batch_size=sizes[0], on_progress=stop_when("decoding", 0.2))
    try:
        found = train(tiny_model, out, batch_size=sizes[1])
    except InvalidInputError:
        return
    assert found.document["n_tokens"] == len(TRAINING) * TOKENS


def test_another_number_of_epochs_is_not_mixed_in(tiny_model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"objective": "kl", "exit_layers": [1, 2]}
    whole = train(tiny_model, tmp_path / "whole", **options, epochs=30)
    out = tmp_path / "e"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, out, **options, epochs=1, on_progress=stop_when("training", 0.7))
    try:
        found = train(tiny_model, out, **options, epochs=30)
    except InvalidInputError:
        return
    assert found.sha256 == whole.sha256


@pytest.mark.parametrize("left", ["weights only", "all"])
def test_stopped_after_the_exits_were_written_the_same_call_ends_well(
    tiny_model: Path, trained: Path, tmp_path: Path, left: str
) -> None:
    out = tmp_path / "e"

    def stop_at_the_end(progress: Progress) -> None:
        if (out / ABOUT_FILE).is_file():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_model, out, on_progress=stop_at_the_end)
    if left == "weights only":  # as a kill between the two writes leaves it
        (out / ABOUT_FILE).unlink()
    assert train(tiny_model, out).sha256 == sha256(trained / WEIGHTS_FILE)
    assert not (out / UNFINISHED).exists()


@pytest.mark.parametrize("batch_size", [5, 12])
def test_progress_never_goes_back(tiny_model: Path, tmp_path: Path, batch_size: int) -> None:
    seen: list[Progress] = []
    train(tiny_model, tmp_path / "e", batch_size=batch_size, on_progress=seen.append)
    for name in ("share", "tokens"):
        values = [getattr(progress, name) for progress in seen]
        assert values == sorted(values)
    assert seen[0] == Progress("loading", 0, 0)
    assert seen[-1].share == 1


def test_a_training_prompt_that_does_not_fit_is_named(tiny_model: Path, tmp_path: Path) -> None:
    given = [*TRAINING[:8], Prompt("long", "a" * 240)]
    with pytest.raises(InvalidInputError, match="must fit the model's context of 256; got"):
        train(tiny_model, tmp_path / "e", given)


@pytest.mark.parametrize("value", [0, -1])
def test_threads_must_be_positive(tiny_model: Path, tmp_path: Path, value: int) -> None:
    with pytest.raises(InvalidInputError, match="n_threads must be a positive integer; got"):
        train(tiny_model, tmp_path / "e", n_threads=value)


@pytest.mark.parametrize("changes", [{"exit_layers": []}, {"max_tokens": 0}])
def test_nothing_is_not_everything(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError):
        train(tiny_model, tmp_path / "e", **changes)


def test_a_model_of_one_layer_has_nothing_to_train(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "one", layers=1)
    with pytest.raises(InvalidInputError, match="layer") as caught:
        train(model, tmp_path / "e", exit_layers=None)
    assert "schema" not in str(caught.value)


def test_normalized_is_by_the_root_mean_square() -> None:
    given = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)) * 30
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        found = normalized(given.to(dtype))
        assert found.dtype == dtype
        mean = found.float().square().mean(1)
        assert mean.numpy() == pytest.approx(1, rel=tolerance)


def test_maps_of_other_shapes_are_refused(tiny_model: Path, trained: Path) -> None:
    exits = load_exits(trained, locate(str(tiny_model)))
    exit_ = logit_exit(load_model(locate(str(tiny_model))).model)
    assert exits.on(exit_).kind == "trained"
    for weight, bias in (((32, 16), (32,)), ((16, 32), (32,)), ((32, 32), (1,))):
        map_ = AffineMap(torch.zeros(weight), torch.zeros(bias))
        words = f"trained exits must fit the model; got a map of {weight} and {bias} for layer 2 of"
        with pytest.raises(InvalidInputError, match=re.escape(words)):
            replace(exits, maps={2: map_}).on(exit_)
    for layer in (0, 5):
        with pytest.raises(InvalidInputError, match=f"for layer {layer} of 5; train exits for"):
            replace(exits, maps={layer: exits.maps[2]}).on(exit_)


def test_maps_that_the_models_number_type_cannot_hold_are_refused(
    tiny_model: Path, trained: Path
) -> None:
    """A weight of 1e5 is infinite in float16, and would make every logit NaN."""
    exits = load_exits(trained, locate(str(tiny_model)))
    large = {2: AffineMap(torch.full((32, 32), 1e5), torch.zeros(32))}
    for dtype, holds in (("float32", True), ("bfloat16", True), ("float16", False)):
        exit_ = logit_exit(load_model(locate(str(tiny_model)), dtype).model)
        if holds:
            assert replace(exits, maps=large).on(exit_).kind == "trained"
        else:
            words = "must be finite; got NaN or infinity in the map of layer 2 in float16"
            with pytest.raises(InvalidInputError, match=words):
                replace(exits, maps=large).on(exit_)
