"""Prompt lookup: drafts from the n-grams of a text, without a model.

The last tokens of a text are searched for at earlier places of it, its prompt included, and what
followed them there is drafted to follow again.

Source:
    Saxena (2023), Prompt Lookup Decoding, https://github.com/apoorvumang/prompt-lookup-decoding.
    Transformers' `prompt_lookup_num_tokens` takes the first place in the text; here it is the last
    one that enough tokens follow, which is right more often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .._types import Ints
    from .measurement import Guesses, Measurement

#: longest n-grams that are searched for, and most tokens drafted per round
NGRAMS, LOOKED_UP = (1, 2, 3), (1, 2, 3, 4, 5, 6, 8, 10)


def prompt_lookup(ids: Sequence[int], n: int, m: int) -> list[int]:
    """Draft the tokens that follow a text, from an earlier place with the same n-gram.

    The longest n-gram at the end of the text that occurs earlier decides, of at most `n` tokens. Of
    its places the last one that `m` tokens follow is taken; if there is none, the first, which most
    tokens follow.

    Args:
        ids: the tokens of the prompt and of the text so far.
        n: most tokens of the n-gram; at least 1.
        m: most tokens to draft; at least 1.

    Returns:
        At most `m` token ids; none where no token at the end of the text occurs earlier.

    >>> prompt_lookup([5, 6, 7, 8, 5, 6], n=2, m=3)
    [7, 8, 5]
    """
    ids, end = list(ids), len(ids)
    places = [place for place in range(1, end) if ids[place - 1] == ids[-1]]  # after its last token
    for length in range(2, n + 1):
        longer = [p for p in places if p >= length and ids[p - length] == ids[end - length]]
        places = longer or places
        if not longer:
            break
    if not places:
        return []
    start = next((place for place in reversed(places) if place + m <= end), places[0])
    return ids[start : start + m]


def joined_guesses(guesses: Sequence[int], draft: Sequence[int]) -> list[int]:
    """As many guesses as an exit's, the likeliest first, but with the token that was looked up.

    It takes the place of the last, unless it is among them; without a draft they are as they were.

    >>> joined_guesses([4, 7, 9], [2])
    [2, 4, 7]
    """
    others = [token for token in guesses if token not in draft[:1]]
    return [*draft[:1], *others][: len(guesses)]


class NgramIndex:
    """The n-grams of several texts, which stand one after another: `prompt_lookup` at every place.

    Attributes:
        ids: the tokens of all texts.
        begins, ends: of each token, where its text begins and ends.
    """

    def __init__(self, texts: Sequence[Ints], n: int) -> None:
        """Number the n-grams of 1 to `n` tokens."""
        lengths = [len(text) for text in texts]
        self.ids = np.concatenate(texts)
        self.ends = np.repeat(np.cumsum(lengths), lengths)
        self.begins = self.ends - np.repeat(lengths, lengths)
        place, total = np.arange(len(self.ids)), len(self.ids)
        token = np.unique(self.ids, return_inverse=True)[1]
        gram = self.begins  # the number of the n-gram before each place: of no tokens, its text
        self._after: list[tuple[Ints, Ints, Ints, Ints]] = []
        for length in range(1, n + 1):
            after = np.flatnonzero(place - self.begins >= length)  # places after an n-gram
            number = np.full(total, -1)
            # the n-gram that is a token shorter and ends a token earlier, and that token
            number[after] = gram[after - 1] * total + token[after - 1]
            gram = np.unique(number, return_inverse=True)[1]
            order = after[np.argsort(gram[after], kind="stable")]
            code = gram[order] * total + order
            first = np.searchsorted(code, gram[after] * total)
            self._after.append((after, order, code, first))

    def sources(self, m: int) -> Ints:
        """Where the draft of at most `m` tokens begins, for n-grams up to each n, [n, tokens].

        Column i is for the text up to its token i, which the draft begins to guess; -1: no draft.
        """
        found = np.full((len(self._after), len(self.ids)), -1)
        for row, (after, order, code, first) in enumerate(self._after):
            if row:
                found[row] = found[row - 1]
            own = code[first] // len(self.ids) * len(self.ids)  # the n-gram's number comes first
            latest = np.searchsorted(code, own + after - m, side="right") - 1
            source = order[np.maximum(latest, first)]
            earlier = source < after
            found[row, after[earlier]] = source[earlier]
        return found

    def drafts(self, source: Ints, m: int) -> tuple[Ints, Ints]:
        """Tokens drafted and accepted at every place, for drafts of `m` tokens that begin there."""
        place = np.arange(len(self.ids))
        drafted = np.where(source < 0, 0, np.minimum(m, place - source))
        accepted = np.zeros(len(place), dtype=np.int64)
        for number in range(m):
            may = (accepted == number) & (drafted > number) & (place + number < self.ends)
            going = np.flatnonzero(may)
            right = self.ids[source[going] + number] == self.ids[going + number]
            accepted[going[right]] += 1
        return drafted, accepted


def lookup_rounds(measurement: Measurement) -> Ints:
    """Rounds of prompt lookup on the recorded texts, by the number of tokens that each drafts.

    A round looks up a draft and verifies it in one pass of the model, which adds a token of its
    own; without a draft it is a step of plain decoding. Texts whose prompts were not recorded are
    searched without them. A text's last round may be cut short by its end.

    Returns:
        [prompts, `NGRAMS`, `LOOKED_UP`, drafted tokens from 0 to the most].
    """
    starts = measurement.starts()
    made = np.split(measurement.token_id, starts[1:-1])
    contexts = measurement.context_ids or [made[0][:0]] * len(made)
    index = NgramIndex(
        [np.concatenate(pair) for pair in zip(contexts, made, strict=True)], max(NGRAMS)
    )
    ends = np.unique(index.ends)
    owner = measurement.prompt_index[starts[:-1]]
    shape = (len(measurement.prompt_ids), len(NGRAMS), len(LOOKED_UP), max(LOOKED_UP) + 1)
    found = np.zeros(shape, dtype=np.int64)
    for column, m in enumerate(LOOKED_UP):
        sources = index.sources(m)
        for row, n in enumerate(NGRAMS):
            drafted, accepted = index.drafts(sources[n - 1], m)
            place = ends - np.diff(starts)
            while (going := place < ends).any():
                at = place[going]
                np.add.at(found[:, row, column], (owner[going], drafted[at]), 1)
                place[going] = at + accepted[at] + 1
    return found


def joined_hits(measurement: Measurement, guesses: Guesses, n: int) -> Ints:
    """Matches of `joined_guesses` on the recorded texts, [prompts, layers, k].

    There are as many k as guesses were recorded. The draft is from n-grams of at most `n` tokens.
    """
    starts = measurement.starts()
    made = np.split(measurement.token_id, starts[1:-1])
    contexts = measurement.context_ids or [made[0][:0]] * len(made)
    texts = [np.concatenate(pair) for pair in zip(contexts, made, strict=True)]
    index = NgramIndex(texts, n)
    source = index.sources(1)[n - 1]
    draft = np.where(source < 0, -1, index.ids[source])
    generated = [
        np.arange(-len(text), 0) >= -len(one) for text, one in zip(texts, made, strict=True)
    ]
    draft = draft[np.concatenate(generated)]
    right, found = (draft == measurement.token_id)[:, None], []
    for k in range(1, guesses.ids.shape[2] + 1):
        among = (guesses.ids[:, :, : k - 1] == draft[:, None, None]).any(axis=2)
        own = np.where((draft >= 0)[:, None] & ~among, k - 1, k)  # the exit's guesses among the k
        hits = right | (measurement.rank <= own)
        by_prompt = np.zeros((len(measurement.prompt_ids), measurement.layers), dtype=np.int64)
        np.add.at(by_prompt, measurement.prompt_index, hits)
        found.append(by_prompt)
    return np.stack(found, axis=2)
