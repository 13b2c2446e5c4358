"""The modules a model calls after its last layer, traced by hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PROBE_TOKENS = 8


@dataclass(frozen=True)
class HeadPath:
    """Result of a probe: the layers, the modules after the last one, and the logits.

    `last_hidden` is [tokens, width], `logits` [tokens, vocabulary]. `fault` says why no path was
    found, or is empty.
    """

    layers: nn.ModuleList
    tail: tuple[nn.Module, ...]
    head: nn.Module
    last_hidden: Tensor
    logits: Tensor
    fault: str = ""


class _CallRecorder:
    """Records the outermost modules called after each candidate's last layer."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList) -> None:
        self.layers = layers
        self.calls: list[int] = []
        self.after: list[nn.Module] = []
        self.last_hidden: Tensor | None = None
        self._inside = 0
        number = {id(layer): index for index, layer in enumerate(layers)}
        self.handles = [
            module.register_forward_pre_hook(self._enter) for module in model.modules()
        ] + [
            module.register_forward_hook(self._leave_layer(number.get(id(module))))
            for module in model.modules()
        ]

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        if self.last_hidden is not None:
            if self._inside == 0:
                self.after.append(module)
            self._inside += 1

    def _leave_layer(self, index: int | None) -> Any:
        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self.last_hidden is not None:
                self._inside = max(self._inside - 1, 0)
            if index is not None:
                self.calls.append(index)
                if index == len(self.layers) - 1:
                    self.last_hidden = output if isinstance(output, Tensor) else output[0]

        return leave

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


@torch.inference_mode()
def trace_head_path(model: Any, known: nn.ModuleList | None = None) -> HeadPath:
    """Run a short probe and trace the modules between the last layer and the logits.

    Args:
        model: a decoder with a language-model head.
        known: its layers; None searches for a list of the configured length.
    """
    config = model.config.get_text_config()
    depth = len(known) if known is not None else int(config.num_hidden_layers)
    device = model.get_input_embeddings().weight.device
    vocabulary = int(config.vocab_size)
    probe = (torch.arange(1, PROBE_TOKENS + 1, device=device) * 31 % vocabulary)[None]
    mask = torch.ones_like(probe)
    nothing, empty = nn.ModuleList(), torch.tensor([])
    for layers in [known] if known is not None else _candidates(model, depth):
        watch = _CallRecorder(model, layers)
        try:
            logits = model(input_ids=probe, attention_mask=mask, use_cache=False).logits[0]
        finally:
            watch.close()
        if watch.calls != list(range(depth)) or watch.last_hidden is None:
            continue
        hidden = watch.last_hidden.reshape(-1, watch.last_hidden.shape[-1])
        after = [module for module in watch.after if not isinstance(module, nn.Dropout)]
        if not after or not isinstance(getattr(after[-1], "weight", None), Tensor):
            return HeadPath(layers, (), nothing, hidden, logits, "no head after the last layer")
        return HeadPath(layers, tuple(after[:-1]), after[-1], hidden, logits)
    fault = f"no list of {depth} layers that run one after another"
    return HeadPath(nothing, (), nothing, empty, empty, fault)


def _candidates(model: nn.Module, depth: int) -> list[nn.ModuleList]:
    """Lists of as many modules as the model has layers, the outermost first."""
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    named.sort(key=lambda pair: pair[0].count("."))
    return [module for _, module in named if len(module) == depth]
