"""A batch against Transformers' own forward of each text alone, and against written-out logits."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure import batch
from ppdmodel.measure.batch import (
    MIN_REPEATED,
    NEAR_MARGIN,
    TIE_MARGIN,
    BatchResult,
    measure_batch,
    rank_chunk,
)
from ppdmodel.measure.decoder.exit import AffineMap, Exit
from ppdmodel.measure.decoder.generate import Chunk, Context
from ppdmodel.measure.decoder.ranks import Ranker
from ppdmodel.measure.decoder.sampling import Sampling
from ppdmodel.measure.decoder.verify import Decoder, repeated, verified
from ppdmodel.measure.models.loading import LoadedModel, load_model, threads
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.options import GenerationOptions
from ppdmodel.measure.prompts import Prompt
from ppdmodel.progress import Progress

LAYERS, TOKENS, VOCABULARY = 5, 6, 12
PROMPTS = [
    Prompt("one", "the quick brown fox", "a"),
    Prompt("two", "a dog", "b", later_turns=("and then?",)),
    Prompt("three", "nobody is looking at all while it jumps", "a"),
]
#: how far float32 logits of a padded batch may lie from those of the text alone
ROUNDING = 1e-4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model only waits for more of them."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(locate(str(tiny_model)))


@pytest.fixture(scope="module")
def decoder(loaded: LoadedModel) -> Decoder:
    return verified(loaded.model)


def batch_of(
    loaded: LoadedModel, decoder: Decoder, prompts: Sequence[Prompt] = PROMPTS, **changes: Any
) -> BatchResult:
    options = GenerationOptions(TOKENS, **changes)
    return measure_batch(loaded, decoder, Ranker(decoder.exit), prompts, options)


# ---------------------------------------------------------------- Transformers, one text at a time


@dataclass(frozen=True)
class Answer:
    """One answer: whose, which turn, what was read, its tokens, logits [layers, n, vocabulary]."""

    prompt: int
    turn: int
    read: list[int]
    tokens: list[int]
    logits: Tensor


@pytest.fixture(scope="module")
def answers(tiny_model: Path) -> list[Answer]:
    """The prompts answered by Transformers' `generate`, and every layer read by its own modules."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    found = []
    for number, prompt in enumerate(PROMPTS):
        text = ""
        for turn, words in enumerate(prompt.turns):
            text += f"[user] {words}\n[assistant] "
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                whole = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=TOKENS,
                    do_sample=False,
                )
                states = model(whole, output_hidden_states=True, use_cache=False).hidden_states
                # the last of the states has been through the norm already
                read = [*(model.model.norm(state) for state in states[1:-1]), states[-1]]
                logits = model.lm_head(torch.cat(read))[:, ids.shape[1] - 1 : -1]
            made = whole[0, ids.shape[1] :].tolist()
            found.append(Answer(number, turn, ids[0].tolist(), made, logits))
            text += tokenizer.decode(made, skip_special_tokens=True) + "\n"
    return found


def test_keys_and_tokens_are_those_of_each_text_alone(
    loaded: LoadedModel, decoder: Decoder, answers: list[Answer]
) -> None:
    """In the order of prompts, turns and positions, though the turns are decoded one by one."""
    found = batch_of(loaded, decoder).measurement({"model": "tiny"}, [4, 5, 9])
    rows = [
        (answer.prompt, answer.turn, position, token)
        for answer in answers
        for position, token in enumerate(answer.tokens)
    ]
    keys = (found.prompt_index, found.turn, found.position, found.token_id)
    assert list(zip(*(key.tolist() for key in keys), strict=True)) == rows
    read = [ids.tolist() for ids in found.context_ids or ()]
    assert read == [answer.read for answer in answers]
    assert (found.prompt_ids, found.categories) == (("one", "two", "three"), ("a", "b", "a"))
    assert found.prompt_numbers == (4, 5, 9)
    assert found.provenance == {"model": "tiny"}
    assert not found.complete
    assert found.coupled_rank is None


def test_ranks_and_probabilities_are_those_of_each_text_alone(
    loaded: LoadedModel, decoder: Decoder, answers: list[Answer]
) -> None:
    found = batch_of(loaded, decoder).measurement({}, [0, 1, 2])
    logits = torch.cat([answer.logits for answer in answers], dim=1).transpose(0, 1)
    tokens = torch.tensor([token for answer in answers for token in answer.tokens])
    own = logits.gather(2, tokens[:, None, None].expand(-1, LAYERS, 1))
    least = 1 + (logits > own + ROUNDING).sum(2).numpy()
    most = (logits >= own - ROUNDING).sum(2).numpy()
    assert found.rank.shape == least.shape == (len(tokens), LAYERS)
    assert (least <= found.rank).all()
    assert (found.rank <= most).all()
    assert (least == most).mean() > 0.95, "the bounds must leave nothing open"
    assert (found.rank[:, -1] == 1).all()
    assert (found.rank[:, 0] > 8).any(), "an early layer must not know it all"
    largest = logits.softmax(2).amax(2).numpy()
    assert found.top_prob == pytest.approx(largest, abs=1e-4)


def test_guesses_are_the_first_eight_of_each_text_alone(
    loaded: LoadedModel, decoder: Decoder, answers: list[Answer]
) -> None:
    result = batch_of(loaded, decoder)
    found, tokens = result.guesses(), result.measurement({}, [0, 1, 2])
    logits = torch.cat([answer.logits for answer in answers], dim=1).transpose(0, 1)
    probabilities = logits.softmax(2).numpy()
    assert (found.prompt_ids, found.vocabulary) == (("one", "two", "three"), logits.shape[2])
    for name in ("prompt_index", "turn", "position"):
        assert np.array_equal(getattr(found, name), getattr(tokens, name))
    first = np.sort(probabilities, axis=2)[..., ::-1][..., :8]
    assert found.ids.shape == first.shape == (tokens.n_tokens, LAYERS, 8)
    assert found.probs == pytest.approx(first, rel=2e-3, abs=1e-6)
    of_the_ids = np.take_along_axis(probabilities, found.ids.astype(np.int64), axis=2)
    assert of_the_ids == pytest.approx(first, rel=2e-3, abs=1e-6)
    assert (np.sort(found.ids, axis=2)[..., 1:] != np.sort(found.ids, axis=2)[..., :-1]).all()


def test_prompts_decoded_together_are_as_each_alone(loaded: LoadedModel, decoder: Decoder) -> None:
    together = batch_of(loaded, decoder).measurement({}, [0, 1, 2])
    for number, prompt in enumerate(PROMPTS):
        single = batch_of(loaded, decoder, [prompt]).measurement({}, [number])
        mine = together.prompt_index == number
        for name in ("turn", "position", "token_id", "rank"):
            assert np.array_equal(getattr(together, name)[mine], getattr(single, name)), name
        assert together.top_prob[mine] == pytest.approx(single.top_prob, abs=1e-4)


def test_progress_counts_tokens_and_turns(loaded: LoadedModel, decoder: Decoder) -> None:
    """Two turns of six steps; one prompt of three takes part in the second."""
    seen: list[Progress] = []
    options = GenerationOptions(TOKENS)
    ranker = Ranker(decoder.exit)
    result = measure_batch(loaded, decoder, ranker, PROMPTS, options, seen.append)
    n = result.measurement({}, [0, 1, 2]).n_tokens
    assert seen[0] == Progress("decoding", 3, 1 / 12)
    assert seen[-1] == Progress("ranked", n, 1.0)
    assert seen[-2].tokens == n == 4 * TOKENS
    assert [step.share for step in seen[:-1]] == pytest.approx([n / 12 for n in range(1, 13)])


def test_a_context_must_leave_room_for_the_answer(loaded: LoadedModel, decoder: Decoder) -> None:
    """The context of 256 is full to the last token with this prompt, and one more is refused."""
    frame = len(loaded.encode([""]))
    fits = Prompt("fits", "a" * (256 - frame - TOKENS))
    assert batch_of(loaded, decoder, [fits]).measurement({}, [0]).n_tokens == TOKENS
    longer = Prompt("longer", fits.text + "a")
    with pytest.raises(InvalidInputError, match=r"context of 256; got 251 \+ 6 for prompt 'longer"):
        batch_of(loaded, decoder, [fits, longer])


def test_raw_text_is_read_without_the_template(loaded: LoadedModel, decoder: Decoder) -> None:
    """A conversation written out by hand is, raw, what the template makes of it."""
    written = [Prompt("w", "[user] the quick brown fox\n[assistant] ")]
    raw = batch_of(loaded, decoder, written, raw=True).measurement({}, [0])
    chat = batch_of(loaded, decoder, PROMPTS[:1]).measurement({}, [0])
    assert np.array_equal(raw.token_id, chat.token_id)
    assert np.array_equal(raw.rank, chat.rank)


def test_sampled_text_has_coupled_ranks_and_no_near_ties(
    loaded: LoadedModel, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise that drew a token makes it first at the last layer, whatever its plain rank."""
    monkeypatch.setitem(NEAR_MARGIN, torch.float32, 100.0)
    found = batch_of(loaded, decoder, sampling=Sampling(temperature=3.0, seed=1))
    result = found.measurement({}, [0, 1, 2])
    assert result.coupled_rank is not None
    assert result.coupled_rank.shape == result.rank.shape
    assert (result.coupled_rank[:, -1] == 1).all()
    assert (result.rank[:, -1] > 1).any()
    assert (result.ties, result.near_ties) == ((), ())
    greedy = batch_of(loaded, decoder).measurement({}, [0, 1, 2])
    assert len(greedy.near_ties) == greedy.n_tokens, "every margin is below that"


# ---------------------------------------------------------------- logits written out


def plain_exit(dtype: torch.dtype = torch.float32) -> Exit:
    """An exit whose logits are the states themselves."""
    head = nn.Linear(VOCABULARY, VOCABULARY, bias=False, dtype=dtype)
    head.weight.data = torch.eye(VOCABULARY, dtype=dtype)
    return Exit(nn.ModuleList([nn.Identity()]), (), head)


def chunk_of(
    logits: Tensor,
    tokens: Sequence[int],
    noise: Tensor | None = None,
    tops: Sequence[int] | None = None,
) -> Chunk:
    """Tokens of row 0 whose last layer has these logits [n, vocabulary], and whose others none."""
    n = len(tokens)
    hidden = torch.stack([torch.zeros_like(logits), torch.zeros_like(logits), logits])
    given = torch.tensor(tokens)
    top = given if tops is None else torch.tensor(tops)
    return Chunk([0] * n, [10 + i for i in range(n)], given, top, hidden, noise)


def collected(chunk: Chunk, turn: int = 1) -> BatchResult:
    exit_ = plain_exit(chunk.hidden.dtype)
    found = BatchResult(exit_, [Prompt("p", "")])
    found.add(chunk, rank_chunk(Ranker(exit_), chunk, None), np.zeros(len(chunk.row), int), turn)
    return found


def two_leading(margins: Sequence[float]) -> Tensor:
    """Logits [n, vocabulary] where token 5 leads and token 2 follows by these margins."""
    logits = torch.zeros(len(margins), VOCABULARY)
    logits[:, 5] = 4.0
    logits[:, 2] = 4.0 - torch.tensor(margins)
    return logits


def test_a_near_tie_has_its_margin_and_its_place() -> None:
    limit = NEAR_MARGIN[torch.float32]
    found = collected(chunk_of(two_leading([0.8 * limit, 1.2 * limit, 1.0]), [5, 5, 5]))
    (near,) = found.near_ties
    assert (near["prompt_id"], near["turn"], near["position"]) == ("p", 1, 10)
    assert near["margin"] == pytest.approx(0.8 * limit, rel=1e-2)
    assert found.ties == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tie_is_recorded_within_rounding_and_fails_beyond(dtype: torch.dtype) -> None:
    """The model chose token 2, which the last layer ranks second."""
    limit = TIE_MARGIN[dtype]
    within, beyond = (
        chunk_of(two_leading([1.0, share * limit]).to(dtype), [5, 2]) for share in (0.9, 1.1)
    )
    (tie,) = collected(within).ties
    assert (tie["prompt_id"], tie["position"], tie["rank"]) == ("p", 11, 2)
    assert tie["margin"] == pytest.approx(0.9 * limit, rel=0.05)
    if dtype == torch.bfloat16:  # which holds its limit exactly
        assert collected(chunk_of(two_leading([limit]).to(dtype), [2])).ties[0]["margin"] == limit
    with pytest.raises(RunFailedError) as caught:
        collected(beyond)
    assert "the last layer must rank every token first that the model does" in str(caught.value)
    assert "for prompt 'p' at position 11; this model's head" in str(caught.value)


def test_a_first_token_that_only_the_ranking_has_second_is_a_tie_without_a_margin() -> None:
    """The head's product, made once more for the margin, may round as the model's own does."""
    chunk, exit_ = chunk_of(two_leading([1.0]), [5]), plain_exit()
    *others, last = rank_chunk(Ranker(exit_), chunk, None)
    result = BatchResult(exit_, [Prompt("p", "")])
    result.add(chunk, [*others, replace(last, rank=torch.tensor([2]))], np.zeros(1, int), 0)
    assert result.ties == [{"prompt_id": "p", "position": 10, "rank": 2, "margin": 0.0}]


@pytest.mark.parametrize("noise", [None, torch.zeros(1, VOCABULARY)])
def test_logits_that_are_no_numbers_are_refused(noise: torch.Tensor | None) -> None:
    """Of greedy and of sampled text: the true token would seem to rank first."""
    logits = two_leading([1.0])
    logits[0, 5] = torch.nan
    with pytest.raises(InvalidInputError, match="logits must be finite; got NaN or infinity"):
        collected(chunk_of(logits, [2], noise))


def test_a_sampled_token_need_not_be_first_but_the_models_first_token_must() -> None:
    noise = torch.zeros(1, VOCABULARY)
    drawn = chunk_of(two_leading([3.0]), [7], noise, tops=[5])
    assert collected(drawn).ties == []
    with pytest.raises(RunFailedError, match="the last layer must rank every token first"):
        collected(replace(drawn, top_token=torch.tensor([2])))


@pytest.mark.parametrize("temperature", [0.5, None])
def test_coupled_ranks_are_those_of_logits_over_temperature_plus_noise(
    temperature: float | None,
) -> None:
    """Of plain logits plus noise, where no temperature is given."""
    generator = torch.Generator().manual_seed(2)
    logits, noise = (torch.randn(40, VOCABULARY, generator=generator) for _ in range(2))
    tokens = [int(n) % VOCABULARY for n in range(40)]
    sampling = Sampling(temperature) if temperature else None
    first, _, last = rank_chunk(
        Ranker(plain_exit()), chunk_of(logits, tokens, noise, tokens), sampling
    )
    for ranked, plain in ((first, torch.zeros_like(logits)), (last, logits)):
        for coupled, scores in ((False, plain), (True, plain / (temperature or 1) + noise)):
            own = scores[torch.arange(40), torch.tensor(tokens)]
            expected = 1 + (scores > own[:, None]).sum(1)
            found = ranked.coupled_rank if coupled else ranked.rank
            assert found is not None
            assert found.tolist() == expected.tolist()


def test_a_trained_map_is_added_at_its_own_layer() -> None:
    """The first layer's states are zeros, so its guesses are those of the map's bias alone."""
    bias = torch.arange(VOCABULARY).float()
    map_ = AffineMap(torch.zeros(VOCABULARY, VOCABULARY), bias)
    exit_ = replace(plain_exit(), maps={1: map_})
    first, _, last = rank_chunk(Ranker(exit_), chunk_of(two_leading([1.0]), [5]), None)
    assert first.guess_ids[0].tolist() == [11, 10, 9, 8, 7, 6, 5, 4]
    assert (int(first.rank[0]), int(last.rank[0])) == (7, 1)


def test_chunks_are_put_in_the_order_of_prompts_turns_and_positions() -> None:
    """Tokens come by step, several prompts at a time, and the second turn after the first."""
    exit_ = plain_exit()
    result = BatchResult(exit_, [Prompt("a", ""), Prompt("b", "")])
    keys = [(p, t, i) for t in range(2) for i in range(3) for p in (1, 0)]
    for n, (prompt, turn, position) in enumerate(keys):
        logits = torch.zeros(1, VOCABULARY)
        logits[0, n] = 9.0
        chunk = replace(chunk_of(logits, [n]), position=[position])
        result.add(chunk, rank_chunk(Ranker(exit_), chunk, None), np.array([prompt]), turn)
    expected = sorted(range(len(keys)), key=keys.__getitem__)
    assert result.measurement({}, [0, 1]).token_id.tolist() == expected
    assert result.guesses().ids[:, -1, 0].tolist() == expected


# ---------------------------------------------------------------- compared with generate


class ReadsItsNeighbours(LlamaForCausalLM):  # type: ignore[misc]
    """Turns positions otherwise in a batch that is longer than any probe, and says so nowhere."""

    longest = 60

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > 1 and kwargs["attention_mask"].shape[1] > self.longest:
            kwargs["position_ids"] = kwargs["position_ids"] // 2
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("sampling", [None, Sampling(seed=3), Sampling(top_p=0.7)])
def test_some_tokens_are_made_again_by_generate(
    loaded: LoadedModel, decoder: Decoder, sampling: Sampling | None
) -> None:
    found = batch_of(loaded, decoder, sampling=sampling).measurement({}, [0, 1, 2])
    assert found.repeated[0]["prompt_id"] == "two", "the longest text, with its second turn"
    assert sum(text["n_tokens"] for text in found.repeated) == MIN_REPEATED
    assert all(text["n_near_ties"] == 0 for text in found.repeated)


def test_every_token_of_every_text_and_turn_may_be_made_again(
    loaded: LoadedModel, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "REPEATED_SHARE", 1.0)
    for sampling in (None, Sampling(temperature=0.5, top_p=0.9)):
        found = batch_of(loaded, decoder, sampling=sampling).measurement({}, [0, 1, 2])
        told = {(text["prompt_id"], text["turn"]): text["n_tokens"] for text in found.repeated}
        assert sum(told.values()) == found.n_tokens
        assert told.keys() == {("one", 0), ("two", 0), ("two", 1), ("three", 0)}


def test_a_text_that_is_another_one_in_its_batch_fails_the_run(tiny_model: Path) -> None:
    model = ReadsItsNeighbours.from_pretrained(tiny_model).eval()
    loaded = replace(load_model(locate(str(tiny_model))), model=model)
    decoder = verified(model)
    batch_of(loaded, decoder, PROMPTS[:1])
    with pytest.raises(RunFailedError) as caught:
        batch_of(loaded, decoder)
    assert re.fullmatch(
        r"each text must be what Transformers' generate makes of it alone, near ties apart; got "
        r"token \d+ for \d+, [\d.]+ in logits away, for prompt 'three' at position [1-5] of "
        r"turn 0, after \d+ tokens; use shorter texts or --batch-size 1",
        str(caught.value),
    )


def test_a_difference_that_rounding_explains_is_a_near_tie(
    loaded: LoadedModel, decoder: Decoder
) -> None:
    """The runner-up in place of the first token, with a margin that would or would not do."""
    ids = loaded.encode(["the fox"])
    (logits,) = loaded.model(torch.tensor([ids])).logits[:, -1]
    (largest, second), (first, other) = logits.topk(2)
    gap, tolerance = float(largest - second), 1e-4 * float(logits.abs().max())
    context = Context("p", 0, ids)
    assert gap > tolerance
    same = repeated(loaded.model, context, [int(first)], 0, None, gap / 2)
    assert (same.n_tokens, same.n_near_ties) == (1, 0)
    turned = repeated(loaded.model, context, [int(other)], 0, None, gap * 1.01)
    assert (turned.n_tokens, turned.n_near_ties) == (1, 1)
    wrong = (
        rf"got token {other} for {first}, {gap:.3g} in logits away, for prompt 'p' at position 0"
    )
    with pytest.raises(RunFailedError, match=wrong):
        repeated(loaded.model, context, [int(other)], 0, None, gap * 0.99)


def test_the_models_generation_config_is_left_as_it_was(
    loaded: LoadedModel, decoder: Decoder
) -> None:
    own = loaded.model.generation_config
    own.repetition_penalty = 5.0
    try:
        found = batch_of(loaded, decoder).measurement({}, [0, 1, 2])
        assert loaded.model.generation_config is own
    finally:
        own.repetition_penalty = None
    assert found.repeated
