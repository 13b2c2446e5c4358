"""A simple script with Transformers alone: generate, one pass over the text, norm and head.

Run by this project's own Python: `python benchmarks/rivals/plain.py --help`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.rivals.harness import Rank, Ranked, ranks, run
else:  # the folder of a script is where Python looks first
    from harness import ranks, run

#: top guesses taken at each layer
TOP = 100


def load(folder: str) -> Rank:
    """The model, ready to rank."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def rank(prompt: list[int], max_new_tokens: int) -> Ranked:
        ids = torch.tensor([prompt])
        text = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        tokens = text[0, len(prompt) :]
        out = model(text[:, :-1], output_hidden_states=True, logits_to_keep=len(tokens))
        columns = []
        for hidden in out.hidden_states[1:-1]:
            logits = model.lm_head(model.model.norm(hidden[0, len(prompt) - 1 :]))
            logits.topk(TOP)
            columns.append(ranks(logits, tokens))
        out.logits[0].topk(TOP)  # Transformers has put the last hidden state through the norm
        columns.append(ranks(out.logits[0], tokens))
        return tokens.tolist(), torch.stack(columns, dim=1).tolist()

    return rank


if __name__ == "__main__":
    run(load, [])
