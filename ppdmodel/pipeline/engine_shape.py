"""The sizes of the model that an engine runs, or of one unit's shard of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineShape:
    """Layers, heads and widths, the epsilon of the norms, and the scaling of attention scores."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocabulary: int
    epsilon: float
    scaling: float

    def cache(self, text_tokens: int) -> tuple[int, ...]:
        """Shape of a text's KV cache: [layers, 2, kv heads, tokens, head size]."""
        return (self.layers, 2, self.kv_heads, text_tokens, self.head_size)

    def guesses(self, rows: int) -> tuple[int, ...]:
        """Shape of the guesses' keys and values: [layers, 2, rows, kv heads, head size]."""
        return (self.layers, 2, rows, self.kv_heads, self.head_size)

    def columns(self, name: str) -> int:
        """Outputs of a linear layer by the name of its weight."""
        found = {
            "head": self.vocabulary,
            "qkv": (self.heads + 2 * self.kv_heads) * self.head_size,
            "gate_up": 2 * self.inner,
        }
        return found.get(name.rpartition(".")[2], self.width)
