"""Check on a short probe that padded, cached, batched decoding equals decoding each text alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidInputError, excerpt
from .exit import TOLERANCE, Exit, logit_exit
from .generate import Batch
from .kernels import prepack_head, prepack_layers
from .ranks import BLOCK

#: lengths of the probe's texts, one of which is mostly padding, and the length of their common
#: prefix
LENGTHS, PREFIX_LENGTH = (13, 5, 9), 4
#: ids of a text are so far apart, and those of other lengths so far away: few are special tokens
STRIDE, SHIFT = 7, 31
#: places of the rows that are kept before each step of the probe; None keeps all
KEPT = (None, None, (1,))


@dataclass(frozen=True)
class Decoder:
    """A model that passed the check.

    Attributes:
        model: gives the same logits for padded, cached batches as for each text alone.
        exit: reproduces its logits from its last layer's states.
        drops_rows: whether rows may be removed from a batch; some caches do not support it.
    """

    model: Any
    exit: Exit
    drops_rows: bool

    def prepacked(self) -> Decoder:
        """The same decoder with weights reordered in place for faster products.

        The model still runs, but its layers' parameters can no longer be read.
        """
        undo = prepack_layers(self.model, self.exit.decoder_layers)
        head = self.exit.head
        blocks = prepack_head(head, BLOCK)
        if _fault(self.model, self.exit, self.drops_rows):  # its code accesses a weight directly
            undo()
            if blocks is not None:
                del vars(head)["forward"]
            return self
        return replace(self, exit=replace(self.exit, blocks=blocks))


def verified(model: Any) -> Decoder:
    """Find a model's exit and check how it decodes.

    Raises:
        InvalidInputError: its exits are not found, or a padded, cached batch gives other logits
            than each text alone.
    """
    exit_ = logit_exit(model)
    fault = _fault(model, exit_, drop=True)
    if fault and _fault(model, exit_, drop=False):
        raise InvalidInputError(
            "the model must decode padded batches with a cache as it does each text alone; got "
            f"{type(model).__name__}: {fault}; only decoders with attention caches are measured"
        )
    return Decoder(model, exit_, drops_rows=not fault)


@torch.inference_mode()
def _fault(model: Any, exit_: Exit, drop: bool) -> str | None:
    """How batched decoding differs from decoding each text alone; None if it agrees."""
    texts = probe_texts(int(model.config.get_text_config().vocab_size))
    try:
        batch = Batch(model, exit_, texts, room=len(KEPT))
        for number, kept in enumerate(KEPT, start=1):
            if drop and kept:
                batch.keep(kept)
            logits, _ = batch.step()
            for place, row in enumerate(batch.rows):
                alone = _alone(model, texts[row])
                gap = (logits[place].float() - alone).abs().max() / alone.abs().max()
                if not gap <= TOLERANCE[logits.dtype]:
                    return f"logits {float(gap):.2g} of the largest away at step {number}"
            chosen = logits.argmax(-1)
            for place, row in enumerate(batch.rows):
                texts[row].append(int(chosen[place]))
            batch.append(chosen)
    except Exception as error:  # the model's own code may raise anything
        return f"{type(error).__name__}: {excerpt(error)}"
    return None


def probe_texts(vocabulary: int) -> list[list[int]]:
    """Token ids of `LENGTHS` texts that begin alike and go on differently."""
    return [
        [(STRIDE * n + SHIFT * length * (n >= PREFIX_LENGTH)) % vocabulary for n in range(length)]
        for length in LENGTHS
    ]


def _alone(model: Any, ids: list[int]) -> Tensor:
    """Logits [vocabulary] after one text, without a cache."""
    given = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    logits: Tensor = model(
        input_ids=given, attention_mask=torch.ones_like(given), use_cache=False
    ).logits
    return logits[0, -1].float()
