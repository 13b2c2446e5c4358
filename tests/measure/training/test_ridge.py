"""Ridge regression against least squares, which prompts it sees, and the descent from it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppdmodel.measure.decoder.exit import AffineMap
from ppdmodel.measure.decoder.ranks import Ranker
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.options import GenerationOptions
from ppdmodel.measure.training import ridge as affine
from ppdmodel.measure.training.hidden_states import States
from ppdmodel.measure.training.ridge import (
    PENALTIES,
    FittedMap,
    LayerFit,
    NormalEquations,
    Split,
    selection_record,
)
from ppdmodel.measure.training.train import Trainer
from tests.support.trained_exits import (
    LAYER,
    LAYERS,
    TOKENS,
    TRAINING,
    forced,
    least_squares,
    poisoned,
    ranks_of,
)


@pytest.fixture(scope="module")
def trainer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The tiny model with its training states on disk."""
    loaded = load_model(locate(str(tiny_model)))
    made = Trainer(loaded, TRAINING, {"prompt_format": "chat", "objective": "kl"})
    made.collect(tmp_path_factory.mktemp("states"), GenerationOptions(TOKENS, 4))
    return made


def fit(trainer: Trainer, states: States | None = None, layer: int = LAYER) -> LayerFit:
    """The fit of a layer on the trainer's states, or on others."""
    found = trainer.states if states is None else states
    return LayerFit(trainer.exit, Ranker(trainer.exit), found, trainer.split(None), layer)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_normal_equations_give_what_least_squares_gives(penalty: float) -> None:
    """Features of different means and sizes, two that are nearly one; counted in by parts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * [1, 50, 0.02, 1, 1, 3] + [0, 9, 0, -5, 0, 1]
    x[:, 4] = x[:, 3] + 1e-4 * rng.normal(size=200)
    y = x[:, :3] @ rng.normal(size=(3, 4)) + rng.normal(size=(200, 4)) + 7
    equations = NormalEquations()
    for part in np.array_split(np.arange(200), [1, 60, 61]):
        equations.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    equations.decompose()
    found = equations.solve(penalty, torch.float64)
    weight, bias = least_squares(x, y, penalty)
    assert found.weight.numpy() == pytest.approx(weight, rel=1e-5, abs=1e-7)
    assert found.bias.numpy() == pytest.approx(bias, rel=1e-5, abs=1e-7)


def test_a_feature_that_never_varies_harms_nothing() -> None:
    equations = NormalEquations()
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    x[:, 1] = 4
    equations.add(x, x[:, :1] * 2 + 1)
    equations.decompose()
    found = equations.solve(1e-3, torch.float64)
    assert torch.isfinite(found.weight).all()
    guess = x @ found.weight.T + found.bias
    assert torch.allclose(guess, x[:, :1] * 2 + 1, atol=0.02)


def test_where_all_do_alike_the_logit_exit_is_taken(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LayerFit, "_hits", lambda *_: (0.5,) * 8)
    found = fit(trainer, layer=2).candidates()
    assert [c.penalty for c in found] == [math.inf, *sorted(PENALTIES, reverse=True)]
    assert found[0].map is None


def every_fourth(prompt: Tensor) -> Tensor:
    return torch.tensor([n in (3, 7, 11) for n in prompt.tolist()])


def not_every_fourth(prompt: Tensor) -> Tensor:
    return ~every_fourth(prompt)


def candidates(trainer: Trainer, found: States) -> dict[float, FittedMap]:
    return {candidate.penalty: candidate for candidate in fit(trainer, found).candidates()}


def test_every_fourth_prompt_chooses_and_does_not_train(trainer: Trainer, tmp_path: Path) -> None:
    clean = candidates(trainer, trainer.states)
    found = candidates(trainer, poisoned(trainer.states, tmp_path, every_fourth, 3.0, None))
    for penalty in PENALTIES:
        ours, theirs = clean[penalty].map, found[penalty].map
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)
    assert [c.hits for c in clean.values()] != [found[p].hits for p in clean]


def test_the_other_prompts_train_and_do_not_choose(trainer: Trainer, tmp_path: Path) -> None:
    clean = candidates(trainer, trainer.states)
    found = candidates(trainer, poisoned(trainer.states, tmp_path, not_every_fourth, 3.0, None))
    assert found[math.inf].hits == clean[math.inf].hits, "this one has no training to be harmed"
    ours, theirs = clean[1.0].map, found[1.0].map
    assert ours is not None
    assert theirs is not None
    assert not torch.allclose(ours.weight, theirs.weight, atol=1e-2)


def test_a_score_is_the_mean_match_rate_over_k_on_every_fourth_prompt(
    trainer: Trainer, plain_model: tuple[Any, Any]
) -> None:
    ranks: list[int] = []
    for prompt in TRAINING[3::4]:
        made, below, _ = forced(*plain_model, prompt.text)
        with torch.no_grad():
            model = plain_model[0]
            ranks += ranks_of(model.lm_head(model.model.norm(below[LAYER - 1])), made)
    hits = [float(np.mean([rank <= k for rank in ranks])) for k in range(1, 9)]
    found = candidates(trainer, trainer.states)
    assert {candidate.epochs for candidate in found.values()} == {0}
    logit = found[math.inf]
    assert logit.hits == pytest.approx(hits, abs=1e-6)
    assert logit.score == pytest.approx(np.mean(hits), abs=1e-6)
    best, *others = fit(trainer).candidates()
    assert best.score >= max(candidate.score for candidate in others)


def divergence(trainer: Trainer, map_: AffineMap | None, wanted: Any) -> float:
    """Mean KL of the exit's distribution from the model's own, in float64."""
    total, n = 0.0, 0
    pairs = zip(
        trainer.states.layer(LAYER - 1, wanted), trainer.states.layer(LAYERS - 1, wanted),
        strict=True,
    )  # fmt: skip
    model = trainer.loaded.model
    with torch.no_grad():
        for h, last in pairs:
            read = model.model.norm(h)
            if map_ is not None:
                x = h / h.square().mean(1, keepdim=True).sqrt()
                read = read + x @ map_.weight.T + map_.bias
            p = model.lm_head(model.model.norm(last)).double().log_softmax(1)
            q = model.lm_head(read).double().log_softmax(1)
            total, n = total + float((p.exp() * (p - q)).sum()), n + len(h)
    return total / n


def start(trainer: Trainer, penalty: float) -> FittedMap:
    return candidates(trainer, trainer.states)[penalty]


@pytest.mark.parametrize("penalty", [1e-1, math.inf])
def test_descent_lowers_the_divergence_on_the_training_tokens(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, penalty: float
) -> None:
    """Whatever the choice would be: each epoch is said to be better than the one before."""
    begin = start(trainer, penalty)
    calls: list[int] = []

    def better(*_: Any) -> tuple[float, ...]:
        calls.append(1)
        return (1.0 + len(calls),) * 8

    monkeypatch.setattr(LayerFit, "_hits", better)
    found = [begin]
    for epochs in (1, 4):
        calls.clear()
        found.append(fit(trainer).descend(begin, epochs))
        assert found[-1].epochs == len(calls) == epochs
    losses = [divergence(trainer, c.map, trainer.split(None).trains) for c in found]
    assert losses[0] > losses[1] > losses[2]


def test_the_epoch_that_did_best_is_kept_or_the_start(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = replace(start(trainer, 1.0), hits=(0.5,) * 8)
    rates = iter([0.4, 0.7, 0.6, 0.7])
    monkeypatch.setattr(LayerFit, "_hits", lambda *_: (next(rates),) * 8)
    found = fit(trainer).descend(begin, 4)
    assert found.epochs == 2
    assert found.score == pytest.approx(0.7)
    second = iter([0.4, 0.7])
    monkeypatch.setattr(LayerFit, "_hits", lambda *_: (next(second),) * 8)
    short = fit(trainer).descend(begin, 2)
    assert short.map is not None
    assert found.map is not None
    assert torch.equal(short.map.weight, found.map.weight), "the map of that epoch, not a later one"
    worse = iter([0.5, 0.4])
    monkeypatch.setattr(LayerFit, "_hits", lambda *_: (next(worse),) * 8)
    kept = fit(trainer).descend(begin, 2)
    assert kept is begin


def test_descent_never_sees_the_choosing_prompts(trainer: Trainer, tmp_path: Path) -> None:
    """To choose by them takes no last state of theirs: made NaN, it changes nothing."""
    begin = replace(start(trainer, 1.0), hits=(0.0,))
    spoiled = poisoned(trainer.states, tmp_path, every_fourth, math.nan, LAYERS)
    found = [fit(trainer, given).descend(begin, 1) for given in (trainer.states, spoiled)]
    assert [candidate.epochs for candidate in found] == [1, 1]
    weights = [c.map.weight for c in found if c.map is not None]
    assert torch.equal(*weights)


def test_the_model_may_be_on_another_device(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device, like a GPU, takes no tensors of the CPU."""
    begin = start(trainer, 1.0)
    assert begin.map is not None
    map_ = AffineMap(begin.map.weight.to("meta"), begin.map.bias.to("meta"))
    model = copy.deepcopy(trainer.loaded.model).to("meta")
    exit_ = replace(trainer.exit, tail=(model.model.norm,), head=model.lm_head)
    moved = replace(fit(trainer), exit=exit_)
    assert moved.equations(moved.split.trains).n == 10 * TOKENS
    monkeypatch.setattr(LayerFit, "_hits", lambda *_: (1.0,) * 8)
    moved.descend(replace(begin, map=map_), 1)


def test_descent_makes_no_gradients_of_the_model(trainer: Trainer) -> None:
    """A vocabulary by width of them, each step: the largest product of the training, and memory."""
    trainer.loaded.model.zero_grad()
    fit(trainer).descend(start(trainer, 1.0), 1)
    assert all(p.grad is None for p in trainer.loaded.model.parameters())


def test_a_split_leaves_out_what_lies_beyond_its_end() -> None:
    split, prompt = Split(9), torch.arange(13)
    assert prompt[split.trains(prompt)].tolist() == [0, 1, 2, 4, 5, 6, 8]
    assert prompt[split.chooses(prompt)].tolist() == [3, 7]
    assert prompt[split.both(prompt)].tolist() == list(range(9))


def test_a_refit_is_least_squares_on_both_parts(
    trainer: Trainer, plain_model: tuple[Any, Any]
) -> None:
    """With Transformers' own states; the choosing prompts are counted in only here."""
    model, best = plain_model[0], start(trainer, 0.1)
    split = trainer.split(None)
    again = fit(trainer).refit(best)
    assert again.penalty == 0.1
    texts = [forced(*plain_model, prompt.text) for prompt in TRAINING]
    for found, wanted in ((best.map, split.trains), (again.map, split.both)):
        assert found is not None
        x, y = [], []
        for number, (_, below, last) in enumerate(texts):
            if wanted(torch.tensor([number])):
                h = below[LAYER - 1]
                x.append(h / h.square().mean(1, keepdim=True).sqrt())
                with torch.no_grad():
                    y.append(last - model.model.norm(h))
        features, missing = (torch.cat(part).double().numpy() for part in (x, y))
        weight, bias = least_squares(features, missing, 0.1)
        tolerance = 1e-3 * np.abs(weight).max()
        assert found.weight.numpy() == pytest.approx(weight, abs=tolerance)
        assert found.bias.numpy() == pytest.approx(bias, abs=tolerance)


def test_the_logit_exit_is_not_fitted_again(trainer: Trainer) -> None:
    logit = start(trainer, math.inf)
    assert fit(trainer).refit(logit) is logit


def test_validation_tokens_are_thinned_evenly(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty tokens choose; at most ten of them are every third, at most eight every fourth."""
    assert trainer.exit.vocabulary == 257
    every, tokens = fit(trainer).validation_set()
    assert len(every) == len(tokens) == 3 * TOKENS
    for most, step in ((30, 1), (10, 3), (8, 4)):
        monkeypatch.setattr(affine, "VALIDATION_TOKENS", most)
        hidden, targets = fit(trainer).validation_set()
        assert torch.equal(hidden, every[::step])
        assert torch.equal(targets, tokens[::step])
    monkeypatch.setattr(affine, "VALIDATION_LOGITS", 257 * 5)
    assert len(fit(trainer).validation_set()[0]) == 5


def test_the_record_is_of_the_chosen_map_beside_the_logit_exit() -> None:
    chosen = FittedMap(0.1, AffineMap(torch.ones(1, 1), torch.ones(1)), (0.123456, 0.75), 2)
    logit = FittedMap(math.inf, None, (0.25, 0.5))
    assert chosen.score == pytest.approx(0.436728)
    assert selection_record([chosen, logit]) == {
        "penalty": 0.1,
        "epochs": 2,
        "validation_hits": [0.12346, 0.75],
        "validation_hits_logit": [0.25, 0.5],
    }
