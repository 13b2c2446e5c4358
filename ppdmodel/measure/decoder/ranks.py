"""The rank of the true token among an exit's logits, and the exit's first guesses.

The product of states and head dominates, so it is computed in blocks of the vocabulary that stay in
cache while everything else is derived from them: on a CPU the whole stage runs close to the speed
of a plain matrix product (`make bench`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import InvalidInputError
from ...results.measurement import NO_RANK
from .exit import Exit
from .kernels import Blocks, drop_pages, lazy_zeros, linear_for
from .sampling import scaled

#: first guesses whose ids and probabilities are recorded
GUESSES = 8
#: rows of states in one product, and the memory that their logits may take
ROWS, LOGITS_BYTES = 192, 256 * 2**20
#: vocabulary entries in one product on a CPU, and per group of which the largest logit is kept
BLOCK, GROUP = 1536, 64
#: 2**x is faster than e**x
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Ranked:
    """Ranks, probabilities and guesses of one exit for some tokens, on the CPU.

    `rank` [n] int32 is 1 + the number of larger logits, `top_prob` [n] float32 the exit's largest
    probability, `guess_ids` [n, 8] int32 and `guess_probs` [n, 8] float32 its first guesses, in
    order. `coupled_rank` [n] ranks the logits after the noise that sampled the token; None without.
    Of an exit with a shortlist all are of its tokens alone; the rank of another is `NO_RANK`.
    """

    rank: Tensor
    top_prob: Tensor
    guess_ids: Tensor
    guess_probs: Tensor
    coupled_rank: Tensor | None = None


class Ranker:
    """Ranks true tokens at the exits of one model, in memory allocated once."""

    def __init__(self, exit_: Exit) -> None:
        self.exit = exit_
        self.rows = max(32, min(ROWS, LOGITS_BYTES // (4 * exit_.vocabulary)))
        self._scan: _Scan | None = None
        self._listed = Ranker(exit_.of_shortlist()) if exit_.shortlist is not None else None

    def using(self, exit_: Exit) -> Ranker:
        """A ranker for the same head and shortlist with other maps, sharing the memory."""
        other = Ranker(exit_)
        other._scan = self._scan = self._scan or _Scan(self.exit, self.rows)
        if self._listed is not None and other._listed is not None:
            other._listed = self._listed.using(other._listed.exit)
        return other

    def rest(self) -> None:
        """Return the pages of the logits to the operating system until the next ones."""
        if self._scan is not None:
            drop_pages(self._scan.buffer)
        if self._listed is not None:
            self._listed.rest()

    @torch.inference_mode()
    def rank(
        self,
        hidden: Tensor,
        targets: Tensor,
        layer: int | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Ranked:
        """Rank each true token by the exit logits of one layer.

        The true token's logit comes from the same product as the others: computed separately it
        may round differently, and seem to exceed itself.

        Args:
            hidden: that layer's states, [n, width]; n at least 1.
            targets: the token that followed each state, [n].
            layer: the layer, from 1, for its trained map; None is the model's own path.
            noise: Gumbel noise [n, vocabulary] that sampled the tokens, for coupled ranks.
            temperature: divides the logits before the noise is added.

        Raises:
            InvalidInputError: logits are NaN or infinite, so that no rank can be taken from them.
        """
        if self._listed is not None and layer and layer < len(self.exit.decoder_layers):
            return self._rank_listed(self._listed, hidden, targets, layer, noise, temperature)
        scan = self._scan = self._scan or _Scan(self.exit, self.rows)
        parts = []
        for start in range(0, len(hidden), self.rows):
            rows = slice(start, start + self.rows)
            truth = targets[rows].to(scan.device)
            above = scan.fill(self.exit.head_input(hidden[rows].to(scan.device), layer), truth)
            found = [above, *scan.first_guesses()]
            if noise is not None:
                found.append(scan.count_above_with(noise[rows], truth, temperature))
            parts.append(found)
        ranks, guess_ids, guess_probs, *coupled = (
            torch.cat(part).cpu() for part in zip(*parts, strict=True)
        )
        top_prob = guess_probs[:, 0].clone()
        if not top_prob.isfinite().all():  # NaN among the logits makes this NaN too
            exit_ = "an exit" if layer is None else f"the exit of layer {layer}"
            raise InvalidInputError(
                f"logits must be finite; got NaN or infinity from {exit_} in "
                f"{str(self.exit.weight.dtype).removeprefix('torch.')}; check the weights, or "
                "measure in another number type"
            )
        return Ranked(ranks + 1, top_prob, guess_ids, guess_probs, *(rank + 1 for rank in coupled))

    def _rank_listed(
        self,
        listed: Ranker,
        hidden: Tensor,
        targets: Tensor,
        layer: int,
        noise: Tensor | None,
        temperature: float,
    ) -> Ranked:
        """Rank by an exit with a shortlist, with the ids of the vocabulary; arguments as `rank`."""
        ids = self.exit.shortlist
        assert ids is not None
        targets = targets.to(ids.device)
        place = torch.searchsorted(ids, targets.contiguous()).clamp_(max=len(ids) - 1)
        absent = (ids[place] != targets).cpu()
        heard = None if noise is None else noise[:, ids.to(noise.device)]
        found = listed.rank(hidden, place, layer, heard, temperature)
        known = ids.to("cpu", torch.int32)[found.guess_ids.long()]
        coupled = found.coupled_rank
        return replace(
            found,
            rank=found.rank.masked_fill(absent, NO_RANK),
            guess_ids=known.masked_fill(found.guess_ids < 0, -1),
            coupled_rank=None if coupled is None else coupled.masked_fill(absent, NO_RANK),
        )


def whole_groups(vocabulary: int) -> int:
    """The vocabulary in whole groups."""
    return -(-vocabulary // GROUP) * GROUP


class _Scan:
    """Logits of some rows, [blocks, rows, block] with the vocabulary padded by -inf at the end.

    A block of logits is contiguous: rows a whole vocabulary apart would compete for the same cache
    lines.
    """

    def __init__(self, exit_: Exit, rows: int) -> None:
        self.exit = exit_
        self.weight, self.bias = exit_.weight, exit_.bias
        self.device = self.weight.device
        vocabulary = exit_.vocabulary
        self.block = BLOCK if self.device.type == "cpu" else whole_groups(vocabulary)
        blocks = -(-vocabulary // self.block)
        self.buffer = lazy_zeros((blocks, rows, self.block), self.weight)
        self.scratch = self.weight.new_empty(rows, self.block, dtype=torch.float32)
        self.blocks = exit_.blocks or Blocks(self.weight, self.bias, self.block)
        self.linear = linear_for(self.weight)

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Each block's first vocabulary entry, and its logits [n, block]."""
        for index in range(len(self.buffer)):
            yield index * self.block, self.buffer[index, : self.n]

    def fill(self, states: Tensor, targets: Tensor) -> Tensor:
        """Compute the logits of states [n, head input], with group maxima and sums.

        A block is reduced while it is in cache, so the targets' own logits are computed first; a
        row in which they round differently is counted again. Exponentials are relative to the
        first block's largest logit, and summed again in a row where that was too small.

        Returns:
            How many logits [n] exceed the target's, int32.
        """
        self.n = n = len(states)
        scratch, groups = self.scratch[:n], []
        above, total = torch.zeros(n, device=self.device), torch.zeros(n, device=self.device)
        expected, shift = self._ahead(states, targets), None
        for (_, logits), product in zip(self._blocks(), self.blocks.products, strict=True):
            self._product(states, product, logits)
            maxima = logits.view(n, -1, GROUP).amax(2)
            groups.append(maxima)
            if shift is None:
                shift = maxima.amax(1, keepdim=True).float().mul_(-LOG2_E)
            powers = torch.add(shift, self._wide(logits), alpha=LOG2_E, out=scratch)
            total += powers.exp2_().sum(1)
            above += self._above(logits, expected)
        self.group_max = torch.cat(groups, 1)
        assert shift is not None
        self.log_total = total.log_() - shift.squeeze(1) / LOG2_E
        own = self._own(targets)
        for row in (own != expected).flatten().nonzero().flatten().tolist():
            above[row] = (self.buffer[:, row] > own[row]).sum()
        for row in (~self.log_total.isfinite()).nonzero().flatten().tolist():
            self.log_total[row] = self.buffer[:, row].float().flatten().logsumexp(0)
        return above.to(torch.int32)

    def _product(self, states: Tensor, product: Callable[[Tensor], Tensor], logits: Tensor) -> None:
        made = self.exit.finish(product(states))
        logits[:, : made.shape[1]] = made
        logits[:, made.shape[1] :] = -torch.inf

    def _ahead(self, states: Tensor, targets: Tensor) -> Tensor:
        """The targets' own logits [n, 1], from a product of a few columns."""
        bias = None if self.bias is None else self.bias[targets]
        logits = self.exit.finish(self.linear(states, self.weight[targets], bias))
        return logits.diagonal()[:, None].clone()

    def count_above_with(self, noise: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """How many of logits / temperature + noise [n] exceed the target's, int32."""
        noise = noise.to(self.device)
        own = scaled(self._own(targets), temperature) + noise.gather(1, targets[:, None])
        above = torch.zeros(self.n, device=self.device)
        for start, logits in self._blocks():
            here = noise[:, start : start + self.block]
            both = scaled(self._wide(logits), temperature, out=self.scratch[: self.n])
            both[:, : here.shape[1]] += here
            above += self._above(both, own)
        return above.to(torch.int32)

    def _above(self, scores: Tensor, own: Tensor) -> Tensor:
        """How many of a block's scores exceed each row's own, in float32, exact to 2**24.

        A comparison that gives floats is several times faster than one that gives booleans.
        """
        return torch.gt(scores, own, out=self.scratch[: self.n]).sum(1)

    def _wide(self, logits: Tensor) -> Tensor:
        """Logits [n, block] in float32, converted in scratch memory if needed."""
        if logits.dtype == torch.float32:
            return logits
        return self.scratch[: self.n].copy_(logits)

    def _own(self, targets: Tensor) -> Tensor:
        rows = torch.arange(self.n, device=self.device)
        return self.buffer[targets // self.block, rows, targets % self.block][:, None]

    def first_guesses(self) -> tuple[Tensor, Tensor]:
        """Ids [n, 8] int32 and probabilities [n, 8] float32 of the largest logits.

        They are in the groups with the largest maxima, so only those are searched. With a smaller
        vocabulary the rest has id -1 and probability 0.
        """
        groups = self.group_max.topk(min(GUESSES, self.group_max.shape[1]), 1).indices
        within = torch.arange(GROUP, device=self.device)
        ids = (groups[:, :, None] * GROUP + within).flatten(1)
        rows = torch.arange(self.n, device=self.device)[:, None]
        candidates = self.buffer[ids // self.block, rows, ids % self.block].float()
        best, which = candidates.topk(GUESSES, 1)
        found = ids.gather(1, which).masked_fill(best == -torch.inf, -1)
        return found.to(torch.int32), (best - self.log_total[:, None]).exp()


@torch.inference_mode()
def rank_and_margin(exit_: Exit, hidden: Tensor, target: int) -> tuple[int, float]:
    """A token's rank and the margin of the largest logit over its own, for one state [width]."""
    (logits,) = exit_.logits(hidden[None].to(exit_.weight.device)).float()
    own = logits[target]
    return 1 + int((logits > own).sum()), float(logits.max() - own)
