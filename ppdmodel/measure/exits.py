"""Reading a guess for the next token off the middle of a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError


@dataclass(frozen=True)
class LogitExit:
    """The untrained exit: the model's own final norm and head, at any layer."""

    norm: nn.Module
    head: nn.Module
    decoder_layers: nn.ModuleList
    kind: str = "logit"

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] of the next token from hidden states [n, width] of one layer."""
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def logit_exit(model: Any) -> LogitExit:
    """Find a model's layers, final norm and head, and prove that they make its own logits.

    Raises:
        InvalidInputError: they are not where Llama-like models have them, or the model does more
            between its last layer and its logits (soft-capping, scales) than this exit does.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers, norm = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    head = model.get_output_embeddings()
    if layers is None or norm is None or head is None:
        raise _unsupported(model, "no decoder.layers, decoder.norm and head")
    exit_ = LogitExit(norm=norm, head=head, decoder_layers=layers)
    probe = torch.arange(1, 9, device=model.device)[None] % model.config.vocab_size
    with torch.inference_mode(), captured(exit_) as hidden:
        own = model(input_ids=probe).logits[0, -1].float()
    read = exit_.logits(hidden[-1])[0].float()
    gap, scale = (read - own).abs().max().item(), own.abs().max().item()
    if not gap <= 1e-2 * max(scale, 1e-6):
        raise _unsupported(model, f"last exit {gap:.3g} away from the model's logits")
    return exit_


def _unsupported(model: Any, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the last exit must make the model's own logits; got {type(model).__name__}: {why}; "
        "models built like Llama, Mistral or Qwen work"
    )


@contextmanager
def captured(exit_: LogitExit) -> Iterator[list[Tensor]]:
    """Collect each layer's output at the last position, [batch, width], of the latest pass."""
    latest: list[Tensor] = [torch.empty(0)] * len(exit_.decoder_layers)

    def keep(index: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            latest[index] = (output if isinstance(output, Tensor) else output[0])[:, -1]

        return hook

    handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(exit_.decoder_layers)]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()
