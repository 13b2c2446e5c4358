"""Lengths of a text from which on a model computes otherwise, read from its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: configuration keys of the tokens that attention reaches at some layers
WINDOWS = (
    "sliding_window", "sliding_window_size", "attention_window_size", "window_size",
    "attention_chunk_size",
)  # fmt: skip
#: configuration keys of the tokens that attention chooses, which rounding may exchange
CHOICES = ("keep_window_size", "index_topk")
#: configuration keys of the context
CONTEXT = ("max_position_embeddings", "max_seq_len")
#: types of rotary embeddings whose context is `factor` times the trained one
SCALED = ("linear", "dynamic", "yarn")


@dataclass(frozen=True)
class Change:
    """Something that begins at a length.

    Attributes:
        what: its name, with the length.
        beyond: tokens of the longest text that it does not concern.
        by_place: whether it follows a token's place in the batch, padding included, or the longest
            text of the batch, and not the token's own text alone.
    """

    what: str
    beyond: int
    by_place: bool


def changes(config: Any) -> list[Change]:
    """What changes with the length of a text, for the configuration of a model."""
    return list(_changes(config.get_text_config()))


def alone_beyond(config: Any) -> int | None:
    """Tokens of the longest text that may share a batch; None if there is no limit.

    A token counts once the model has read it, so the last one that is generated does not.
    """
    return min((change.beyond for change in changes(config) if change.by_place), default=None)


def context(config: Any) -> int | None:
    """Tokens of the longest text, as the configuration states it; None where it does not.

    Rotary embeddings of the types in `SCALED` reach `factor` times the length of training, which is
    `original_max_position_embeddings` or else the stated context. Where layers differ, the shortest
    reach counts.
    """
    text = config.get_text_config()
    limits = (_number(getattr(text, name, None)) for name in CONTEXT)
    stated = next((int(limit) for limit in limits if limit), None)
    if stated is None:
        return None
    return min((_reach(rope, stated) for rope in _ropes(text)), default=stated)


def _changes(text: Any) -> Iterator[Change]:
    stated = _number(getattr(text, "max_position_embeddings", None))
    for rope in _ropes(text):
        kind = str(rope.get("rope_type", rope.get("type")))
        trained = _number(rope.get("original_max_position_embeddings")) or stated
        if trained and (kind == "longrope" or "long_mscale" in rope):
            yield _change("longrope scaling beyond {} tokens", trained, by_place=True)
        if stated and "dynamic" in kind:
            yield _change("dynamic scaling beyond {} tokens", stated, by_place=True)
        if trained and rope.get("llama_4_scaling_beta"):
            yield _change("an attention temperature beyond {} tokens", trained)
    floor = _number(getattr(text, "floor_scale", None))
    if floor and getattr(text, "attn_temperature_tuning", False):
        yield _change("an attention temperature beyond {} tokens", floor - 1, by_place=True)
    floor = _number(getattr(text, "log_scaling_n_floor", None))
    if floor:
        yield _change("an attention temperature beyond {} tokens", floor)
    for name in WINDOWS:
        window = _number(getattr(text, name, None))
        if window and getattr(text, "use_sliding_window", True) is not False:
            yield _change("a sliding window of {} tokens", window)
    for name in CHOICES:
        chosen = _number(getattr(text, name, None))
        if chosen:
            yield _change("a choice of {} tokens to attend to", chosen, by_place=True)


def _change(what: str, beyond: float, by_place: bool = False) -> Change:
    return Change(what.format(int(beyond)), int(beyond), by_place)


def _ropes(text: Any) -> list[Mapping[str, Any]]:
    """The parameters of the rotary embeddings, by kind of layer where the kinds differ."""
    whole = getattr(text, "rope_parameters", None)
    if not isinstance(whole, Mapping):
        return []
    return [rope for rope in whole.values() if isinstance(rope, Mapping)] or [whole]


def _reach(rope: Mapping[str, Any], stated: int) -> int:
    factor = _number(rope.get("factor"))
    if not factor or rope.get("rope_type", rope.get("type")) not in SCALED:
        return stated
    trained = _number(rope.get("original_max_position_embeddings")) or stated
    return max(stated, int(factor * trained))


def _number(value: Any) -> float | None:
    """A number of a configuration; None for anything else."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
