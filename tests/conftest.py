"""Fixtures: a tiny random Llama on disk, and a small measurement with known counts."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ppdmodel.results.measurement import Measurement

pytest.register_assert_rewrite("tests.support.pages")  # so that its comparisons are shown
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# threads that wait spin for milliseconds otherwise, on cores that other tests need
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# a shell starts what it runs in the background with Ctrl-C ignored; tests send it
signal.signal(signal.SIGINT, signal.default_int_handler)
TEXT = "the quick brown fox jumps over a lazy dog while nobody is looking at all"
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    """A tenth of the resamples is enough where a test is not about the intervals of a curve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppdmodel.fitting.calibrate.MIN_RESAMPLES", 40)
        yield


def pytest_collection_finish() -> None:
    """Garbage is looked for among what tests make, not in every imported library again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def make_tokenizer(folder: Path) -> int:
    """Write a byte-level tokenizer with a chat template; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=CHAT)
    fast.save_pretrained(folder)
    return len(vocabulary)


def make_tiny_llama(folder: Path, layers: int = 5, seed: int = 0, width: int = 32) -> Path:
    """Write a random Llama, of a few thousand parameters by default, and a byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size = make_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama."""
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    """Seven prompts of different lengths."""
    path = tmp_path / "prompts.jsonl"
    words = TEXT.split()
    rows = [
        {"id": f"p{n}", "text": " ".join(words[: 1 + 2 * n]), "category": "ab"[n % 2]}
        for n in range(7)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_measurement(
    prompts: int = 12, tokens: int = 20, layers: int = 6, seed: int = 0
) -> Measurement:
    """A made-up measurement: ranks fall with the layer, prompts differ, the last layer is right."""
    rng = np.random.default_rng(seed)
    rows = prompts * tokens
    prompt_index = np.repeat(np.arange(prompts), tokens)
    ease = rng.normal(0, 0.5, prompts)[prompt_index]
    rank = np.empty((rows, layers), dtype=np.int64)
    for layer in range(layers):
        p = 1 / (1 + np.exp(-(1.2 * (layer + 1) - 0.7 * layers + ease)))
        rank[:, layer] = np.minimum(rng.geometric(p), 250)
    rank[:, -1] = 1
    return Measurement(
        provenance={
            "model": "made-up",
            "weights_sha256": ["0" * 64],
            "quantization": None,
            "dtype": "float32",
            "exit_kind": "logit",
            "decoding": "greedy",
            "prompts_sha256": "0" * 64,
            "max_new_tokens": tokens,
            "packages": {},
            "device": "cpu",
            "threads": 1,
            "date": "2026-01-01T00:00:00+00:00",
            "command": "python",
        },
        prompt_ids=tuple(f"p{n}" for n in range(prompts)),
        categories=("made-up",) * prompts,
        prompt_index=prompt_index,
        turn=np.zeros(rows, dtype=np.int16),
        position=np.tile(np.arange(tokens), prompts),
        token_id=rng.integers(0, 100, rows),
        rank=rank,
        top_prob=np.full((rows, layers), 0.5),
        complete=True,
    )


@pytest.fixture(scope="session")
def measurement() -> Measurement:
    """A made-up measurement of 12 prompts x 20 tokens x 6 layers."""
    return make_measurement()
