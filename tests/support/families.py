"""Tiny random models of many decoder-only families, and what each puts after its layers.

Nothing here uses `ppdmodel.measure`. What follows a family's layers was read off Transformers'
modeling code and is written down per family, in the table at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import make_tokenizer

VOCABULARY = 257
WINDOW = 8  #: sliding windows are shorter than most texts

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
SLIDING, FULL = "sliding_attention", "full_attention"


def as_they_are(_config: Any, logits: Tensor) -> Tensor:
    """Most families: the head's output is the logits."""
    return logits


def soft_capped(config: Any, logits: Tensor) -> Tensor:
    """Gemma2, Gemma3, VaultGemma, NanoChat."""
    cap: float = config.final_logit_softcapping
    return torch.tanh(logits / cap) * cap


def divided(config: Any, logits: Tensor) -> Tensor:
    """Granite and its relatives."""
    return logits / float(config.logits_scaling)


def multiplied(config: Any, logits: Tensor) -> Tensor:
    """HyperCLOVA X: the same name as Granite's, the other way round."""
    return logits * float(config.logits_scaling)


def scaled(config: Any, logits: Tensor) -> Tensor:
    """Cohere and Cohere2."""
    return logits * float(config.logit_scale)


@dataclass(frozen=True)
class Family:
    """How to make a tiny model of a family, and how it reads logits off its last layer.

    A model maps the last layer's output through `end`, modules of its base model, to
    `last_hidden_state`; through `head`, modules of the causal model; and through `after`.

    Transformers' `hidden_states` are the embeddings, each layer's output, and in place of the last
    layer's output `last_hidden_state`. That holds for every family of the table: where the base
    model's forward is decorated with `capture_outputs`, the decorator puts it there, and where the
    forward keeps the list itself (GPT-J, GPT-Neo, CodeGen, Falcon, BLOOM, MPT, Japanese GPT-NeoX),
    it appends to the list after the norm.

    `quiet` names embeddings made smaller: where they are scaled up and tied to the head, every
    layer of a random model would guess that the last token comes again.
    """

    name: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    layers: str = "model.layers"
    end: tuple[str, ...] = ("model.norm",)
    head: tuple[str, ...] = ("lm_head",)
    after: Callable[[Any, Tensor], Tensor] = as_they_are
    quiet: tuple[str, ...] = ()
    seed: int = 0

    def write(self, folder: Path) -> Path:
        """Save a random model and the tokenizer of the tiny Llama."""
        make_tokenizer(folder)
        torch.manual_seed(self.seed)
        config = AutoConfig.for_model(self.model_type, **{**BASE, **self.config})
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norm weights, norm biases, biases
                    parameter.add_(0.3 * torch.randn(parameter.shape))
            for name in self.quiet:
                model.get_parameter(name).mul_(0.25)
        model.save_pretrained(folder)
        return folder

    def decoder_layers(self, model: Any) -> nn.ModuleList:
        """The model's layers."""
        layers = model.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def finish(self, model: Any, last_hidden_state: Tensor) -> Tensor:
        """Logits from what the base model returns."""
        for name in self.head:
            last_hidden_state = model.get_submodule(name)(last_hidden_state)
        return self.after(model.config, last_hidden_state)

    def read(self, model: Any, state: Tensor) -> Tensor:
        """Logits from a layer's output."""
        for name in self.end:
            state = model.get_submodule(name)(state)
        return self.finish(model, state)


@torch.no_grad()
def slow_logits(family: Family, model: Any, ids: Sequence[int]) -> Tensor:
    """Logits [layers, positions, vocabulary] of every layer, from one pass without cache."""
    out = model(torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    _, *states, last = out.hidden_states
    assert len(states) + 1 == len(family.decoder_layers(model))
    made = [*(family.read(model, state) for state in states), family.finish(model, last)]
    return torch.cat(made).float()


@torch.no_grad()
def cut_logits(family: Family, model: Any, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [layers, positions, vocabulary] that the model makes with its first layers alone."""
    short = copy.deepcopy(model)
    layers = family.decoder_layers(short)
    found = []
    while len(layers):
        each = [short(torch.tensor([list(ids)]), use_cache=False).logits[0] for ids in texts]
        found.append([logits.float() for logits in each])
        del layers[-1]
    return [torch.stack(made) for made in zip(*reversed(found), strict=True)]


@torch.no_grad()
def layer_outputs(family: Family, model: Any, ids: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Each layer's output [positions, width], from hooks, and the model's logits of that pass."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append((output if isinstance(output, Tensor) else output[0])[0])

    handles = [layer.register_forward_hook(keep) for layer in family.decoder_layers(model)]
    try:
        logits: Tensor = model(torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return outputs, logits


def slow_ranks(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """Ranks [positions, layers] of each position's target, by sorting all logits."""
    order = logits.argsort(dim=-1, descending=True)
    hits = order == torch.tensor(list(targets))[None, :, None]
    return hits.int().argmax(dim=-1).T + 1


GPT2_NAMES: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
HEAD_8: dict[str, Any] = {"head_dim": 8, **GROUPED}
MIXED: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING]}
GEMMA: dict[str, Any] = {**HEAD_8, **MIXED, "query_pre_attn_scalar": 12}
CAPPED: dict[str, Any] = {"final_logit_softcapping": 4.0}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.5,
}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
NARROW_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {  # keys and values of different widths
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "head_dim": 4,
}
OPT: dict[str, Any] = {"ffn_dim": 48, "init_std": 0.3, **TIED}
GEMMA4: dict[str, Any] = {
    **HEAD_8,
    **CAPPED,
    **TIED,
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "sliding_window": WINDOW,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": VOCABULARY,
}
LLAMA4: dict[str, Any] = {
    **HEAD_8,
    **EXPERTS,
    "intermediate_size_mlp": 48,
    "attention_chunk_size": WINDOW,
    "no_rope_layers": [1, 0, 1],
    "interleave_moe_layer_step": 2,
}
GPT2_ENDS: dict[str, Any] = {"layers": "transformer.h", "end": ("transformer.ln_f",)}
NEOX_ENDS: dict[str, Any] = {"layers": "gpt_neox.layers", "end": ("gpt_neox.final_layer_norm",)}
EMBEDDINGS = ("model.embed_tokens.weight",)
BLOOM_EMBEDDINGS = (
    "transformer.word_embeddings_layernorm.weight",
    "transformer.word_embeddings_layernorm.bias",
)

#: decoders that remember keys and values only; the harness must get each of these right
FAMILIES = [
    Family("llama", "llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    Family("llama-tied", "llama", {**GROUPED, **TIED, "num_hidden_layers": 5}, seed=6),
    Family("mistral", "mistral", {**GROUPED, "sliding_window": WINDOW}),
    Family("ministral", "ministral", {**HEAD_8, **MIXED}),
    Family("qwen2", "qwen2", {**GROUPED, **TIED}, seed=1),
    Family(
        "qwen2-sliding",
        "qwen2",
        {
            **GROUPED,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    Family("qwen3", "qwen3", HEAD_8),
    Family("gemma", "gemma", {**HEAD_8, **TIED}, quiet=EMBEDDINGS, seed=2),
    Family(
        "gemma2",
        "gemma2",
        {**GEMMA, **CAPPED, **TIED, "attn_logit_softcapping": 2.0},
        after=soft_capped,
        quiet=EMBEDDINGS,
    ),
    Family("gemma3", "gemma3_text", {**GEMMA, **TIED}, quiet=EMBEDDINGS, seed=2),
    Family("gemma3-capped", "gemma3_text", {**GEMMA, **CAPPED}, after=soft_capped),
    Family("gemma4", "gemma4_text", GEMMA4, after=soft_capped, quiet=EMBEDDINGS, seed=11),
    Family(
        "gemma4-shared",
        "gemma4_text",
        {**GEMMA4, "num_kv_shared_layers": 2},
        after=soft_capped,
        quiet=EMBEDDINGS,
    ),
    Family(
        "vaultgemma",
        "vaultgemma",
        {**GEMMA, **CAPPED, **TIED},
        after=soft_capped,
        quiet=EMBEDDINGS,
        seed=11,
    ),
    Family("gpt2", "gpt2", {**GPT2_NAMES, **TIED}, **GPT2_ENDS, seed=9),
    Family(
        "gpt-neo",
        "gpt_neo",
        {
            **TIED,
            "num_layers": 4,
            "num_hidden_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
        },
        **GPT2_ENDS,
    ),
    Family("gpt-bigcode", "gpt_bigcode", {**GPT2_NAMES, **TIED}, **GPT2_ENDS, seed=1),
    Family("gptj", "gptj", {**GPT2_NAMES, "rotary_dim": 4}, **GPT2_ENDS, seed=2),
    Family("codegen", "codegen", {**GPT2_NAMES, "n_ctx": 256, "rotary_dim": 4}, **GPT2_ENDS),
    Family("gpt-neox", "gpt_neox", {"use_parallel_residual": True}, **NEOX_ENDS),
    Family("gpt-neox-serial", "gpt_neox", {"use_parallel_residual": False}, **NEOX_ENDS),
    Family(
        "gpt-neox-japanese",
        "gpt_neox_japanese",
        {**TIED, "intermediate_multiple_size": 2},
        layers="gpt_neox_japanese.layers",
        end=("gpt_neox_japanese.final_layer_norm",),
        head=("embed_out",),
        seed=1,
    ),
    Family(
        "opt",
        "opt",
        OPT,
        layers="model.decoder.layers",
        end=("model.decoder.final_layer_norm",),
        seed=3,
    ),
    Family(
        "opt-projected",
        "opt",
        {**OPT, "word_embed_proj_dim": 16},
        layers="model.decoder.layers",
        end=("model.decoder.final_layer_norm", "model.decoder.project_out"),
        seed=2,
    ),
    Family(  # like OPT-350m: each layer ends in its own norm, and none comes after the last
        "opt-post-norm",
        "opt",
        {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        layers="model.decoder.layers",
        end=("model.decoder.project_out",),
        seed=7,
    ),
    Family(
        "biogpt",
        "biogpt",
        TIED,
        layers="biogpt.layers",
        end=("biogpt.layer_norm",),
        head=("output_projection",),
        quiet=("biogpt.embed_tokens.weight",),
    ),
    Family(
        "xglm",
        "xglm",
        {
            **TIED,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 3,
            "attention_heads": 4,
            "init_std": 0.3,
        },
        end=("model.layer_norm",),
        quiet=EMBEDDINGS,
        seed=8,
    ),
    Family(
        "ctrl",
        "ctrl",
        {**GPT2_NAMES, **TIED, "dff": 48},
        layers="transformer.h",
        end=("transformer.layernorm",),
        quiet=("transformer.w.weight",),
        seed=28,
    ),
    Family("phi", "phi", {"qk_layernorm": True}, end=("model.final_layernorm",), seed=3),
    Family("phi3", "phi3", {**GROUPED, "sliding_window": WINDOW}),
    Family("persimmon", "persimmon", end=("model.final_layernorm",), seed=2),
    Family("falcon", "falcon", {**TIED, "bias": True}, **GPT2_ENDS, seed=1),
    Family(
        "falcon-alibi",
        "falcon",
        {
            **TIED,
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "parallel_attn": False,
        },
        **GPT2_ENDS,
        seed=2,
    ),
    Family(
        "falcon-new",
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        **GPT2_ENDS,
        seed=1,
    ),
    Family(
        "bloom",
        "bloom",
        {**TIED, "n_layer": 3, "n_head": 4},
        quiet=BLOOM_EMBEDDINGS,
        **GPT2_ENDS,
        seed=6,
    ),
    Family(
        "mpt",
        "mpt",
        {**TIED, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 256},
        layers="transformer.blocks",
        end=("transformer.norm_f",),
        quiet=("transformer.wte.weight",),
        seed=3,
    ),
    Family(
        "dbrx",
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 3.0},
            "ffn_config": {
                "hidden_size": 32,
                "ffn_hidden_size": 32,
                "moe_num_experts": 4,
                "moe_top_k": 2,
            },
        },
        layers="transformer.blocks",
        end=("transformer.norm_f",),
    ),
    Family("olmo", "olmo", {**GROUPED, "clip_qkv": 2.0}),
    Family("olmo2", "olmo2", GROUPED),
    Family("olmo3", "olmo3", {**GROUPED, **MIXED}, seed=3),
    Family("olmoe", "olmoe", {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}, seed=1),
    Family("stablelm", "stablelm", {**GROUPED, "use_qkv_bias": True}, seed=1),
    Family(
        "stablelm-parallel",
        "stablelm",
        {
            **GROUPED,
            "use_parallel_residual": True,
            "qk_layernorm": True,
        },
        seed=3,
    ),
    Family(
        "granite",
        "granite",
        {**GROUPED, **GRANITE, **TIED},
        after=divided,
        quiet=EMBEDDINGS,
        seed=2,
    ),
    Family("granite-moe", "granitemoe", {**GROUPED, **GRANITE, **EXPERTS}, after=divided, seed=3),
    Family(
        "hyperclovax",
        "hyperclovax",
        {
            **GROUPED,
            **GRANITE,
            "logits_scaling": 0.4,
            "use_post_norm": True,
        },
        after=multiplied,
        seed=5,
    ),
    Family("cohere", "cohere", {**GROUPED, **TIED, "logit_scale": 0.4}, after=scaled, seed=6),
    Family(
        "cohere2", "cohere2", {**GROUPED, **TIED, **MIXED, "logit_scale": 0.4}, after=scaled, seed=1
    ),
    Family("starcoder2", "starcoder2", {**GROUPED, **TIED, "sliding_window": WINDOW}),
    Family("nemotron", "nemotron", GROUPED),
    Family("arcee", "arcee", GROUPED),
    Family("apertus", "apertus", GROUPED),
    Family("afmoe", "afmoe", {**HEAD_8, **MIXED, **NARROW_EXPERTS, "num_dense_layers": 1}),
    Family("smollm3", "smollm3", {**GROUPED, **TIED, "no_rope_layers": [1, 0, 1]}),
    Family("mixtral", "mixtral", {**GROUPED, **EXPERTS}, seed=1),
    Family(
        "phimoe",
        "phimoe",
        {
            **GROUPED,
            **EXPERTS,
            "lm_head_bias": True,
            "sliding_window": WINDOW,
        },
    ),
    Family("qwen2-moe", "qwen2_moe", {**GROUPED, **NARROW_EXPERTS}, seed=1),
    Family("qwen3-moe", "qwen3_moe", {**HEAD_8, **NARROW_EXPERTS}),
    Family("gpt-oss", "gpt_oss", {**HEAD_8, **EXPERTS, **MIXED}),
    Family("jetmoe", "jetmoe", {**GROUPED, **EXPERTS, "kv_channels": 8}),
    Family("deepseek-v2", "deepseek_v2", {**LATENT, **ROUTED}),
    Family(
        "deepseek-v3", "deepseek_v3", {**LATENT, **ROUTED, "n_group": 2, "topk_group": 1}, seed=1
    ),
    # divides the state by that number before a head without bias: the same
    Family("minicpm3", "minicpm3", {**LATENT, "dim_model_base": 16}, after=divided, seed=4),
    Family(
        "mimo",
        "mimo_v2_flash",
        {
            **HEAD_8,
            **MIXED,
            **ROUTED,
            "v_head_dim": 6,
            "swa_head_dim": 12,
            "swa_v_head_dim": 10,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 1,
        },
    ),
    Family("glm", "glm", HEAD_8),
    Family("glm4", "glm4", HEAD_8, seed=1),
    Family("exaone4", "exaone4", {**GROUPED, **MIXED}),
    Family("helium", "helium", HEAD_8),
    Family("ernie4.5", "ernie4_5", {**HEAD_8, **TIED, "use_bias": True}, seed=2),
    Family("seed-oss", "seed_oss", HEAD_8, seed=1),
    Family("hunyuan", "hunyuan_v1_dense", HEAD_8),
    # its one norm without weights also comes before the first layer
    Family("nanochat", "nanochat", {**GROUPED, **CAPPED}, after=soft_capped, seed=4),
    Family("diffllama", "diffllama", GROUPED),
    Family("doge", "doge", GROUPED),
    Family("bitnet", "bitnet", GROUPED),
    Family("llama4", "llama4_text", LLAMA4),
    Family(
        "modernbert-decoder",
        "modernbert-decoder",
        {  # a head of four modules, and its bias
            **TIED,
            "bos_token_id": 0,
            "cls_token_id": 0,
            "sep_token_id": 0,
            "local_attention": WINDOW,
            "layer_types": [SLIDING, FULL, SLIDING],
            "norm_bias": True,
            "classifier_bias": True,
        },
        end=("model.final_norm",),
        head=("lm_head", "decoder"),
        seed=1,
    ),
]

LINEAR = [
    "linear_attention",
    FULL,
    "linear_attention",
]
DELTA: dict[str, Any] = {
    **HEAD_8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": LINEAR,
}
MAMBA2: dict[str, Any] = {
    **GROUPED,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

#: models that remember something else, or nothing, or keep no one state a layer: the harness may
#: refuse them, but must never be wrong; `cut_logits` is the only slow path here
UNUSUAL = [
    Family("lfm2", "lfm2", {**GROUPED, "layer_types": ["conv", FULL, "conv"]}),
    Family("bamba", "bamba", {**MAMBA2, "attn_layer_indices": [1]}),
    Family("falcon-h1", "falcon_h1", {**MAMBA2, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5}),
    Family(
        "granite-hybrid",
        "granitemoehybrid",
        {
            **MAMBA2,
            **EXPERTS,
            "layer_types": ["mamba", "attention", "mamba"],
            "shared_intermediate_size": 16,
            "logits_scaling": 2.5,
        },
    ),
    Family(
        "jamba",
        "jamba",
        {
            **GROUPED,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "use_mamba_kernels": False,
        },
    ),
    Family("qwen3.5", "qwen3_5_text", DELTA),
    Family("qwen3-next", "qwen3_next", {**DELTA, **NARROW_EXPERTS}),
    Family("minimax", "minimax", {**HEAD_8, **EXPERTS, "block_size": 16, "layer_types": LINEAR}),
    Family(
        "recurrent-gemma",
        "recurrent_gemma",
        {
            **HEAD_8,
            "lru_width": 32,
            "attention_window_size": WINDOW,
            "logits_soft_cap": 4.0,
        },
    ),
    Family(
        "longcat",
        "longcat_flash",
        {  # two attentions a layer, which its config counts as two layers
            **LATENT,
            "num_layers": 2,
            "num_hidden_layers": 4,
            "ffn_hidden_size": 48,
            "moe_topk": 2,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "expert_ffn_hidden_size": 16,
        },
    ),
    # its attention temperature counts padding as text, from a position of 8191 on in real models:
    # Transformers itself makes other texts of a padded batch
    Family("llama4-tempered", "llama4_text", {**LLAMA4, "floor_scale": 4}),
    Family("mamba", "mamba", {"state_size": 8}, layers="backbone.layers", seed=2),
    Family(
        "mamba2",
        "mamba2",
        {
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
        layers="backbone.layers",
        seed=1,
    ),
    Family("rwkv", "rwkv", {"attention_hidden_size": 32}, layers="rwkv.blocks", seed=3),
    Family("openai-gpt", "openai-gpt", {**GPT2_NAMES, **TIED}, layers="transformer.h", seed=23),
    Family(
        "trocr",
        "trocr",
        {
            "d_model": 32,
            "decoder_layers": 3,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
            "init_std": 0.3,
        },
        layers="model.decoder.layers",
        seed=26,
    ),
    Family(
        "gemma3n",
        "gemma3n_text",
        {
            **HEAD_8,
            **MIXED,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": VOCABULARY,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 3,
        },
    ),
]
