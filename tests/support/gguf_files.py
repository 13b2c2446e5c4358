"""GGUF files of a tiny random Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

LAYERS, WIDTH, INNER, HEADS, CONTEXT, THETA = 2, 32, 64, 4, 256, 10000.0


def nothing_more(writer: GGUFWriter) -> None:
    """The file as it is."""


def write_gguf(path: Path, more: Callable[[GGUFWriter], object] = nothing_more) -> Path:
    """Write a whole file with a tokenizer of bytes; `more` adds fields and tensors."""
    from tokenizers import pre_tokenizers

    rng = np.random.default_rng(0)
    tokens = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(THETA)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    def add(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else rng.normal(0, 0.3, shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    add("token_embd", len(tokens), WIDTH)
    add("output_norm", WIDTH)
    add("output", len(tokens), WIDTH)
    for n in range(LAYERS):
        for name, rows in (("q", WIDTH), ("k", 16), ("v", 16), ("output", WIDTH)):
            add(f"blk.{n}.attn_{name}", rows, WIDTH)
        add(f"blk.{n}.ffn_gate", INNER, WIDTH)
        add(f"blk.{n}.ffn_up", INNER, WIDTH)
        add(f"blk.{n}.ffn_down", WIDTH, INNER)
        add(f"blk.{n}.attn_norm", WIDTH)
        add(f"blk.{n}.ffn_norm", WIDTH)
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
