"""Generated tokens against Transformers' generate, and the states against its forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ppdmodel.measure.decoder import forward
from ppdmodel.measure.decoder.exit import logit_exit
from ppdmodel.measure.decoder.generate import Context, generate
from ppdmodel.measure.decoder.sampling import Sampling, TokenPosition, choose
from ppdmodel.measure.models.loading import LoadedModel, load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import read_prompts
from ppdmodel.progress import Progress
from tests.support.families import FAMILIES


def contexts(loaded: LoadedModel, prompt_file: Path) -> list[Context]:
    return [Context(p.id, 0, loaded.encode([p.text])) for p in read_prompts(prompt_file)]


def texts(
    loaded: LoadedModel, given: Sequence[Context], most: int, ends: frozenset[int], **options: Any
) -> list[list[int]]:
    """Token ids of each row, put together from the chunks, whose order is checked."""
    made: list[list[int]] = [[] for _ in given]
    exit_ = logit_exit(loaded.model)
    for chunk in generate(loaded.model, exit_, given, most, ends, **options):
        assert chunk.hidden.shape[:2] == (len(exit_.decoder_layers), len(chunk.row))
        for row, position, token in zip(
            chunk.row, chunk.position, chunk.token_id.tolist(), strict=True
        ):
            assert position == len(made[row])
            made[row].append(token)
    return made


def alone(loaded: LoadedModel, ids: Sequence[int], most: int, **options: Any) -> list[int]:
    """What Transformers generates at batch size 1."""
    made = loaded.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=most,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    found: list[int] = made[0, len(ids) :].tolist()
    return found


def passes(
    loaded: LoadedModel,
    given: Sequence[Context],
    most: int,
    ends: frozenset[int] = frozenset(),
    **options: Any,
) -> list[tuple[int, ...]]:
    """Of each pass of the model: rows, tokens, tokens that it gives logits for, places left."""
    exit_ = logit_exit(loaded.model)
    seen: list[tuple[int, ...]] = []

    def see(_module: Any, _args: Any, given: dict[str, Any], out: Any) -> None:
        cache = given["past_key_values"].layers[0]
        seen.append((*given["input_ids"].shape, out.logits.shape[1], cache.room - cache.used))

    handle = loaded.model.register_forward_hook(see, with_kwargs=True)
    for _ in generate(loaded.model, exit_, given, most, ends, **options):
        pass
    handle.remove()
    return seen


@pytest.mark.parametrize("chunk_tokens", [1, 16, 512])
def test_text_is_what_transformers_generates(
    tiny_model: Path, prompt_file: Path, chunk_tokens: int
) -> None:
    """Prompts of different lengths, padded on the left, where padding and end are one token."""
    loaded = load_model(locate(str(tiny_model)))
    assert loaded.model.config.pad_token_id in loaded.end_ids
    given = contexts(loaded, prompt_file)
    assert len({len(context.ids) for context in given}) > 3
    made = texts(loaded, given, 25, loaded.end_ids, chunk_tokens=chunk_tokens)
    for context, text in zip(given, made, strict=True):
        assert text == alone(loaded, context.ids, 25)


def test_nothing_counts_after_the_end_of_a_text(tiny_model: Path, prompt_file: Path) -> None:
    """Any tokens can be the end. Rows that have ended leave the batch, and the rest goes on."""
    loaded = load_model(locate(str(tiny_model)))
    given = contexts(loaded, prompt_file)
    free = texts(loaded, given, 40, frozenset())
    assert [len(text) for text in free] == [40] * len(given)
    ends = frozenset(text[3 * row + 3] for row, text in enumerate(free))
    made = texts(loaded, given, 40, ends)
    lengths = {len(text) for text in made}
    assert len(lengths) > 3
    for text, whole in zip(made, free, strict=True):
        first = next((i for i, token in enumerate(whole) if token in ends), 39)
        assert text == whole[: first + 1]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(locate(str(tiny_model)))


def texts_of(lengths: Sequence[int], shared: int = 0) -> list[Context]:
    """Random contexts of these lengths with a common beginning."""
    torch.manual_seed(2)
    beginning = torch.randint(1, 257, (shared,)).tolist()
    return [
        Context(f"p{n}", 0, beginning + torch.randint(1, 257, (length - shared,)).tolist())
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("least", [1, 8, 10**6], ids=["any", "default", "never"])
@pytest.mark.parametrize("shared", [0, 11])
def test_a_common_beginning_changes_no_text(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, shared: int, least: int
) -> None:
    """Read once or with each text, in groups of about one length or of one."""
    monkeypatch.setattr(forward, "MIN_SHARED_TOKENS", least)
    given = texts_of((12, 40, 13, 41, 22), shared)
    made = texts(loaded, given, 6, frozenset())
    for context, text in zip(given, made, strict=True):
        assert text == alone(loaded, context.ids, 6, eos_token_id=None)


def test_contexts_are_read_in_groups_of_about_one_length_and_a_beginning_once(
    loaded: LoadedModel,
) -> None:
    """Logits are made for the last token alone, and the memory of a group is that of its keys."""
    lengths = (12, 40, 13, 41, 22)
    assert passes(loaded, texts_of(lengths), 1) == [(2, 13, 1, 0), (1, 22, 1, 0), (2, 41, 1, 0)]
    own = [(1, 1, 1, 0), (1, 2, 1, 0), (1, 11, 1, 0), (2, 30, 1, 0)]
    assert passes(loaded, texts_of(lengths, 11), 1) == [(1, 11, 1, 0), *own]


@pytest.mark.parametrize(("rows", "left"), [(8, 7), (9, 9)])
def test_texts_leave_a_batch_once_an_eighth_of_it_has_ended(
    loaded: LoadedModel, rows: int, left: int
) -> None:
    """Texts of one token, read in one pass; when all have ended there is no other."""
    given = [Context(f"p{n}", 0, [n + 1]) for n in range(rows)]
    firsts = [text[0] for text in texts(loaded, given, 1, frozenset())]
    ends = frozenset([next(token for token in firsts if firsts.count(token) == 1)])
    assert passes(loaded, given, 2, ends) == [(rows, 1, 1, 0), (left, 1, 1, 1)]
    kept = passes(loaded, given, 2, ends, drops_rows=False)
    assert kept == [(rows, 1, 1, 0), (rows, 1, 1, 1)]
    assert passes(loaded, given, 5, frozenset(firsts)) == [(rows, 1, 1, 0)]
    for context, text in zip(given, texts(loaded, given, 4, ends), strict=True):
        assert text == alone(loaded, context.ids, 4, eos_token_id=sorted(ends))


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name in ("gpt2", "gemma2")], ids=lambda family: family.name
)
def test_positions_may_be_learned_and_attention_may_have_windows(
    loaded: LoadedModel, family: Any, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(family.write(tmp_path / "m")).eval().float()
    other, given = replace(loaded, model=model), texts_of((12, 23, 13, 24), 9)
    for context, text in zip(given, texts(other, given, 5, frozenset()), strict=True):
        assert text == alone(other, context.ids, 5, eos_token_id=None)


class Plain(LlamaForCausalLM):  # type: ignore[misc]
    """Is told neither positions nor for how many tokens to make logits."""

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any,
        past_key_values: Any = None,
        use_cache: Any = None,
    ) -> Any:
        return super().forward(
            input_ids, attention_mask, past_key_values=past_key_values, use_cache=use_cache
        )


def test_a_model_need_not_take_positions(loaded: LoadedModel, tiny_model: Path) -> None:
    """Without padding it counts them itself."""
    model = Plain.from_pretrained(tiny_model, dtype=torch.float32).eval()
    given = texts_of((14, 14, 14))
    for context, text in zip(
        given, texts(replace(loaded, model=model), given, 4, frozenset()), strict=True
    ):
        assert text == alone(loaded, context.ids, 4, eos_token_id=None)


def test_a_context_that_is_the_beginning_of_another_is_continued_by_itself(
    loaded: LoadedModel,
) -> None:
    whole = texts_of((30,))[0].ids
    given = [Context("a", 0, whole), Context("b", 0, whole[:20]), Context("c", 0, whole)]
    made = texts(loaded, given, 6, frozenset())
    assert made[0] == made[2]
    for context, text in zip(given, made, strict=True):
        assert text == alone(loaded, context.ids, 6, eos_token_id=None)


@pytest.mark.parametrize("drops_rows", [True, False])
def test_an_end_token_is_kept_and_is_the_last(loaded: LoadedModel, drops_rows: bool) -> None:
    given = texts_of((5, 9, 6, 7))
    free = texts(loaded, given, 12, frozenset())
    ends = frozenset({free[0][2], free[1][0]})
    made = texts(loaded, given, 12, ends, drops_rows=drops_rows)
    assert len(made[1]) == 1
    for context, text in zip(given, made, strict=True):
        assert text == alone(loaded, context.ids, 12, eos_token_id=sorted(ends))


def test_states_are_those_that_made_each_token(loaded: LoadedModel) -> None:
    """They are the forward pass's own; Transformers shows the last layer after the norm."""
    given, model = texts_of((4, 17, 9)), loaded.model
    made = texts(loaded, given, 5, frozenset())
    count = 0
    for chunk in generate(model, logit_exit(model), given, 5, frozenset(), chunk_tokens=4):
        assert chunk.noise is None
        assert torch.equal(chunk.top_token, chunk.token_id)
        assert chunk.hidden.shape == (5, len(chunk.row), 32)
        for n, (row, position) in enumerate(zip(chunk.row, chunk.position, strict=True)):
            ids = [*given[row].ids, *made[row][:position]]
            with torch.no_grad():
                out = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
                last = model.model.norm(chunk.hidden[-1, n])
            theirs = [state[0, -1] for state in out.hidden_states[1:]]
            mine = [*chunk.hidden[:-1, n], last]
            assert_close(torch.stack(mine), torch.stack(theirs), rtol=1e-4, atol=1e-4)
            count += 1
    assert count == 15


@pytest.mark.parametrize(("chunk_tokens", "sizes"), [(1, [3] * 4), (7, [6, 6]), (100, [12])])
def test_chunks_hold_whole_steps(loaded: LoadedModel, chunk_tokens: int, sizes: list[int]) -> None:
    steps: list[Progress] = []
    chunks = [
        (list(chunk.position), len(chunk.row), len(chunk.token_id))
        for chunk in generate(
            loaded.model, logit_exit(loaded.model), texts_of((4, 5, 6)), 4, frozenset(),
            chunk_tokens=chunk_tokens, on_progress=steps.append,
        )
    ]  # fmt: skip
    assert [size for _, size, _ in chunks] == [size for _, _, size in chunks] == sizes
    assert [place for places, _, _ in chunks for place in places] == [0] * 3 + [1] * 3 + [2] * 3 + [
        3
    ] * 3
    assert steps == [Progress("decoding", 3 * n, n / 4) for n in range(1, 5)]


def test_sampled_tokens_are_chosen_from_the_models_own_logits(loaded: LoadedModel) -> None:
    given, sampling = texts_of((4, 17, 9)), Sampling(temperature=1.5, seed=3)
    made: list[list[int]] = [[] for _ in given]
    differs = 0
    exit_ = logit_exit(loaded.model)
    for chunk in generate(loaded.model, exit_, given, 4, frozenset(), sampling=sampling):
        assert chunk.noise is not None
        for n, (row, position) in enumerate(zip(chunk.row, chunk.position, strict=True)):
            ids = torch.tensor([[*given[row].ids, *made[row]]])
            with torch.no_grad():
                logits = loaded.model(ids, use_cache=False).logits[0, -1:]
            where = TokenPosition(given[row].prompt_id, 0, position)
            chosen, noise = choose(logits, [where], sampling)
            assert noise is not None
            assert int(chunk.token_id[n]) == int(chosen)
            assert int(chunk.top_token[n]) == int(logits.argmax())
            assert torch.equal(chunk.noise[n], noise[0])
            made[row].append(int(chosen))
            differs += int(chosen) != int(logits.argmax())
    assert differs > 0
