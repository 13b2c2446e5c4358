"""Models that decode padded batches right, and models that are broken on purpose."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import load_model, locate
from ppdmodel.measure.decoder.forward import Batch
from ppdmodel.measure.decoder.kernels import _has_onednn
from ppdmodel.measure.decoder.verify import KEPT, LENGTHS, PREFIX_LENGTH, probe_texts, verified
from tests.conftest import make_tiny_llama

WRONG = "the model must decode padded batches with a cache as it does each text alone; got "


def load(folder: Path, kind: Any = AutoModelForCausalLM) -> Any:
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def test_a_padded_cached_batch_is_each_text_alone(tiny_model: Path) -> None:
    """Held here against Transformers' forward pass without a cache, for other texts."""
    model = load(tiny_model)
    decoder = verified(model)
    assert decoder.model is model
    assert decoder.drops_rows
    assert decoder.exit.head is model.lm_head
    torch.manual_seed(1)
    texts = [torch.randint(1, 257, (n,)).tolist() for n in (21, 2, 9)]
    batch = Batch(model, decoder.exit, texts, room=4)
    assert batch.rows == [1, 2, 0], "shortest first"
    for _ in range(4):
        logits, states = batch.step()
        for place, row in enumerate(batch.rows):
            out = model(torch.tensor([texts[row]]), output_hidden_states=True, use_cache=False)
            assert_close(logits[place], out.logits[0, -1], rtol=1e-4, atol=1e-4)
            for mine, theirs in zip(states, out.hidden_states[1:-1], strict=False):
                assert_close(mine[place], theirs[0, -1], rtol=1e-4, atol=1e-4)
        chosen = logits.argmax(-1)
        for place, row in enumerate(batch.rows):
            texts[row].append(int(chosen[place]))
        batch.append(chosen)


def test_the_probe_has_padding_and_a_common_beginning() -> None:
    assert PREFIX_LENGTH < min(LENGTHS) < max(LENGTHS)
    assert max(LENGTHS) > 2 * min(LENGTHS)
    assert list(LENGTHS) != sorted(LENGTHS), "rows change places"
    texts = probe_texts(257)
    assert [len(text) for text in texts] == list(LENGTHS)
    for n, tokens in enumerate(zip(*texts, strict=False)):
        assert len(set(tokens)) == (1 if n < PREFIX_LENGTH else len(texts))
    assert all(len(set(text)) == len(text) for text in texts)
    assert max(max(text) for text in probe_texts(20)) < 20


def test_the_probe_goes_on_after_rows_have_left() -> None:
    *before, last = KEPT
    assert len(before) >= 2, "they leave a batch that has been continued"
    assert last is not None
    assert len(last) < len(LENGTHS)


# The models below keep the signature, by which a batch hands them positions.


class BlindToPadding(LlamaForCausalLM):  # type: ignore[misc]
    """Reads the padding of a batch as if it were text."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        shown = None if attention_mask is None else torch.ones_like(attention_mask)
        return super().forward(*args, attention_mask=shown, **kwargs)


class CountsPlaces(LlamaForCausalLM):  # type: ignore[misc]
    """Counts a token's position from the start of the padding."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        if position_ids is not None:
            kept = kwargs["attention_mask"].shape[1]
            n = position_ids.shape[1]
            position_ids = torch.arange(kept - n, kept)[None].expand_as(position_ids) ** 2
        return super().forward(*args, position_ids=position_ids, **kwargs)


class Drifts(LlamaForCausalLM):  # type: ignore[misc]
    """A step that reads a cache gives slightly other logits."""

    error = 1e-3

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        used = cache is not None and cache.get_seq_length() > max(LENGTHS)
        out = super().forward(*args, **kwargs)
        if used:
            out.logits = out.logits + self.error * out.logits.abs().max()
        return out


class Fails(LlamaForCausalLM):  # type: ignore[misc]
    """Knows no cache."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, use_cache: bool = True, **kwargs: Any) -> Any:
        if use_cache:
            raise KeyError("first line\nsecond line")
        return super().forward(*args, use_cache=False, **kwargs)


class CachesOtherwise(LlamaForCausalLM):  # type: ignore[misc]
    """Gives other logits whenever it is told to fill a cache."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, use_cache: bool = True, **kwargs: Any) -> Any:
        out = super().forward(*args, use_cache=use_cache, **kwargs)
        if use_cache:
            out.logits = out.logits + 1e-3 * out.logits.abs().max()
        return out


@pytest.mark.parametrize("kind", [BlindToPadding, CountsPlaces, Drifts, CachesOtherwise])
def test_a_model_that_decodes_a_batch_otherwise_is_refused(tiny_model: Path, kind: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        verified(load(tiny_model, kind))
    words = str(caught.value)
    assert words.startswith(f"{WRONG}{kind.__name__}: logits ")
    assert words.endswith("only decoders with attention caches are measured")


def test_the_step_that_differs_is_named(tiny_model: Path) -> None:
    """These texts are first read without padding, each group of one length by itself."""
    with pytest.raises(InvalidInputError, match="of the largest away at step 2;"):
        verified(load(tiny_model, BlindToPadding))
    with pytest.raises(InvalidInputError, match=r"logits 0\.001 of the largest away at step 3;"):
        verified(load(tiny_model, Drifts))


def test_differences_of_rounding_are_none(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drifts, "error", 2e-5)
    assert verified(load(tiny_model, Drifts)).drops_rows


def test_nan_is_a_difference(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drifts, "error", float("nan"))
    with pytest.raises(InvalidInputError, match="logits nan of the largest away at step 3;"):
        verified(load(tiny_model, Drifts))


def test_what_the_models_own_code_raises_is_told_in_one_line(tiny_model: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        verified(load(tiny_model, Fails))
    assert str(caught.value).startswith(f"{WRONG}Fails: KeyError: ")
    assert len(str(caught.value).splitlines()) == 1


class KeepsItsBatch(LlamaForCausalLM):  # type: ignore[misc]
    """Decodes batches right as long as no text leaves them."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        batch = len(kwargs["input_ids"])
        if cache is not None and batch == 1 and cache.get_seq_length() > max(LENGTHS):
            raise ValueError("a text left the batch")
        return super().forward(*args, **kwargs)


def test_a_cache_that_texts_cannot_leave_is_used_whole(tiny_model: Path) -> None:
    decoder = verified(load(tiny_model, KeepsItsBatch))
    assert not decoder.drops_rows


def test_a_prepacked_model_decodes_alike(tiny_model: Path) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    plain = load(tiny_model)
    decoder = verified(load(tiny_model)).prepacked()
    with torch.inference_mode():
        expected: Tensor = plain(ids, use_cache=False).logits
        assert_close(decoder.model(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_a_weight_by_itself_is_not_packed(tmp_path: Path) -> None:
    loaded = load_model(locate(str(make_tiny_llama(tmp_path))))
    decoder = verified(loaded.model)
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    mlp = loaded.model.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x) + 0 * mlp.gate_proj.weight.sum()
    assert decoder.prepacked() is decoder
    assert "forward" not in vars(decoder.exit.head)
    after = dict(loaded.model.named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    mlp.forward = own
    packed = decoder.prepacked()
    assert bool(mlp.gate_proj.weight.isnan().all()) == _has_onednn()
    assert (packed.exit.blocks is not None) == _has_onednn()
    assert not any(weight.isnan().any() for weight in decoder.exit.head.parameters())
