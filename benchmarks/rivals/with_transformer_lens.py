"""TransformerLens: its bridge generates and caches, `logit_lens` of that cache gives the ranks.

The bridge keeps the weights as they are; compatibility mode would fold norms into them and round
differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.rivals.harness import Rank, Ranked, run
else:  # the folder of a script is where Python looks first
    from harness import run


def load(folder: str) -> Rank:
    """The bridge, ready to rank."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    layers = range(1, bridge.cfg.n_layers + 1)  # 0 is the embedding
    residuals = [f"blocks.{layer}.hook_resid_pre" for layer in range(bridge.cfg.n_layers)]
    residuals.append(f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post")

    def rank(prompt: list[int], max_new_tokens: int) -> Ranked:
        text, cache = bridge.generate(
            torch.tensor([prompt]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_type="tokens",
            verbose=False,
            return_cache=True,  # one more pass, over the whole text
            names_filter=residuals,
        )
        tokens = text[:, len(prompt) :]
        lens = cache.logit_lens(layers=layers, positions=(len(prompt) - 1, -1), targets=tokens)
        return tokens[0].tolist(), (1 + lens.rank_trajectory()[:, 0].T).tolist()

    return rank


if __name__ == "__main__":
    run(load, ["transformer-lens"])
