"""Early exits: next-token logits from the states of an intermediate layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import InvalidInputError
from .head_path import HeadPath, trace_head_path
from .kernels import Blocks

#: tolerance between the last exit's and the model's logits, relative to the largest one
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
#: configuration keys of factors and divisors of the logits
MULTIPLIERS, DIVISORS = ("logit_scale", "lm_head_multiplier"), ("logits_scaling",)


@dataclass(frozen=True)
class AffineMap:
    """What a trained exit adds to the head's input: `weight @ x + bias`, x the state over its RMS.

    Shapes: `weight` [head input, width], `bias` [head input].
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """The correction [n, head input] for states [n, width], in their type."""
        x = normalized(hidden).to(self.weight.dtype)
        return nn.functional.linear(x, self.weight, self.bias).to(hidden.dtype)


def normalized(hidden: Tensor) -> Tensor:
    """States [n, width] divided by their root mean square."""
    wide = hidden.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(hidden.dtype)


@dataclass(frozen=True)
class Exit:
    """The path from a layer's output to logits: the model's own last steps, at any layer.

    Attributes:
        decoder_layers: the model's layers, in order.
        tail: modules between the last layer and the head: the final norm, and a projection in
            some models.
        head: a module with `weight` [vocabulary, head input], and `bias` or None.
        scale: factor on the logits after the head.
        softcap: c of c * tanh(logits / c) after that, or None.
        maps: trained corrections by layer, from 1; empty for the logit exit.
        kind: "logit", or "trained".
        blocks: the head's blocked product, if its weight is packed; else None.
        shortlist: token ids [n], ascending, which alone are guessed at layers below the last; None
            guesses any token.
    """

    decoder_layers: nn.ModuleList
    tail: tuple[nn.Module, ...]
    head: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    maps: Mapping[int, AffineMap] = field(default_factory=dict)
    kind: str = "logit"
    blocks: Blocks | None = field(default=None, repr=False, compare=False)
    shortlist: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def weight(self) -> Tensor:
        """The head's weight, [vocabulary, head input]."""
        found: Any = self.head.weight
        return cast(Tensor, found)

    @property
    def bias(self) -> Tensor | None:
        """The head's bias [vocabulary], or None."""
        return cast("Tensor | None", getattr(self.head, "bias", None))

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return len(self.weight)

    def head_input(self, hidden: Tensor, layer: int | None = None) -> Tensor:
        """The head's input for states [n, width] of a layer, from 1; None is the last."""
        out = hidden
        for module in self.tail:
            out = module(out)
        trained = self.maps.get(layer) if layer else None
        return out if trained is None else out + trained(hidden)

    def finish(self, logits: Tensor) -> Tensor:
        """Apply scale and soft-cap to the head's output, in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def logits(self, hidden: Tensor, layer: int | None = None) -> Tensor:
        """Logits [n, vocabulary] of the next token from states [n, width] of one layer.

        Of all tokens, whatever the shortlist.
        """
        head_input = self.head_input(hidden, layer)
        return self.finish(nn.functional.linear(head_input, self.weight, self.bias))

    def of_shortlist(self) -> Exit:
        """The exit over the shortlist alone: its logit i is that of token `shortlist[i]`."""
        ids, head = self.shortlist, nn.Module()
        assert ids is not None
        head.register_buffer("weight", self.weight.detach()[ids])
        head.register_buffer("bias", None if self.bias is None else self.bias.detach()[ids])
        return replace(self, head=head, shortlist=None, blocks=None)


_REGISTERED: dict[str, Callable[[Any], Exit]] = {}


def register_exit(model_class: str) -> Callable[[Callable[[Any], Exit]], Callable[[Any], Exit]]:
    """Register how to make the exit of a model class.

    Args:
        model_class: the name of the model's class, as `type(model).__name__` gives it. The
            decorated function takes the model and returns its `Exit`.
    """

    def register(make: Callable[[Any], Exit]) -> Callable[[Any], Exit]:
        _REGISTERED[model_class] = make
        return make

    return register


def logit_exit(model: Any) -> Exit:
    """Find a decoder's layers and its path from last layer to logits, and check it.

    The path is observed: a short probe text is run, and the modules called after the last layer are
    the tail and the head. Scale and soft-cap are inferred from the same probe. Then the last exit,
    registered or found, must reproduce the model's logits.

    Raises:
        InvalidInputError: no path reproduces the logits; the message says how to register one.
    """
    make = _REGISTERED.get(type(model).__name__)
    registered = make(model) if make else None
    path = trace_head_path(model, registered.decoder_layers if registered else None)
    if path.fault:
        raise _unsupported(model, path.fault)
    found = registered or _with_finish(model, path)
    gap = _gap(found, path)
    if not gap <= TOLERANCE[path.logits.dtype]:
        raise _unsupported(model, f"the last exit was {gap:.2g} of the largest logit away from it")
    return found


def _with_finish(model: Any, path: HeadPath) -> Exit:
    """The observed exit with the scale and soft-cap inferred from the logits."""
    plain = Exit(decoder_layers=path.layers, tail=path.tail, head=path.head)
    with torch.inference_mode():
        read = plain.logits(path.last_hidden).double()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if read.shape != path.logits.shape:
        return plain
    capped = path.logits.double()
    own = torch.atanh((capped / cap).clamp(-1 + 1e-9, 1 - 1e-9)) * cap if cap else capped
    ratio = float((own * read).sum() / (read * read).sum())
    return replace(plain, scale=_snapped(model.config, ratio), softcap=float(cap) if cap else None)


def _snapped(config: Any, ratio: float) -> float:
    """The configuration's exact scale, if the observed ratio agrees with it."""
    text = config.get_text_config()
    stated = [getattr(text, name, None) for name in MULTIPLIERS]
    stated += [1 / value for name in DIVISORS if (value := getattr(text, name, None))]
    for value in (1.0, *stated):
        if isinstance(value, (int, float)) and abs(ratio - value) <= 2e-2 * abs(value):
            return float(value)
    return ratio


def _gap(exit_: Exit, path: HeadPath) -> float:
    """Largest difference of the last exit from the model's logits, over the largest logit."""
    with torch.inference_mode():
        read = exit_.logits(path.last_hidden).float()
    own = path.logits.float()
    if read.shape != own.shape:
        return float("inf")
    return float((read - own).abs().max() / own.abs().max().clamp(min=1e-6))


def _unsupported(model: Any, why: str) -> InvalidInputError:
    name = type(model).__name__
    return InvalidInputError(
        f"the exit at the last layer must make the model's own logits; got {name}: {why}; register "
        f"one in Python: @ppdmodel.measure.register_exit('{name}') on a function that takes the "
        "model and returns ppdmodel.measure.Exit(decoder_layers=..., tail=(final_norm,), head=...)"
    )


@contextmanager
def on_layers(exit_: Exit, keep: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `keep(index, states)` with each layer's output [batch, width] at the last position."""

    def hook(index: int) -> Any:
        def seen(_module: nn.Module, _inputs: Any, output: Any) -> None:
            keep(index, (output if isinstance(output, Tensor) else output[0])[:, -1])

        return seen

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(exit_.decoder_layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
