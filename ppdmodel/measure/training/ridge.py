"""Fitting a trained exit's affine map: ridge regression, then optionally KL descent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..decoder.exit import AffineMap, Exit, normalized
from ..decoder.ranks import Ranker
from .hidden_states import States

#: candidate penalties, relative to the number of tokens; infinity is the logit exit
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: the mean match rate over k = 1 to this, on validation prompts, selects the penalty
SELECTION_K = 8
#: limits on validation tokens and their logits: each penalty ranks all of them
VALIDATION_TOKENS, VALIDATION_LOGITS = 1536, 150_000_000
KL_ROWS, KL_RATE, KL_SEED = 64, 3e-4, 0


@dataclass(frozen=True)
class Split:
    """Split of the prompts into a training set and a validation set.

    Every fourth prompt is for validation; prompts from `end` on are unused.
    """

    end: int

    def trains(self, prompt: Tensor) -> Tensor:
        """Mask of the training prompts."""
        return (prompt < self.end) & (prompt % 4 != 3)

    def chooses(self, prompt: Tensor) -> Tensor:
        """Mask of the validation prompts."""
        return (prompt < self.end) & (prompt % 4 == 3)

    def both(self, prompt: Tensor) -> Tensor:
        """Mask of all prompts in use."""
        return prompt < self.end


@dataclass(frozen=True)
class FittedMap:
    """One affine map, how it was fitted, and its match rates on the validation prompts.

    `hits` [8] are match rates at k = 1...8; `penalty` is infinite for the logit exit.
    """

    penalty: float
    map: AffineMap | None
    hits: tuple[float, ...]
    epochs: int = 0

    @property
    def score(self) -> float:
        """Mean match rate over k = 1...8."""
        return sum(self.hits) / len(self.hits)


class NormalEquations:
    """Normal equations of the ridge regression of one layer, in float64.

    The target is the head's input at the last layer minus the one at this layer. Features are the
    state over its root mean square, standardized so that one penalty suits all; an infinite
    penalty gives the logit exit.
    """

    def __init__(self) -> None:
        self.n = 0
        self.sums: tuple[Tensor, ...] = ()

    def add(self, features: Tensor, missing: Tensor) -> None:
        """Accumulate rows of features [n, width] and targets [n, head input]."""
        x, y = features.double(), missing.double()
        sums = (x.sum(0), y.sum(0), x.T @ x, x.T @ y)
        self.sums = sums if not self.sums else tuple(map(torch.add, self.sums, sums))
        self.n += len(x)

    def decompose(self) -> None:
        """Eigendecompose the correlation matrix, which serves every penalty."""
        sum_x, sum_y, xx, xy = self.sums
        self.mean_x, self.mean_y = sum_x / self.n, sum_y / self.n
        covariance = xx / self.n - torch.outer(self.mean_x, self.mean_x)
        cross = xy / self.n - torch.outer(self.mean_x, self.mean_y)
        self.scale = covariance.diagonal().clamp(min=1e-12).sqrt()
        self.values, self.vectors = torch.linalg.eigh(covariance / torch.outer(*[self.scale] * 2))
        self.projected = self.vectors.T @ (cross / self.scale[:, None])

    def solve(self, penalty: float, dtype: torch.dtype) -> AffineMap:
        """Solve for the map [head input, width] at one penalty."""
        inverse = 1 / (self.values.clamp(min=0) + penalty)
        weight = (self.vectors @ (inverse[:, None] * self.projected)) / self.scale[:, None]
        bias = self.mean_y - self.mean_x @ weight
        return AffineMap(weight.T.contiguous().to(dtype), bias.to(dtype))


@dataclass(frozen=True)
class LayerFit:
    """The fitting of one layer's map.

    Attributes:
        exit: the logit exit.
        ranker: from it.
        states: of the prompts.
        split: training and validation prompts.
        layer: from 1, below the last.
    """

    exit: Exit
    ranker: Ranker
    states: States
    split: Split
    layer: int

    @torch.inference_mode()
    def candidates(self) -> list[FittedMap]:
        """The logit exit and the map at every penalty; the best validation score comes first."""
        training, validation = self.equations(self.split.trains), self.validation_set()
        found = [FittedMap(float("inf"), None, self._hits(*validation, None))]
        for penalty in PENALTIES:
            map_ = training.solve(penalty, self.exit.weight.dtype)
            found.append(FittedMap(penalty, map_, self._hits(*validation, map_)))
        found.sort(key=lambda c: (-c.score, -c.penalty))
        return found

    @torch.inference_mode()
    def refit(self, best: FittedMap) -> FittedMap:
        """Refit a ridge candidate at its penalty on training and validation prompts."""
        if best.map is None:
            return best
        equations = self.equations(self.split.both)
        return replace(best, map=equations.solve(best.penalty, self.exit.weight.dtype))

    def descend(self, start: FittedMap, epochs: int) -> FittedMap:
        """Minimize the KL divergence of the exit from the model, starting at a ridge map.

        Each epoch is one pass of Adam over the training tokens. The epoch (or the start) with the
        best validation score is kept.
        """
        device, dtype = self.exit.weight.device, self.exit.weight.dtype
        hidden, final = (
            torch.cat(list(self.states.layer(index, self.split.trains))).to(device)
            for index in (self.layer - 1, len(self.exit.decoder_layers) - 1)
        )
        validation = self.validation_set()
        best = start
        map_ = _trainable(start, hidden, self.exit)
        parameters = [map_.weight, map_.bias]
        optimizer = torch.optim.Adam(parameters, lr=KL_RATE)
        order = torch.Generator().manual_seed(KL_SEED)
        trained = replace(self.exit, maps={self.layer: map_})
        for epoch in range(1, epochs + 1):
            for rows in torch.split(torch.randperm(len(hidden), generator=order), KL_ROWS):
                with torch.no_grad():
                    truth = self.exit.logits(final[rows]).float().log_softmax(1)
                guess = trained.logits(hidden[rows], self.layer).float().log_softmax(1)
                loss = nn.functional.kl_div(guess, truth, log_target=True, reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            now = AffineMap(*(p.detach().to(dtype, copy=True) for p in parameters))
            candidate = FittedMap(start.penalty, now, self._hits(*validation, now), epoch)
            if candidate.score > best.score:
                best = candidate
        return best

    def equations(self, wanted: Callable[[Tensor], Tensor]) -> NormalEquations:
        """The normal equations of the selected prompts, decomposed."""
        equations = NormalEquations()
        last = len(self.exit.decoder_layers) - 1
        layers = (self.states.layer(index, wanted) for index in (self.layer - 1, last))
        for kept in zip(*layers, strict=True):
            hidden, final = (states.to(self.exit.weight.device) for states in kept)
            missing = self.exit.head_input(final) - self.exit.head_input(hidden)
            equations.add(normalized(hidden), missing)
        equations.decompose()
        return equations

    def validation_set(self) -> tuple[Tensor, Tensor]:
        """States [n, width] of the layer and true tokens [n] of the validation prompts."""
        hidden = torch.cat(list(self.states.layer(self.layer - 1, self.split.chooses)))
        targets = self.states.column("token_id", self.split.chooses)
        most = min(VALIDATION_TOKENS, VALIDATION_LOGITS // self.exit.vocabulary)
        step = -(-len(hidden) // most)  # evenly over the prompts
        return hidden[::step], targets[::step]

    def _hits(self, hidden: Tensor, targets: Tensor, map_: AffineMap | None) -> tuple[float, ...]:
        with_map = replace(self.exit, maps={self.layer: map_} if map_ is not None else {})
        rank = self.ranker.using(with_map).rank(hidden, targets, self.layer).rank
        return tuple(float((rank <= k).float().mean()) for k in range(1, SELECTION_K + 1))


def _trainable(start: FittedMap, hidden: Tensor, exit_: Exit) -> AffineMap:
    if start.map is not None:
        weight, bias = start.map.weight, start.map.bias
    else:
        head_width = exit_.weight.shape[1]
        weight, bias = hidden.new_zeros(head_width, hidden.shape[1]), hidden.new_zeros(head_width)
    return AffineMap(*(nn.Parameter(t.clone().float()) for t in (weight, bias)))


def selection_record(candidates: Sequence[FittedMap]) -> dict[str, object]:
    """The chosen map's penalty, epochs and validation match rates, beside the logit exit's."""
    best = candidates[0]
    logit = next(c for c in candidates if c.map is None)
    return {
        "penalty": best.penalty,
        "epochs": best.epochs,
        "validation_hits": [round(x, 5) for x in best.hits],
        "validation_hits_logit": [round(x, 5) for x in logit.hits],
    }
