"""A model on its units, ready to decode one text in each of three ways.

PPD on U units; greedy text on one of them; and greedy text on the same U units, every product split
over them, by threads of CPUs or parts on devices: the rival that has the same hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from ..checks import check_schedule, positive_integer
from ..errors import InvalidInputError
from ..measure.decoder.exit import Exit
from ..measure.decoder.sampling import Sampling
from ..measure.decoder.verify import verified
from ..measure.models.loading import LoadedModel
from ..measure.training.train import TrainedExits
from .devices import CPU
from .engine import SharedEngine, shared_engine
from .tensor_parallel import check_parts
from .unit import Script, Task
from .worker_pool import Place, Run, Units, places


class Pipeline:
    """Units for a model; a context manager.

    >>> # with Pipeline(loaded, units=2, prompt_tokens=64, tokens=128, k=3) as pipeline:
    >>> #     run = pipeline.ppd(prompt_ids, 128, exit_layer=24, k=3)
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        units: int = 2,
        prompt_tokens: int,
        tokens: int,
        k: int = 1,
        exits: TrainedExits | None = None,
        device: str = CPU,
    ) -> None:
        """Check everything and share the weights; entering the context starts the processes.

        Args:
            loaded: a model of Llama's build, loaded on the CPU.
            units: processes that decode together, at least 2; each has a CPU of its own.
            prompt_tokens: most tokens of a prompt.
            tokens: most new tokens.
            k: most guesses.
            exits: trained exits; None reads the logit exits.
            device: where the units compute: "cpu"; "cuda", a GPU for each; or the GPUs by name, one
                for each unit, such as "cuda:0,cuda:1". Weights and cache are copied there.

        Raises:
            InvalidInputError: the model is of another build or its context too short, or there are
                fewer CPUs or GPUs than units.
        """
        if positive_integer("units", units) < 2:
            raise InvalidInputError(
                "units must be at least 2: one for the main process, one or more for the "
                f"sub-processes; got {units}; one unit alone decodes greedily"
            )
        where = places(units, device=device)
        self.devices = tuple(place.device for place in where)
        loaded.check_room("the longest", prompt_tokens, tokens)
        room = prompt_tokens + tokens
        exit_: Exit = verified(loaded.model).exit
        if exits is not None:
            exit_ = exits.on(exit_)
        self.loaded, self.units, self.k = loaded, units, k
        self.layers = len(exit_.decoder_layers)
        if positive_integer("k", k) > exit_.vocabulary:
            raise InvalidInputError(
                f"k must not exceed the vocabulary; got {k}; there are {exit_.vocabulary} tokens"
            )
        self.engine: SharedEngine = shared_engine(loaded, exit_, room)
        self.together = Units(self.engine, where, tokens=tokens, room=room, k=k)
        on_cpus = set(self.devices) == {CPU}
        if not on_cpus:
            check_parts(self.engine.shape, units)
        self.split = Units(
            self.engine,
            [_joined(where)] if on_cpus else where,
            tokens=tokens,
            room=room,
            split=not on_cpus,
        )

    def __enter__(self) -> Pipeline:
        self.together.__enter__()
        try:
            self.split.__enter__()
        except BaseException:
            self.together.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.split.close()
        finally:
            self.together.close()
            self.engine.weights.close()

    def greedy(self, prompt_ids: Sequence[int], max_new_tokens: int, **options: Any) -> Run:
        """Plain decoding on one unit. Options: as `ppd`, and `timed`: wait after each layer."""
        return self.together.run(self._task(prompt_ids, max_new_tokens, **options))

    def greedy_split(self, prompt_ids: Sequence[int], max_new_tokens: int, **options: Any) -> Run:
        """Plain decoding on all units together. Options: as `ppd`."""
        return self.split.run(self._task(prompt_ids, max_new_tokens, **options))

    def ppd(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        *,
        exit_layer: int,
        k: int,
        row_by_row: bool = False,
        stops: bool = True,
        sampling: Sampling | None = None,
        prompt_id: str = "",
        script: Script | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Run:
        """Predictive pipelined decoding at depth 1.

        Args:
            prompt_ids: the text so far.
            max_new_tokens: most tokens to make.
            exit_layer: where the guesses are read, below the number of layers.
            k: guesses, hence sub-processes.
            row_by_row: run sub-processes of one unit one after another instead of as a batch: no
                product rounds otherwise than in plain decoding.
            stops: whether an end token ends the text.
            sampling: how tokens are drawn; None is greedy. The guesses are coupled.
            prompt_id: whose the text is, for its samples.
            script: matches that are given instead of found.
            on_token: called with each token id, a little later.
        """
        check_setting(self.layers, exit_layer, k)
        task = self._task(
            prompt_ids,
            max_new_tokens,
            stops=stops,
            sampling=sampling,
            prompt_id=prompt_id,
        )
        task = replace(task, exit_layer=exit_layer, k=k, row_by_row=row_by_row, script=script)
        return self.together.run(task, on_token)

    def _task(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        *,
        stops: bool = True,
        sampling: Sampling | None = None,
        prompt_id: str = "",
        timed: bool = False,
    ) -> Task:
        return Task(
            prompt_ids=tuple(prompt_ids),
            max_new_tokens=max_new_tokens,
            end_ids=self.loaded.end_ids if stops else frozenset(),
            sampling=sampling,
            prompt_id=prompt_id,
            timed=timed,
        )


def check_setting(layers: int, exit_layer: int, k: int) -> None:
    """Raise `InvalidInputError` unless guesses can be read there."""
    check_schedule(layers, exit_layer, k)
    if exit_layer == layers:
        raise InvalidInputError(
            f"exit_layer must be below the last layer; got {exit_layer} of {layers}: that is plain "
            "greedy decoding; give an earlier one"
        )


def _joined(where: Sequence[Place]) -> Place:
    cpus = [cpu for place in where for cpu in place.cpus or ()]
    return Place(sum(place.threads for place in where), tuple(cpus) or None)
