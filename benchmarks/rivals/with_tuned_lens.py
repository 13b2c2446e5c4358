"""tuned-lens: Transformers generates and keeps the hidden states, `LogitLens` reads them.

`PredictionTrajectory.rank` of the same package gives ranks too, by sorting the vocabulary twice at
every layer and position; the lens and a comparison are the faster way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.rivals.harness import Rank, Ranked, ranks, run
else:  # the folder of a script is where Python looks first
    from harness import ranks, run


def load(folder: str) -> Rank:
    """The model and its lens, ready to rank."""
    from transformers import AutoModelForCausalLM
    from tuned_lens.nn.lenses import LogitLens

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lens = LogitLens.from_model(model)

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
        columns = [
            ranks(lens(hidden[0, len(prompt) - 1 :], idx=layer), tokens)
            for layer, hidden in enumerate(out.hidden_states[1:-1], start=1)
        ]
        # as tuned-lens does: the last layer is the model's own logits
        columns.append(ranks(out.logits[0], tokens))
        return tokens.tolist(), torch.stack(columns, dim=1).tolist()

    return rank


if __name__ == "__main__":
    run(load, ["tuned-lens"])
