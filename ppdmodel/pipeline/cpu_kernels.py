"""The parts of a decoder layer on one CPU core, compiled by Numba.

Every row of a batch goes through the same instructions in the same order, whichever rows are beside
it: the result of a row is bitwise the same alone and in any batch. A product reads its weights once
for all rows, in four streams, which is how one core gets the most of the memory's bandwidth; for a
few rows it takes little longer than for one.

Weights are packed, as in `packing`; all arithmetic is in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

#: streams in which a product reads its weights
STREAMS = 4
#: weights of `attention` and `feed_forward`, in their order; a layer may lack biases and head norms
ATTENTION = ("norm", "qkv", "qkv_bias", "q_norm", "k_norm", "out", "out_bias")
FEED_FORWARD = ("post_norm", "gate_up", "gate_up_bias", "down", "down_bias")

_compiled: Any = njit(cache=True, fastmath={"contract"}, error_model="numpy", nogil=True)
#: sums may be reordered: as a vector of partial sums, always in the same way for one length
_summed: Any = njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy", nogil=True)


def widened(weights: np.ndarray) -> np.ndarray:
    """Weights in float32; 16 bits are those of bfloat16."""
    if weights.dtype == np.float32:
        return weights
    return (weights.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _row(panel: Any, i: int, room: Any) -> Any:
    """Row `i` of a panel in float32."""


@overload(_row, inline="always")
def _row_of_type(panel: Any, i: Any, room: Any) -> Any:  # noqa: ARG001
    if panel.dtype == types.uint16:

        def widened(panel: Any, i: Any, room: Any) -> Any:
            bits = room.view(np.uint32)
            for c in range(len(room)):
                bits[c] = np.uint32(panel[i, c]) << np.uint32(16)
            return room

        return widened

    def as_it_is(panel: Any, i: Any, room: Any) -> Any:  # noqa: ARG001
        return panel[i]

    return as_it_is


@_compiled
def multiply(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """`out` [rows, at least panels * PANEL] = `x` [rows, in] times a packed weight, plus `bias`.

    An empty bias is none.
    """
    rows, n = x.shape
    quarter = n // STREAMS
    room = np.empty((STREAMS, weight.shape[2]), np.float32)
    for p in range(weight.shape[0]):
        panel, begin, end = weight[p], p * weight.shape[2], (p + 1) * weight.shape[2]
        for r in range(rows):
            for c in range(begin, end):
                out[r, c] = bias[c] if c < bias.size else np.float32(0)
        for i in range(quarter):
            w0 = _row(panel, i, room[0])
            w1 = _row(panel, i + quarter, room[1])
            w2 = _row(panel, i + 2 * quarter, room[2])
            w3 = _row(panel, i + 3 * quarter, room[3])
            for r in range(rows):
                a0, a1 = x[r, i], x[r, i + quarter]
                a2, a3 = x[r, i + 2 * quarter], x[r, i + 3 * quarter]
                mine = out[r, begin:end]
                for c in range(weight.shape[2]):
                    mine[c] += a0 * w0[c] + a1 * w1[c] + a2 * w2[c] + a3 * w3[c]
        for i in range(STREAMS * quarter, n):
            w0 = _row(panel, i, room[0])
            for r in range(rows):
                mine, a0 = out[r, begin:end], x[r, i]
                for c in range(weight.shape[2]):
                    mine[c] += a0 * w0[c]


@_summed
def dot(a: np.ndarray, b: np.ndarray) -> Any:
    """The sum of products."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@_compiled
def exponentials(x: np.ndarray) -> None:
    """Replace each element by its exponential, to about one unit in the last place.

    The function of the C library is called for one element at a time; this loop is compiled to
    vector instructions. x = n log 2 + r: a polynomial in r (Cephes' coefficients) times 2^n, whose
    exponent bits are written directly. Arguments are cut to the range of normal results.
    """
    bits = x.view(np.int32)
    for c in range(len(x)):
        value = min(max(x[c], np.float32(-87)), np.float32(88))
        n = np.floor(value * np.float32(1.44269504) + np.float32(0.5))
        r = value - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
        p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        p = p * r * r + r + np.float32(1)
        bits[c] = (np.int32(n) + np.int32(127)) << np.int32(23)
        x[c] *= p


@_compiled
def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float, out: np.ndarray) -> None:
    """Root-mean-square norm of each row."""
    for r in range(len(x)):
        mean = dot(x[r], x[r]) / np.float32(x.shape[1])
        scale = np.float32(1) / np.sqrt(mean + np.float32(epsilon))
        for c in range(x.shape[1]):
            out[r, c] = x[r, c] * scale * weight[c]


@_compiled
def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, out: np.ndarray) -> None:
    """Rotary position embedding of one head; the first half of `sin` is negative."""
    half = len(x) // 2
    for j in range(half):
        out[j] = x[j] * cos[j] + x[j + half] * sin[j]
        out[j + half] = x[j + half] * cos[j + half] + x[j] * sin[j + half]


@_compiled
def _attend(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    scaling: float,
    scores: np.ndarray,
    out: np.ndarray,
) -> None:
    """One head's attention to keys and values [tokens, head size] and to its own."""
    n = len(keys)
    largest = np.float32(scaling) * dot(query, key)
    scores[n] = largest
    for t in range(n):
        scores[t] = np.float32(scaling) * dot(query, keys[t])
        largest = max(largest, scores[t])
    total = np.float32(0)
    for t in range(n + 1):
        scores[t] -= largest
    exponentials(scores[: n + 1])
    for t in range(n + 1):
        total += scores[t]
    share = scores[n] / total
    for j in range(len(out)):
        out[j] = share * value[j]
    for t in range(n):
        share = scores[t] / total
        for j in range(len(out)):
            out[j] += share * values[t, j]


@_compiled
def attention(
    x: np.ndarray,
    weights: tuple[np.ndarray, ...],
    cos: np.ndarray,
    sin: np.ndarray,
    place: int,
    follow: bool,
    cache: np.ndarray,
    heads: int,
    epsilon: float,
    scaling: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A layer up to the output product, without the residual.

    Args:
        x: hidden states [rows, width].
        weights: norm, qkv and its bias, the norms of queries and keys, out and its bias; empty
            where the model has none.
        cos: rotary embedding by position [tokens, head size].
        sin: likewise, the first half negative.
        place: position of the first row.
        follow: the rows are tokens that follow each other, whose keys and values are written to the
            cache; else all are guesses for the same position.
        cache: keys and values [2, kv heads, tokens, head size] of this layer.
        heads: of the queries.
        epsilon: of the norms.
        scaling: of the scores.

    Returns:
        What is added to `x`, [rows, at least width], and keys and values [2, rows, kv heads, size].
    """
    norm, qkv, qkv_bias, q_norm, k_norm, out_weight, out_bias = weights
    rows, kv, size = len(x), cache.shape[1], cache.shape[3]
    normed = np.empty_like(x)
    rms_norm(x, norm, epsilon, normed)
    both = np.empty((rows, qkv.shape[0] * qkv.shape[2]), np.float32)
    multiply(normed, qkv, qkv_bias, both)
    own = np.empty((2, rows, kv, size), np.float32)
    queries = np.empty((rows, heads, size), np.float32)
    one = np.empty((1, size), np.float32)
    for r in range(rows):
        at = place + r if follow else place
        for h in range(heads + kv):
            part = both[r : r + 1, h * size : (h + 1) * size]
            head_norm = q_norm if h < heads else k_norm
            if head_norm.size:
                rms_norm(part, head_norm, epsilon, one)
                part = one
            rotated = queries[r, h] if h < heads else own[0, r, h - heads]
            _rotate(part[0], cos[at], sin[at], rotated)
        for g in range(kv):
            begin = (heads + kv + g) * size
            own[1, r, g] = both[r, begin : begin + size]
            if follow:
                cache[0, g, at] = own[0, r, g]
                cache[1, g, at] = own[1, r, g]
    mixed = np.empty((rows, heads * size), np.float32)
    scores = np.empty(place + rows + 1, np.float32)
    for r in range(rows):
        at = place + r if follow else place
        for h in range(heads):
            g = h // (heads // kv)
            _attend(
                queries[r, h], cache[0, g, :at], cache[1, g, :at], own[0, r, g], own[1, r, g],
                scaling, scores, mixed[r, h * size : (h + 1) * size],
            )  # fmt: skip
    added = np.empty((rows, out_weight.shape[0] * out_weight.shape[2]), np.float32)
    multiply(mixed, out_weight, out_bias, added)
    return added, own


@_compiled
def feed_forward(
    x: np.ndarray, weights: tuple[np.ndarray, ...], inner: int, epsilon: float
) -> np.ndarray:
    """The feed-forward part of a layer, without the residual; as `attention`.

    `weights` are the norm, gate_up and its bias, down and its bias.
    """
    norm, gate_up, gate_up_bias, down, down_bias = weights
    normed = np.empty_like(x)
    rms_norm(x, norm, epsilon, normed)
    both = np.empty((len(x), gate_up.shape[0] * gate_up.shape[2]), np.float32)
    multiply(normed, gate_up, gate_up_bias, both)
    gated = np.empty((len(x), inner), np.float32)
    for r in range(len(x)):
        mine = gated[r]
        for c in range(inner):
            mine[c] = -both[r, c]
        exponentials(mine)
        for c in range(inner):
            mine[c] = both[r, c] / (np.float32(1) + mine[c]) * both[r, inner + c]
    added = np.empty((len(x), down.shape[0] * down.shape[2]), np.float32)
    multiply(gated, down, down_bias, added)
    return added
