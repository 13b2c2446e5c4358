"""Every rank against Transformers' own hidden states, by a slow and independent path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.decoder.exit import AffineMap, Exit
from ppdmodel.measure.decoder.ranks import (
    BLOCK,
    GROUP,
    GUESSES,
    ROWS,
    Ranker,
    _Scan,
    rank_and_margin,
    whole_groups,
)
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import read_prompts
from ppdmodel.results.measurement import NO_RANK
from tests.support.runs import measure_flat


def slow_ranks(model: LlamaForCausalLM, prompt: list[int], made: list[int]) -> torch.Tensor:
    """Ranks [tokens, layers] from one teacher-forced pass, no cache, sorting all logits."""
    with torch.no_grad():
        out = model(torch.tensor([prompt + made]), output_hidden_states=True, use_cache=False)
        last = out.hidden_states[-1]  # Transformers has put this one through the final norm already
        states = [model.model.norm(h) for h in out.hidden_states[1:-1]] + [last]
        rows = []
        for state in states:
            logits = model.lm_head(state[0, len(prompt) - 1 : -1])
            order = logits.argsort(dim=-1, descending=True)
            rows.append((order == torch.tensor(made)[:, None]).nonzero()[:, 1] + 1)
    return torch.stack(rows, dim=1)


def test_ranks_equal_those_of_the_models_own_hidden_states(
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    result = measure_flat(
        locate(str(tiny_model)), read_prompts(prompt_file), tmp_path / "m",
        max_new_tokens=17, batch_size=3, n_threads=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    loaded = load_model(locate(str(tiny_model)))
    for number, prompt in enumerate(read_prompts(prompt_file)):
        mine = result.prompt_index == number
        made = result.token_id[mine].tolist()
        assert result.position[mine].tolist() == list(range(len(made)))
        expected = slow_ranks(model, loaded.encode([prompt.text]), made)
        assert result.rank[mine].tolist() == expected.tolist()


def test_ranks_are_those_of_plain_logits_for_any_vocabulary() -> None:
    """Vocabularies of less than a group, of whole blocks, and of a block and a bit; ties too."""
    torch.manual_seed(0)
    for vocabulary, bias in ((5, False), (BLOCK, True), (2 * BLOCK + 77, False), (257, True)):
        head = nn.Linear(16, vocabulary, bias=bias)
        exit_ = Exit(nn.ModuleList(), (), head, scale=0.7, softcap=3.0)
        ranker = Ranker(exit_)
        hidden = torch.randn(ranker.rows + 3, 16) * 3
        hidden[0] = 0  # all logits equal where there is no bias
        targets = torch.randint(0, vocabulary, (len(hidden),))
        found = ranker.rank(hidden, targets)
        with torch.no_grad():
            logits = exit_.logits(hidden)
        own = logits.gather(1, targets[:, None])
        differs = found.rank != 1 + (logits > own).sum(1)
        near = (logits - own).abs().masked_fill(logits == own, 9).amin(1) < 1e-5
        assert not (differs & ~near).any()
        probs, ids = logits.softmax(1).topk(min(GUESSES, vocabulary), 1)
        shown = found.guess_probs[:, : probs.shape[1]]
        assert torch.allclose(shown, probs, rtol=1e-4)
        assert torch.equal(found.top_prob, found.guess_probs[:, 0])
        chosen = logits.softmax(1).gather(1, found.guess_ids[:, : ids.shape[1]].long())
        assert torch.allclose(chosen, probs, rtol=1e-4), "the ids are of tokens with those logits"
        assert (found.guess_ids[:, vocabulary:] == -1).all()
        assert (found.guess_probs[:, vocabulary:] == 0).all()


@pytest.mark.parametrize(
    ("vocabulary", "listed", "bias"),
    [(257, 40, True), (2 * BLOCK + 77, BLOCK + 9, False), (9, 3, True)],
)
def test_an_exit_with_a_shortlist_ranks_its_tokens_alone(
    vocabulary: int, listed: int, bias: bool
) -> None:
    """Below the last layer; by plain logits of its columns, with the noise of its tokens."""
    torch.manual_seed(0)
    ids = torch.randperm(vocabulary)[:listed].sort().values
    trained = AffineMap(torch.randn(16, 16), torch.randn(16))
    layers = nn.ModuleList([nn.Identity()] * 3)
    whole = Exit(layers, (), nn.Linear(16, vocabulary, bias=bias), softcap=3.0, maps={2: trained})
    exit_ = replace(whole, shortlist=ids)
    ranker = Ranker(exit_)
    n = ranker.rows + 3
    hidden, targets = torch.randn(n, 16), torch.randint(0, vocabulary, (n,))
    noise = -torch.empty(n, vocabulary).exponential_().log_()
    inside = torch.isin(targets, ids)
    assert 0 < inside.sum() < n
    for layer in (1, 2):
        found = ranker.rank(hidden, targets, layer, noise, 0.5)
        with torch.no_grad():
            logits = whole.logits(hidden, layer)
        for scores, rank in (
            (logits, found.rank),
            (logits / 0.5 + noise, found.coupled_rank),
        ):
            assert rank is not None
            own = scores.gather(1, targets[:, None])
            assert (rank[~inside] == NO_RANK).all()
            assert (rank[inside] <= listed).all()
            differs = rank != 1 + (scores[:, ids] > own).sum(1)
            near = (scores - own).abs().masked_fill(scores == own, 9).amin(1) < 1e-5
            assert not (differs & inside & ~near).any()
        probs, first = logits[:, ids].softmax(1).topk(min(GUESSES, listed), 1)
        torch.testing.assert_close(found.guess_probs[:, : probs.shape[1]], probs)
        torch.testing.assert_close(found.top_prob, probs[:, 0])
        same = found.guess_ids[:, : probs.shape[1]] == ids[first]
        assert same.float().mean() > 0.99, "but for equal logits"
        assert (found.guess_ids[:, listed:] == -1).all()
    for last in (None, 3):
        found, expected = (Ranker(one).rank(hidden, targets, last) for one in (exit_, whole))
        assert torch.equal(found.rank, expected.rank), "the model itself knows every token"
        assert torch.equal(found.guess_ids, expected.guess_ids)
    with_map = ranker.using(replace(exit_, maps={1: trained})).rank(hidden, targets, 1)
    assert torch.equal(with_map.rank, ranker.rank(hidden, targets, 2).rank)
    ranker.rest()


def test_the_true_token_is_not_counted_against_itself() -> None:
    """Its logit comes from the same product: along another path it could round to less."""
    torch.manual_seed(0)
    head = nn.Linear(576, 5000, bias=False)
    ranker = Ranker(Exit(nn.ModuleList(), (), head))
    hidden = torch.randn(300, 576) * 10
    with torch.no_grad():
        best = head(hidden).argmax(1)
        apart = torch.stack([h @ head.weight[t] for h, t in zip(hidden, best, strict=True)])
        together = head(hidden).gather(1, best[:, None])[:, 0]
    assert (apart != together).any(), "the trap is real on this machine"
    assert (ranker.rank(hidden, best).rank == 1).all()


@pytest.mark.parametrize("low", [-500.0, -torch.inf])
def test_a_first_block_far_below_the_rest_spoils_no_probability(low: float) -> None:
    """Powers are taken relative to it: the rest overflows, and is added up again."""
    torch.manual_seed(0)
    head = nn.Linear(16, 3 * BLOCK)
    with torch.no_grad():
        head.bias[:BLOCK] = low
    exit_, hidden = Exit(nn.ModuleList(), (), head), torch.randn(9, 16)
    found = Ranker(exit_).rank(hidden, torch.arange(9) + BLOCK)
    with torch.no_grad():
        best = exit_.logits(hidden).softmax(1).topk(GUESSES, 1)
    assert torch.allclose(found.guess_probs, best.values, rtol=1e-5)
    assert torch.equal(found.guess_ids.long(), best.indices)


@pytest.mark.parametrize("added", [-50.0, 60.0])
def test_a_number_added_to_all_logits_changes_no_probability(added: float) -> None:
    torch.manual_seed(0)
    head, hidden = nn.Linear(16, BLOCK + 77), torch.randn(9, 16)
    exit_, targets = Exit(nn.ModuleList(), (), head), torch.arange(9)
    before = Ranker(exit_).rank(hidden, targets)
    with torch.no_grad():
        head.bias.add_(added)
    after = Ranker(exit_).rank(hidden, targets)
    assert torch.allclose(after.guess_probs, before.guess_probs, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}])
@pytest.mark.parametrize("vocabulary", [5, 2 * BLOCK + 77])
def test_coupled_ranks_are_those_of_logits_over_temperature_and_noise(
    vocabulary: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    exit_ = Exit(nn.ModuleList(), (), nn.Linear(16, vocabulary))
    ranker = Ranker(exit_)
    hidden = torch.randn(ranker.rows + 3, 16)
    noise = torch.randn(len(hidden), vocabulary)
    targets = torch.randint(0, vocabulary, (len(hidden),))
    found = ranker.rank(hidden, targets, noise=noise, **options)
    assert torch.equal(found.rank, ranker.rank(hidden, targets).rank)
    with torch.no_grad():
        noisy = exit_.logits(hidden) / options.get("temperature", 1.0) + noise
    own = noisy.gather(1, targets[:, None])
    differs = found.coupled_rank != 1 + (noisy > own).sum(1)
    near = (noisy - own).abs().masked_fill(noisy == own, 9).amin(1) < 1e-5
    assert not (differs & ~near).any()


def test_the_rank_and_margin_of_one_token() -> None:
    torch.manual_seed(0)
    exit_, state = Exit(nn.ModuleList(), (), nn.Linear(16, 40)), torch.randn(16)
    with torch.no_grad():
        values, order = exit_.logits(state[None])[0].sort(descending=True)
    for place in (0, 1, 7):
        rank, margin = rank_and_margin(exit_, state, int(order[place]))
        assert rank == place + 1
        assert margin == pytest.approx(float(values[0] - values[place]))


@pytest.mark.parametrize(("vocabulary", "rows"), [(257, ROWS), (2**19, 128), (2**23, 32)])
def test_logits_fit_their_memory_in_no_fewer_than_32_rows(vocabulary: int, rows: int) -> None:
    head = nn.Linear(1, vocabulary, device="meta")
    assert Ranker(Exit(nn.ModuleList(), (), head)).rows == rows


@pytest.mark.parametrize("error", [1e-6, -1e-6, 5.0])
def test_own_logits_made_ahead_do_not_decide(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, BLOCK + 77)
    exit_, hidden = Exit(nn.ModuleList(), (), head), torch.randn(40, 16)
    targets = torch.randint(0, BLOCK + 77, (40,))
    expected = Ranker(exit_).rank(hidden, targets)
    ahead = _Scan._ahead
    monkeypatch.setattr(_Scan, "_ahead", lambda *given: ahead(*given) + error)
    assert torch.equal(Ranker(exit_).rank(hidden, targets).rank, expected.rank)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ranks_what_it_has_rounded(dtype: torch.dtype) -> None:
    """Products of blocks and of the whole may round differently, by a 200th at most."""
    torch.manual_seed(0)
    exit_ = Exit(nn.ModuleList(), (), nn.Linear(16, BLOCK + 77, dtype=dtype))
    hidden, noise = torch.randn(40, 16, dtype=dtype), torch.randn(40, BLOCK + 77)
    targets = torch.randint(0, BLOCK + 77, (40,))
    found = Ranker(exit_).rank(hidden, targets, noise=noise)
    with torch.no_grad():
        logits = exit_.logits(hidden).float()
    assert torch.allclose(found.top_prob, logits.softmax(1).amax(1), rtol=2e-2)
    for ranks, scores in ((found.rank, logits), (found.coupled_rank, logits + noise)):
        own, rounding = scores.gather(1, targets[:, None]), scores.abs().max() / 200
        assert ranks is not None
        assert (ranks >= 1 + (scores > own + rounding).sum(1)).all()
        assert (ranks <= 1 + (scores > own - rounding).sum(1)).all()


def test_rankers_of_one_head_share_their_memory() -> None:
    torch.manual_seed(0)
    exit_, hidden = Exit(nn.ModuleList(), (), nn.Linear(16, 40)), torch.randn(9, 16)
    trained = replace(exit_, maps={1: AffineMap(torch.randn(16, 16), torch.randn(16))})
    ranker, targets = Ranker(exit_), torch.arange(9)
    other = ranker.using(trained)
    assert ranker._scan is not None
    assert other._scan is ranker._scan
    expected = Ranker(trained).rank(hidden, targets, 1)
    assert torch.equal(other.rank(hidden, targets, 1).rank, expected.rank)
    assert not torch.equal(ranker.rank(hidden, targets, 1).rank, expected.rank)


def test_a_device_ranks_whole_groups() -> None:
    sizes = {1: GROUP, GROUP: GROUP, GROUP + 1: 2 * GROUP, 3 * GROUP - 1: 3 * GROUP}
    assert {n: whole_groups(n) for n in sizes} == sizes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, ROWS])
@pytest.mark.parametrize("column", [0, BLOCK + 5])
def test_no_rank_is_taken_from_logits_that_are_no_numbers(
    value: float, row: int, column: int
) -> None:
    """A comparison with NaN is false: the true token would seem to rank first."""
    head = nn.Linear(4, 2 * BLOCK, bias=False)
    exit_ = Exit(nn.ModuleList(), (), head)
    hidden, targets = torch.randn(ROWS + 1, 4), torch.zeros(ROWS + 1, dtype=torch.long)
    hidden[row], head.weight.data[column] = 0, 0
    hidden[row, 0] = 1
    Ranker(exit_).rank(hidden, targets)
    head.weight.data[column, 0] = value
    hidden[:, 0] = (torch.arange(ROWS + 1) == row).float()
    with pytest.raises(InvalidInputError, match="logits must be finite; got NaN or infinity from"):
        Ranker(Exit(nn.ModuleList(), (), head)).rank(hidden, targets)


def test_a_vocabulary_that_a_model_masks_is_no_fault() -> None:
    """Logits of -inf are tokens that are never made."""
    head = nn.Linear(4, 100)
    head.bias.data[90:] = -torch.inf
    found = Ranker(Exit(nn.ModuleList(), (), head)).rank(torch.randn(3, 4), torch.arange(3))
    assert found.top_prob.isfinite().all()
    assert (found.rank <= 90).all()
