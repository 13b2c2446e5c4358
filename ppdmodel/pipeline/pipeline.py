"""A model on its units, which decodes one text at a time by PPD or plainly.

Plain decoding runs on one unit, or by tensor parallelism on all of them, which is the baseline with
the same hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..checks import positive_integer
from ..errors import InvalidInputError
from ..measure.decoder.exit import Exit
from ..measure.decoder.verify import verified
from ..measure.models.loading import LoadedModel
from ..measure.training.trained_exits import TrainedExits
from .devices import CPU
from .options import (
    TWO_CPUS,
    Capacity,
    ForcedMatches,
    PpdSetting,
    PromptLookup,
    RunOptions,
    SelfSpeculation,
    Task,
    Workers,
)
from .shared_engine import SharedEngine, shared_engine
from .tensor_parallel import check_shards
from .worker_pool import Run, WorkerPool, placements

PLAIN = RunOptions()


class Pipeline:
    """Units for a model; a context manager.

    >>> # with Pipeline(loaded, prompt_tokens=64, tokens=128, k=3) as pipeline:
    >>> #     run = pipeline.ppd(prompt_ids, 128, PpdSetting(exit_layer=24, k=3))
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        prompt_tokens: int,
        tokens: int,
        k: int = 1,
        workers: Workers = TWO_CPUS,
        exits: TrainedExits | None = None,
    ) -> None:
        """Check everything and share the weights; entering the context starts the processes.

        Args:
            loaded: a model of the Llama architecture, loaded on the CPU.
            prompt_tokens: most tokens of a prompt.
            tokens: most new tokens.
            k: most guesses.
            workers: how many units, and their devices.
            exits: trained exits; None reads the logit exits.

        Raises:
            InvalidInputError: the model has another architecture or too short a context, or there
                are fewer CPUs or GPUs than units.
        """
        if positive_integer("units", workers.units) < 2:
            raise InvalidInputError(
                "units must be at least 2: one for the main process, one or more for the "
                f"sub-processes; got {workers.units}; one unit alone decodes greedily"
            )
        where = placements(workers.units, device=workers.device)
        self.devices = tuple(place.device for place in where)
        loaded.check_room("the longest", prompt_tokens, tokens)
        exit_: Exit = verified(loaded.model).exit
        if exits is not None:
            exits.check_tokenizer(loaded)
            exit_ = exits.on(exit_)
        self.loaded, self.layers = loaded, len(exit_.decoder_layers)
        listed = exit_.shortlist
        what = "vocabulary" if listed is None else "exits' shortlist"
        most = exit_.vocabulary if listed is None else len(listed)
        if positive_integer("k", k) > most:
            raise InvalidInputError(
                f"k must not exceed the {what}; got {k}; there are {most} tokens"
            )
        capacity = Capacity(prompt_tokens, tokens, k)
        self.engine: SharedEngine = shared_engine(loaded, exit_, capacity.text_tokens)
        if set(self.devices) != {CPU}:
            check_shards(self.engine.shape, workers.units)
        self.pool = WorkerPool(self.engine, where, capacity)
        self.tensor_parallel = WorkerPool(
            self.engine,
            where[: self.engine.shape.heads],
            Capacity(prompt_tokens, tokens),
            tensor_parallel=True,
        )

    def __enter__(self) -> Pipeline:
        pools = (self.pool, self.tensor_parallel)
        try:
            for pool in pools:
                pool.start()
            for pool in pools:
                pool.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all units and free the memory."""
        try:
            self.tensor_parallel.close()
        finally:
            self.pool.close()
            self.engine.close()

    def greedy(
        self, prompt_ids: Sequence[int], max_new_tokens: int, options: RunOptions = PLAIN
    ) -> Run:
        """Plain decoding on one unit; arguments as of `ppd`."""
        return self.pool.run(self._task(prompt_ids, max_new_tokens, options))

    def greedy_split(
        self, prompt_ids: Sequence[int], max_new_tokens: int, options: RunOptions = PLAIN
    ) -> Run:
        """Plain decoding by tensor parallelism on all units; arguments as of `ppd`."""
        return self.tensor_parallel.run(self._task(prompt_ids, max_new_tokens, options))

    def drafted(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        drafts: SelfSpeculation | PromptLookup,
        options: RunOptions = PLAIN,
        *,
        split: bool = False,
    ) -> Run:
        """Decoding with drafts on one unit, or by tensor parallelism on all units.

        `Run.matched` says which tokens were accepted drafts. Other arguments are those of `ppd`.
        """
        drafts.check(self.layers)
        pool = self.tensor_parallel if split else self.pool
        return pool.run(replace(self._task(prompt_ids, max_new_tokens, options), drafts=drafts))

    def ppd(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        setting: PpdSetting,
        options: RunOptions = PLAIN,
        *,
        forced: ForcedMatches | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Run:
        """Predictive pipelined decoding at depth 1.

        Args:
            prompt_ids: the text so far.
            max_new_tokens: most tokens to make.
            setting: exit layer and guesses.
            options: of the text.
            forced: which guesses are right, instead of those read from the exit.
            on_token: called with each token id soon after it was made.
        """
        setting.check(self.layers)
        task = self._task(prompt_ids, max_new_tokens, options, setting, forced)
        return self.pool.run(task, on_token)

    def _task(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        options: RunOptions,
        setting: PpdSetting | None = None,
        forced: ForcedMatches | None = None,
    ) -> Task:
        return Task(
            prompt_ids=tuple(prompt_ids),
            max_new_tokens=max_new_tokens,
            end_ids=self.loaded.end_ids if options.stops else frozenset(),
            setting=setting,
            sampling=options.sampling,
            prompt_id=options.prompt_id,
            forced=forced,
            timed=options.timed,
        )
