"""Keys and values of a text: in memory that all its units share, or a copy on each device."""

from __future__ import annotations

from torch import Tensor


class Cache:
    """A unit's keys and values.

    With memory that all units see beside them, as on a device, a token's rows are handed over
    there: whoever makes them writes them, and every other unit fetches them when it needs them.
    """

    def __init__(self, tensor: Tensor, shared: Tensor | None = None) -> None:
        """Begin with none.

        Args:
            tensor: where the unit computes, [layers, 2, kv heads, room, head size].
            shared: the memory that all units see, of the same shape; None where `tensor` lies
                there, or the unit is alone.
        """
        self.tensor, self.shared = tensor, shared
        self.begin(handed_over=True)

    def begin(self, handed_over: bool) -> None:
        """Make ready for a text; whether other units read its keys and values too."""
        self.there = self.shared if handed_over else None
        self.have = [0] * len(self.tensor)  # tokens, by layer

    def before(self, index: int, place: int) -> Tensor:
        """Of layer `index`, for the first `place` tokens: [2, kv heads, place, head size]."""
        have = self.have[index]
        if self.there is not None and have < place:
            self.tensor[index, :, :, have:place] = self.there[index, :, :, have:place]
            self.have[index] = place
        return self.tensor[index, :, :, :place]

    def put(self, first: int, place: int, rows: Tensor) -> None:
        """Keep one token's in some layers from `first` on, which have those of all before it.

        Args:
            first: the layer, from 0.
            place: how many tokens come before.
            rows: [layers, 2, kv heads, head size].
        """
        layers = slice(first, first + len(rows))
        self.tensor[layers, :, :, place] = rows
        if self.there is not None:
            self.there[layers, :, :, place] = rows
            self.have[layers] = [place + 1] * len(rows)

    def put_prompt(self, n: int) -> None:
        """The first `n` tokens' in all layers have been written to `tensor`."""
        if self.there is not None:
            self.there[:, :, :, :n] = self.tensor[:, :, :, :n]
            self.have = [n] * len(self.tensor)
