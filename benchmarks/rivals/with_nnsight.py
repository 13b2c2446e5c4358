"""nnsight: its model generates; norm and head are applied to every layer inside one trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.rivals.harness import Rank, Ranked, ranks, run
else:  # the folder of a script is where Python looks first
    from harness import ranks, run


def load(folder: str) -> Rank:
    """The wrapped model, ready to rank."""
    import nnsight

    model = nnsight.TransformersModel(
        folder, task="text-generation", dtype=torch.float32, dispatch=True
    )

    def rank(prompt: list[int], max_new_tokens: int) -> Ranked:
        ids = torch.tensor([prompt])
        text = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        first, tokens = len(prompt) - 1, text[0, len(prompt) :]
        with model.trace(text[:, :-1], logits_to_keep=1):
            columns = nnsight.save([])
            for layer in model.model.layers:
                logits = model.lm_head(model.model.norm(layer.output[0, first:]))
                columns.append(ranks(logits, tokens))
        return tokens.tolist(), torch.stack(columns, dim=1).tolist()

    return rank


if __name__ == "__main__":
    run(load, ["nnsight"])
