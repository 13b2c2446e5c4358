"""The options that decoding, timing and validation share."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import check_schedule, positive_integer
from ..errors import InvalidInputError
from ..measure.decoder.sampling import Sampling
from .devices import CPU

#: most new tokens of a text that is made before any is timed, so that memory is resident
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class PpdSetting:
    """How PPD drafts at depth 1.

    Attributes:
        exit_layer: the layer after which the guesses are read, 1 ... d - 1.
        k: guesses per token, hence sub-processes; on one further unit they run as a batch, on
            several they are spread.
        row_by_row: run the guesses of a unit one at a time: bitwise identical to plain decoding,
            but slower than a batch.
        ngrams: most tokens of the n-grams from which prompt lookup drafts one of the k guesses, see
            `ppdmodel.results.prompt_lookup`; 0 takes all from the exit.
    """

    exit_layer: int
    k: int = 1
    row_by_row: bool = False
    ngrams: int = 0

    @property
    def name(self) -> str:
        """A key for files: `e20-k3`."""
        lookup = f"-n{self.ngrams}" if self.ngrams else ""
        one_by_one = "-row-by-row" if self.row_by_row else ""
        return f"e{self.exit_layer}-k{self.k}{lookup}{one_by_one}"

    def check(self, layers: int) -> None:
        """Raise `InvalidInputError` unless a model of so many layers can be decoded like this."""
        check_schedule(layers, self.exit_layer, self.k)
        if self.exit_layer == layers:
            raise InvalidInputError(
                f"exit_layer must be below the last layer; got {self.exit_layer} of {layers}: that "
                "is plain greedy decoding; give an earlier one"
            )


@dataclass(frozen=True)
class SelfSpeculation:
    """Drafts by the first layers of the model itself, read from an exit, one after another.

    Attributes:
        exit_layer: the layer after which drafts are read, 1 ... d - 1.
        drafted: most drafts per round.
    """

    exit_layer: int
    drafted: int

    def check(self, layers: int) -> None:
        """Raise `InvalidInputError` unless a model of so many layers can draft like this."""
        PpdSetting(self.exit_layer).check(layers)
        positive_integer("drafted", self.drafted)


@dataclass(frozen=True)
class PromptLookup:
    """Drafts by repeating what followed the last tokens where they stood before in the text.

    Attributes:
        ngram: most last tokens that are looked up; fewer where these are not found.
        drafted: most drafts per round.
    """

    ngram: int
    drafted: int

    def check(self, layers: int) -> None:  # noqa: ARG002
        """Raise `InvalidInputError` unless both are at least 1."""
        positive_integer("ngram", self.ngram)
        positive_integer("drafted", self.drafted)


@dataclass(frozen=True)
class Workers:
    """How many units decode together, and where they compute.

    Attributes:
        units: worker processes, at least 2, each on a CPU of its own.
        device: "cpu"; "cuda", a GPU for each unit; or the GPUs by name, one for each unit, such as
            "cuda:0,cuda:1". Weights and KV cache are copied there.
    """

    units: int = 2
    device: str = CPU


TWO_CPUS = Workers()


@dataclass(frozen=True)
class Capacity:
    """The largest text that memory is reserved for: tokens of its prompt, new tokens, guesses."""

    prompt_tokens: int
    new_tokens: int
    k: int = 1

    @property
    def text_tokens(self) -> int:
        """Of the prompt and after it together."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True)
class RunOptions:
    """How one text is made, whatever the method.

    Attributes:
        stops: whether an end token ends the text.
        sampling: how tokens are drawn; None is greedy. The guesses use the same random numbers.
        prompt_id: the text's name, which seeds its samples.
        timed: whether a plain text waits for its device after each layer, so that events are
            times of layers; PPD always waits.
    """

    stops: bool = True
    sampling: Sampling | None = None
    prompt_id: str = ""
    timed: bool = False


@dataclass(frozen=True)
class ForcedMatches:
    """Guesses that are forced to be right or wrong, to time both outcomes.

    `token_ids[i]` is the text's token i; `hits[i]` says whether the guesses of it are right.
    """

    token_ids: tuple[int, ...]
    hits: tuple[bool, ...]


@dataclass(frozen=True)
class Task:
    """One text to make: by PPD with a setting, else by plain decoding on unit 0, maybe with drafts.

    `timed` synchronizes with the device after each layer of a plain text; PPD always does.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    end_ids: frozenset[int] = frozenset()
    setting: PpdSetting | None = None
    sampling: Sampling | None = None
    prompt_id: str = ""
    forced: ForcedMatches | None = None
    drafts: SelfSpeculation | PromptLookup | None = None
    timed: bool = False
