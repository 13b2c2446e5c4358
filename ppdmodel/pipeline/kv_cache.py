"""The KV cache of a text: in memory that all units share, or a copy on each unit's device."""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """One unit's keys and values.

    On a device, the cache is mirrored in host memory that all units share: the unit that computes a
    token's rows writes them there, and every other unit copies them when it first reads them.
    """

    def __init__(self, tensor: Tensor, shared: Tensor | None = None) -> None:
        """Start empty.

        Args:
            tensor: where the unit computes, [layers, 2, kv heads, tokens, head size].
            shared: host memory of the same shape that all units share; None where `tensor` is that
                memory, or the unit decodes alone.
        """
        self.tensor, self.shared = tensor, shared
        self.reset(mirrored=True)

    def reset(self, mirrored: bool) -> None:
        """Start a text; `mirrored` where other units read its keys and values too."""
        self.mirror = self.shared if mirrored else None
        self.present = [0] * len(self.tensor)  # tokens that are on the device, by layer

    def before(self, index: int, place: int) -> Tensor:
        """Of layer `index`, for the first `place` tokens: [2, kv heads, place, head size]."""
        present = self.present[index]
        if self.mirror is not None and present < place:
            self.tensor[index, :, :, present:place] = self.mirror[index, :, :, present:place]
            self.present[index] = place
        return self.tensor[index, :, :, :place]

    def write(self, first: int, place: int, rows: Tensor) -> None:
        """Write the rows of tokens that follow each other into layers that hold all before them.

        Args:
            first: the first layer, from 0.
            place: position of the first token.
            rows: [layers, 2, kv heads, tokens, head size].
        """
        layers, places = slice(first, first + len(rows)), slice(place, place + rows.shape[3])
        self.tensor[layers, :, :, places] = rows
        if self.mirror is not None:
            self.mirror[layers, :, :, places] = rows
            self.present[layers] = [places.stop] * len(rows)
