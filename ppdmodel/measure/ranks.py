"""The rank of the true token among an exit's logits, and the exit's first guesses.

The product of states and head is by far the largest part, so it is made in blocks of the vocabulary
that stay in cache while everything else is read off them: on a CPU the whole stage runs close to
the speed of a plain matrix product (`make bench`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .exits import Exit

#: first guesses whose ids and probabilities are kept
GUESSES = 8
#: rows of states in one product, and the memory that their logits may take
ROWS, LOGITS_BYTES = 256, 256 * 2**20
#: vocabulary entries in one product on a CPU, and per group of which the largest logit is kept
BLOCK, GROUP = 1024, 64


@dataclass(frozen=True)
class Ranked:
    """What one exit thought of some tokens, on the CPU.

    `rank` [n] int32 is 1 + the number of larger logits, `top_prob` [n] float32 the exit's largest
    probability, `guess_ids` [n, 8] int32 and `guess_probs` [n, 8] float32 its first guesses, in
    order. `coupled_rank` [n] ranks the logits after the noise that sampled the token; None without.
    """

    rank: Tensor
    top_prob: Tensor
    guess_ids: Tensor
    guess_probs: Tensor
    coupled_rank: Tensor | None = None


class Ranker:
    """Ranks true tokens at the exits of one model, in memory that it takes once."""

    def __init__(self, exit_: Exit) -> None:
        self.exit = exit_
        self.rows = max(32, min(ROWS, LOGITS_BYTES // (4 * exit_.vocabulary)))
        self._scan: _Scan | None = None

    def using(self, exit_: Exit) -> Ranker:
        """A ranker for the same head with other maps, in the same memory."""
        other = Ranker(exit_)
        other._scan = self._scan = self._scan or _Scan(self.exit, self.rows)
        return other

    @torch.inference_mode()
    def rank(
        self,
        hidden: Tensor,
        targets: Tensor,
        layer: int | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Ranked:
        """Rank each true token by the logits read off one layer.

        The true token's logit is taken from the same product that it is ranked in: made along
        another path it may round differently, and be counted against itself.

        Args:
            hidden: that layer's states, [n, width]; n at least 1.
            targets: the token that followed each state, [n].
            layer: the layer, from 1, for its trained map; None is the model's own path.
            noise: Gumbel noise [n, vocabulary] that sampled the tokens, for coupled ranks.
            temperature: what logits are divided by before the noise is added.
        """
        scan = self._scan = self._scan or _Scan(self.exit, self.rows)
        parts = []
        for start in range(0, len(hidden), self.rows):
            rows = slice(start, start + self.rows)
            scan.fill(self.exit.head_input(hidden[rows].to(scan.device), layer))
            truth = targets[rows].to(scan.device)
            found = [scan.count_above(truth), *scan.first_guesses()]
            if noise is not None:
                found.append(scan.count_above_with(noise[rows], truth, temperature))
            parts.append(found)
        ranks, guess_ids, guess_probs, *coupled = (
            torch.cat(part).cpu() for part in zip(*parts, strict=True)
        )
        return Ranked(
            rank=ranks + 1,
            top_prob=guess_probs[:, 0].clone(),
            guess_ids=guess_ids,
            guess_probs=guess_probs,
            coupled_rank=coupled[0] + 1 if coupled else None,
        )


class _Scan:
    """Logits of some rows, [blocks, rows, block] with the vocabulary padded by -inf at the end.

    A block of logits is contiguous: rows that are a whole vocabulary apart would fall on the same
    cache lines.
    """

    def __init__(self, exit_: Exit, rows: int) -> None:
        self.exit = exit_
        self.weight, self.bias = exit_.weight, exit_.bias
        self.device = self.weight.device
        vocabulary = exit_.vocabulary
        on_cpu = self.device.type == "cpu"
        self.block = BLOCK if on_cpu else -(-vocabulary // GROUP) * GROUP
        blocks = -(-vocabulary // self.block)

        def take(*shape: int, dtype: torch.dtype = self.weight.dtype) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=self.device)

        self.buffer = take(blocks, rows, self.block)
        self.scratch = take(rows, self.block, dtype=torch.float32)
        self.mask = take(rows, self.block, dtype=torch.bool)
        last = vocabulary - (blocks - 1) * self.block
        self.partial = take(rows, last) if last < self.block else None
        self.n = 0

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Each block's first vocabulary entry, and its logits [n, block]."""
        for index in range(len(self.buffer)):
            yield index * self.block, self.buffer[index, : self.n]

    def fill(self, states: Tensor) -> None:
        """Make the logits of states [n, head input], and what the guesses need of them."""
        self.n = n = len(states)
        groups, peaks, sums = [], [], []
        for start, logits in self._blocks():
            self._product(states, start, logits)
            group = logits.view(n, -1, GROUP).amax(2)
            peak = group.amax(1, keepdim=True)
            sums.append(self._wide(torch.sub, logits, peak).exp_().sum(1).log())
            groups.append(group)
            peaks.append(peak[:, 0].float())
        self.group_max = torch.cat(groups, 1)
        self.log_total = (torch.stack(sums, 1) + torch.stack(peaks, 1)).logsumexp(1)

    def _product(self, states: Tensor, start: int, logits: Tensor) -> None:
        weight = self.weight[start : start + self.block]
        whole = len(weight) == self.block or self.partial is None
        out = logits if whole else self.partial[: self.n]  # type: ignore[index]
        if self.bias is None:
            torch.mm(states, weight.T, out=out)
        else:
            torch.addmm(self.bias[start : start + self.block], states, weight.T, out=out)
        self.exit.finish(out)
        if not whole:
            logits[:, : len(weight)] = out
            logits[:, len(weight) :] = -torch.inf

    def count_above(self, targets: Tensor) -> Tensor:
        """How many logits [n] exceed the target's, int32."""
        own = self._own(targets)
        above = torch.zeros(self.n, dtype=torch.int32, device=self.device)
        mask = self.mask[: self.n]
        for _, logits in self._blocks():
            above += _count(torch.gt(logits, own, out=mask))
        return above

    def count_above_with(self, noise: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """How many of logits / temperature + noise [n] exceed the target's, int32."""
        noise = noise.to(self.device)
        own = self._own(targets).float() / temperature + noise.gather(1, targets[:, None])
        above = torch.zeros(self.n, dtype=torch.int32, device=self.device)
        mask = self.mask[: self.n]
        for start, logits in self._blocks():
            here = noise[:, start : start + self.block]
            width = here.shape[1]
            both = self._wide(torch.div, logits, torch.tensor(temperature, device=self.device))
            both[:, :width] += here
            above += _count(torch.gt(both, own, out=mask))
        return above

    def _wide(self, operation: Callable[..., Tensor], logits: Tensor, other: Tensor) -> Tensor:
        """An operation on logits [n, block] in float32, in scratch memory."""
        out = self.scratch[: self.n]
        if logits.dtype != torch.float32:
            logits = out.copy_(logits)
        return operation(logits, other.float(), out=out)

    def _own(self, targets: Tensor) -> Tensor:
        rows = torch.arange(self.n, device=self.device)
        return self.buffer[targets // self.block, rows, targets % self.block][:, None]

    def first_guesses(self) -> tuple[Tensor, Tensor]:
        """Ids [n, 8] int32 and probabilities [n, 8] float32 of the largest logits.

        They are in the groups with the largest maxima, so only those are looked through. Where the
        vocabulary is smaller than that, the rest has id -1 and probability 0.
        """
        groups = self.group_max.topk(min(GUESSES, self.group_max.shape[1]), 1).indices
        within = torch.arange(GROUP, device=self.device)
        ids = (groups[:, :, None] * GROUP + within).flatten(1)
        rows = torch.arange(self.n, device=self.device)[:, None]
        candidates = self.buffer[ids // self.block, rows, ids % self.block].float()
        best, which = candidates.topk(GUESSES, 1)
        found = ids.gather(1, which).masked_fill(best == -torch.inf, -1)
        return found.to(torch.int32), (best - self.log_total[:, None]).exp()


def _count(mask: Tensor) -> Tensor:
    """True entries of each row, int32.

    Eight flags lie in one 64-bit word; words are added up 64 at a time, so that no byte overflows.
    """
    if mask.device.type != "cpu":
        return mask.sum(1, dtype=torch.int32)
    words = mask.view(torch.int64).view(len(mask), -1, 64).sum(2)
    return words.view(torch.uint8).view(len(mask), -1).sum(1, dtype=torch.int32)


@torch.inference_mode()
def shortfall(exit_: Exit, hidden: Tensor, target: int) -> tuple[int, float]:
    """A token's rank, and how far its logit lies below the largest, for one state [width]."""
    logits = exit_.logits(hidden[None].to(exit_.weight.device))[0].float()
    own = logits[target]
    return 1 + int((logits > own).sum()), float(logits.max() - own)
