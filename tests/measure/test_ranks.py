"""Every rank against Transformers' own hidden states, by a slow and independent path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.exits import logit_exit
from ppdmodel.measure.generate import generate_greedy
from ppdmodel.measure.models import load_model
from ppdmodel.measure.prompts import read_prompts
from ppdmodel.measure.ranks import ROWS, rank_tokens
from ppdmodel.measure.run import measure
from ppdmodel.measure.sources import locate


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
    result = measure(
        locate(str(tiny_model)), read_prompts(prompt_file), tmp_path / "m",
        max_new_tokens=17, batch_size=3, n_threads=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    loaded = load_model(locate(str(tiny_model)))
    for number, prompt in enumerate(read_prompts(prompt_file)):
        mine = result.prompt_index == number
        made = result.token_id[mine].tolist()
        assert result.position[mine].tolist() == list(range(len(made)))
        expected = slow_ranks(model, loaded.encode(prompt.text), made)
        assert result.rank[mine].tolist() == expected.tolist()


def test_text_is_what_transformers_generates(tiny_model: Path, prompt_file: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    encoded = [loaded.encode(p.text) for p in read_prompts(prompt_file)]
    made = generate_greedy(loaded.model, logit_exit(loaded.model), encoded, 25, loaded.end_ids)
    for row, ids in enumerate(encoded):
        alone = loaded.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=25,
            do_sample=False,
            pad_token_id=0,
        )[0, len(ids) :]
        length = made.lengths[row]
        assert made.token_ids[row, :length].tolist() == alone.tolist(), tokenizer.decode(alone)


def test_nothing_counts_after_the_end_of_a_text(tiny_model: Path, prompt_file: Path) -> None:
    """Any token can be the end: the one a prompt makes fourth, say."""
    loaded = load_model(locate(str(tiny_model)))
    exit_ = logit_exit(loaded.model)
    encoded = [loaded.encode(p.text) for p in read_prompts(prompt_file)]
    free = generate_greedy(loaded.model, exit_, encoded, 20, frozenset())
    assert free.lengths == [20] * len(encoded)
    end = int(free.token_ids[2, 3])
    made = generate_greedy(loaded.model, exit_, encoded, 20, frozenset([end]))
    for row, length in enumerate(made.lengths):
        text = free.token_ids[row].tolist()
        assert length == (text.index(end) + 1 if end in text else 20)
        assert made.token_ids[row, :length].tolist() == text[:length]


def test_rank_counts_larger_logits_across_blocks(tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    exit_ = logit_exit(loaded.model)
    torch.manual_seed(0)
    hidden = torch.randn(2 * ROWS + 3, 32)
    targets = torch.randint(0, 257, (len(hidden),))
    ranks, probs = rank_tokens(exit_, hidden, targets)
    with torch.no_grad():
        logits = exit_.logits(hidden)
    own = logits[torch.arange(len(hidden)), targets]
    assert ranks.tolist() == (1 + (logits > own[:, None]).sum(1)).tolist()
    assert probs.tolist() == pytest.approx(logits.softmax(1).amax(1).tolist(), rel=1e-5)


def test_a_model_whose_head_is_more_than_norm_and_head_is_refused(tiny_model: Path) -> None:
    class Scaled(LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            out = super().forward(*args, **kwargs)
            out.logits = out.logits / 3
            return out

    config = LlamaConfig.from_pretrained(tiny_model)
    with pytest.raises(InvalidInputError, match="the last exit must make the model's own logits"):
        logit_exit(Scaled(config).eval())


def test_a_model_of_unknown_build_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=20, n_positions=16)
    with pytest.raises(InvalidInputError, match=r"got GPT2LMHeadModel: no decoder\.layers"):
        logit_exit(GPT2LMHeadModel(small).eval())
