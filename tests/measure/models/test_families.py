"""Many families of decoders, each held against slow paths that know nothing of the harness.

Two slow paths: the family's own words for what follows its layers (`families.Family`), and the
model itself with its last layers removed. They must agree before the harness is asked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure import Prompt, locate
from ppdmodel.measure.decoder import attention, forward
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.results.measurement import Measurement
from tests.conftest import TEXT
from tests.support.families import (
    FAMILIES,
    UNUSUAL,
    Family,
    cut_logits,
    layer_outputs,
    slow_logits,
    slow_ranks,
)
from tests.support.runs import measure_flat

TOKENS, BATCH = 12, 3
#: shorter and longer than the sliding windows; three batched with much padding, one without any
TEXTS = ("the", TEXT, "the quick brown fox", "the quick brown fox jumps over a")
TIE = 1e-4  #: logits closer than this may change places where products round differently
TIES = 4  #: and this many may, of a family's ranks


@dataclass(frozen=True)
class Case:
    """A family's model on disk, and what it does by itself."""

    family: Family
    folder: Path

    def load(self) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return model.eval()

    @cached_property
    def model(self) -> Any:
        return self.load()

    @cached_property
    def theirs(self) -> tuple[Any, Any]:
        """Another copy of the model, and the exit that the harness found in it."""
        model = self.load()
        return model, logit_exit(model)

    @cached_property
    def prompts(self) -> list[list[int]]:
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return [tokenizer(text).input_ids for text in TEXTS]

    @cached_property
    def alone(self) -> list[list[int]]:
        """What the model makes of each prompt by itself, with its own cache."""
        return [
            self.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=TOKENS,
                do_sample=False,
                pad_token_id=0,
            )[0, len(ids) :].tolist()
            for ids in self.prompts
        ]

    @cached_property
    def whole(self) -> list[list[int]]:
        return [ids + made for ids, made in zip(self.prompts, self.alone, strict=True)]

    @cached_property
    def slow(self) -> list[Tensor]:
        """Logits [layers, positions, vocabulary] of each whole text, in the family's words."""
        return [slow_logits(self.family, self.model, ids) for ids in self.whole]

    @cached_property
    def cut(self) -> list[Tensor]:
        """The same from the model with its last layers removed."""
        return cut_logits(self.family, self.model, self.whole)

    def making(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Of whole texts, the logits [layers, tokens, vocabulary] that made the new tokens."""
        return [x[:, len(ids) - 1 : -1] for x, ids in zip(logits, self.prompts, strict=True)]


def make_case(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(family, family.write(tmp_path_factory.mktemp("families") / family.name))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _every_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding is left out and a common beginning read apart, however little that saves."""
    monkeypatch.setattr(attention, "MIN_KEYS_SAVED", 1)
    monkeypatch.setattr(forward, "MIN_SHARED_TOKENS", 1)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=UNUSUAL, ids=lambda family: family.name)
def unusual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory)


def assert_near(mine: Tensor, theirs: Tensor) -> None:
    assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_two_slow_paths_agree_with_each_other_and_the_model(case: Case) -> None:
    for ids, slow, cut in zip(case.whole, case.slow, case.cut, strict=True):
        with torch.no_grad():
            own = case.model(torch.tensor([ids]), use_cache=False).logits[0]
        assert_near(slow[-1], own)
        assert_near(cut[-1], own)
        assert_near(slow, cut)


def test_its_texts_can_tell_right_from_wrong(case: Case) -> None:
    """No greedy choice hangs on rounding, tokens differ, and early exits are often wrong."""
    ranks = []
    for logits, made in zip(case.making(case.slow), case.alone, strict=True):
        best = logits[-1].topk(2, dim=-1).values
        assert (best[:, 0] - best[:, 1]).min() > 10 * TIE, "a near tie: give it another seed"
        ranks.append(slow_ranks(logits, made))
        assert (ranks[-1][:, -1] == 1).all()
    assert len({token for made in case.alone for token in made}) >= 7
    early = torch.cat(ranks)[:, :-1]
    assert (early > 1).float().mean() > 0.25
    assert len(set(early.flatten().tolist())) >= 8


def test_the_last_exit_makes_the_models_own_logits(case: Case) -> None:
    model, exit_ = case.theirs
    assert exit_.decoder_layers is case.family.decoder_layers(model)
    for ids in case.whole:
        outputs, own = layer_outputs(case.family, model, ids)
        with torch.inference_mode():
            assert_near(exit_.logits(outputs[-1]), own)


def test_every_exit_makes_the_slow_paths_logits(case: Case) -> None:
    model, exit_ = case.theirs
    for ids, slow in zip(case.whole, case.slow, strict=True):
        outputs, _ = layer_outputs(case.family, model, ids)
        assert len(outputs) == len(slow)
        with torch.inference_mode():
            for output, expected in zip(outputs, slow, strict=True):
                assert_near(exit_.logits(output), expected)


def test_finding_the_exit_leaves_the_model_as_it_was(case: Case) -> None:
    model, _ = case.theirs
    assert model.config.to_dict() == case.model.config.to_dict()
    mine, theirs = case.model.state_dict(), model.state_dict()
    assert list(theirs) == list(mine)
    assert all(torch.equal(theirs[name], mine[name]) for name in mine)
    assert not any(module._forward_pre_hooks for module in model.modules())


def measured(folder: Path, out: Path) -> Measurement:
    prompts = [Prompt(f"p{n}", text) for n, text in enumerate(TEXTS)]
    return measure_flat(
        locate(str(folder)), prompts, out,
        max_new_tokens=TOKENS, batch_size=BATCH, raw=True, n_threads=1,
    )  # fmt: skip


def check(result: Measurement, texts: Sequence[list[int]], logits: Sequence[Tensor]) -> None:
    """A measurement has these texts, and the ranks that these logits say."""
    ties = 0
    for number, (made, slow) in enumerate(zip(texts, logits, strict=True)):
        mine = result.prompt_index == number
        assert result.token_id[mine].tolist() == made
        assert result.position[mine].tolist() == list(range(len(made)))
        expected = slow_ranks(slow, made)
        ranks = torch.from_numpy(result.rank[mine])
        assert ranks.shape == expected.shape
        for token, layer in (ranks != expected).nonzero().tolist():
            row = slow[layer, token]
            there = row.sort(descending=True).values[ranks[token, layer] - 1]
            margin = float((there - row[made[token]]).abs())
            assert margin < TIE, (
                f"prompt {number}, token {token}, layer {layer + 1}: rank {ranks[token, layer]}, "
                f"not {expected[token, layer]}; {margin:.3g} apart"
            )
            ties += 1
        top_prob = slow.softmax(dim=-1).amax(dim=-1).T
        np.testing.assert_allclose(result.top_prob[mine], top_prob, rtol=1e-3)
    assert ties <= TIES


def test_a_measurement_has_the_texts_and_ranks_of_the_slow_path(case: Case, tmp_path: Path) -> None:
    check(measured(case.folder, tmp_path / "m"), case.alone, case.making(case.slow))


def ended(made: list[int], end: int) -> list[int]:
    return made[: made.index(end) + 1] if end in made else made


def with_an_end(case: Case, tmp_path: Path) -> tuple[Path, list[list[int]]]:
    """The model with one more token that ends texts, and its texts.

    Of all tokens, the one that ends those of the first batch furthest apart.
    """

    def apart(end: int) -> int:
        lengths = [len(ended(made, end)) for made in case.alone[:BATCH]]
        return max(lengths) - min(lengths) if min(lengths) > 1 else 0

    end = max({token for made in case.alone[:BATCH] for token in made}, key=apart)
    folder = shutil.copytree(case.folder, tmp_path / case.family.name)
    settings = folder / "generation_config.json"
    said = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(said | {"eos_token_id": [0, end]}), encoding="utf-8")
    return folder, [ended(made, end) for made in case.alone]


def test_a_text_that_ends_leaves_the_rest_of_its_batch_as_it_was(
    case: Case, tmp_path: Path
) -> None:
    folder, texts = with_an_end(case, tmp_path)
    lengths = [len(made) for made in texts[:BATCH]]
    assert max(lengths) >= min(lengths) + 4
    logits = [x[:, : len(made)] for x, made in zip(case.making(case.slow), texts, strict=True)]
    check(measured(folder, tmp_path / "m"), texts, logits)


@pytest.mark.parametrize("early", [False, True], ids=["to-the-end", "some-end-early"])
def test_an_unusual_model_is_measured_right_or_refused(
    unusual: Case, early: bool, tmp_path: Path
) -> None:
    folder, texts = with_an_end(unusual, tmp_path) if early else (unusual.folder, unusual.alone)
    try:
        result = measured(folder, tmp_path / "m")
    except (InvalidInputError, RunFailedError) as refusal:
        assert "got" in str(refusal)  # noqa: PT017  # either end is right
        return
    logits = [x[:, : len(made)] for x, made in zip(unusual.making(unusual.cut), texts, strict=True)]
    check(result, texts, logits)
